"""Millions of synthetic vectors: exact search against sign bits and rescoring, how often both agree, and the build.

`python -m benchmarks.bench_search [n]` (ten million take 11 GB in the folder of TMPDIR)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.timing import seconds_of
from rs_embed.embedders.text import unit
from rs_embed.search.vectors import VectorFile

DIM, CENTRES, QUERIES, K, PART = 512, 1000, 100, 10, 50_000


def clustered(n: int, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """1,000 unit centres plus 0.6 of unit noise, normalised; parts after the first turn the noise of that one."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(CENTRES, DIM)).astype(np.float32))
    noise = np.float32(0.6) * unit(rng.standard_normal((min(n, PART), DIM), np.float32))
    for start in range(0, n, PART):
        size = min(PART, n - start)
        turned = noise[:size] if start == 0 else np.roll(noise[:size], rng.integers(DIM), axis=1) * _either_sign(rng)
        yield unit(centres[rng.integers(0, CENTRES, size)] + turned)


def _either_sign(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    return np.where(rng.random(DIM) < 0.5, np.float32(-1), np.float32(1))


def isotropic(n: int, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Nothing but noise, on which every approximation fails."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, PART):
        yield unit(rng.standard_normal((min(PART, n - start), DIM), np.float32))


def _measure(name: str, parts: Iterator[npt.NDArray[np.float32]], folder: Path, queries: int) -> str:
    file, build_s = VectorFile(folder), 0.0
    for part in parts:
        started = time.perf_counter()
        file = file.append(part, {})
        build_s += time.perf_counter() - started
    rng = np.random.default_rng(1)
    asked = np.asarray(file.vectors[np.sort(rng.choice(len(file), queries, replace=False))], np.float32)
    asked = unit(asked + np.float32(0.3) * unit(rng.normal(size=asked.shape).astype(np.float32)))
    half = np.flatnonzero(np.random.default_rng(2).random(len(file)) < 0.5)
    hundredth = half[:: len(half) * 100 // len(file)]
    started = time.perf_counter()
    file.nearest(asked[0], K, centred=False, exact=False)  # the signs are read to memory
    open_s = time.perf_counter() - started
    filters = {"all": None, "half": half, "a hundredth": hundredth}
    found = {what: _search(file, asked, among) for what, among in filters.items()}
    exact_ms = 1e3 * statistics.median(
        seconds_of(lambda q=q: file.nearest(q, K, centred=False, exact=True)) for q in asked[:3]
    )
    fast_ms = found["all"][0]
    agreed = {what: _recall(file, asked, filters[what], hits) for what, (_, hits) in found.items()}
    return (
        f"search, {len(file):,} {name} vectors of {DIM}: {fast_ms:.1f} ms against {exact_ms:.0f} ms exact "
        f"(x{exact_ms / fast_ms:.0f}; {found['half'][0]:.1f} ms among half of them, {found['a hundredth'][0]:.1f} ms "
        f"among a hundredth), recall@{K} {agreed['all']:.3f} ({agreed['half']:.3f}, {agreed['a hundredth']:.3f}); "
        f"built in {build_s:.0f} s, opened in {open_s:.1f} s; memory {_own_gb():.2f} GB of its own, the rest is mapped"
    )


def _search(
    file: VectorFile, queries: npt.NDArray[np.float32], among: npt.NDArray[np.int64] | None
) -> tuple[float, list[set[int]]]:
    """The median time of a search in ms, and the positions that each finds."""
    search = partial(file.nearest, k=K, centred=False, candidates=among, exact=False)
    hits: list[set[int]] = []
    seconds = [seconds_of(lambda q=q: hits.append(set(search(q).positions.tolist()))) for q in queries]
    return 1e3 * statistics.median(seconds), hits


def _recall(
    file: VectorFile,
    queries: npt.NDArray[np.float32],
    among: npt.NDArray[np.int64] | None,
    hits: Sequence[set[int]],
) -> float:
    """Share of the exact ten that were found; all queries in one pass over the file."""
    positions = np.arange(len(file)) if among is None else among
    best = np.full((len(queries), K), -np.inf, np.float32)
    where = np.zeros((len(queries), K), np.int64)
    for start in range(0, len(positions), 65_536):
        part = positions[start : start + 65_536]
        scores = np.hstack([best, queries @ np.asarray(file.vectors[part], np.float32).T])
        names = np.hstack([where, np.broadcast_to(part, (len(queries), len(part)))])
        top = np.argpartition(-scores, K - 1, axis=1)[:, :K]
        best, where = np.take_along_axis(scores, top, 1), np.take_along_axis(names, top, 1)
    return float(np.mean([len(set(w) & h) / K for w, h in zip(where.tolist(), hits, strict=True)]))


def _own_gb() -> float:
    """Memory of this process without the pages of mapped files."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / (1 << 20)


def report(n: int = 1_000_000) -> list[str]:
    """One line a kind of vectors; beyond two million those in clusters alone, and fewer queries."""
    lines, is_large = [], n > 2_000_000
    for name, parts in (("clustered", clustered), ("isotropic", isotropic))[: 1 if is_large else 2]:
        with tempfile.TemporaryDirectory() as root:
            lines.append(_measure(name, parts(n), Path(root) / "index", 20 if is_large else QUERIES))
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    report(*(int(a) for a in sys.argv[1:]))
