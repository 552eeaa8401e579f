"""A million synthetic vectors: exact search against sign bits and rescoring, how often both agree, and the build.

`python -m benchmarks.bench_search [n]`
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.machine import peak_mib
from benchmarks.timing import seconds_of
from rs_embed.embedders.text import unit
from rs_embed.search.vectors import VectorFile

DIM, CENTRES, QUERIES, K = 512, 1000, 100, 10


def clustered(n: int, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """1,000 unit centres plus 0.6 of unit noise, normalised."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(CENTRES, DIM)).astype(np.float32))
    for start in range(0, n, 50_000):
        size = min(50_000, n - start)
        noise = unit(rng.normal(size=(size, DIM)).astype(np.float32))
        yield unit(centres[rng.integers(0, CENTRES, size)] + np.float32(0.6) * noise)


def isotropic(n: int, seed: int = 0) -> Iterator[npt.NDArray[np.float32]]:
    """Nothing but noise, on which every approximation fails."""
    rng = np.random.default_rng(seed)
    for start in range(0, n, 50_000):
        yield unit(rng.normal(size=(min(50_000, n - start), DIM)).astype(np.float32))


def _filtered_ms(file: VectorFile, queries: npt.NDArray[np.float32]) -> float:
    """A search among a random half."""
    half = np.flatnonzero(np.random.default_rng(2).random(len(file)) < 0.5)
    search = partial(file.nearest, k=K, centred=False, exact=False, candidates=half)
    return 1e3 * statistics.median(seconds_of(partial(search, query)) for query in queries)


def _measure(name: str, parts: Iterator[npt.NDArray[np.float32]], folder: Path) -> str:
    file, build_s = VectorFile(folder), 0.0
    for part in parts:
        started = time.perf_counter()
        file = file.append(part, {})
        build_s += time.perf_counter() - started
    rng = np.random.default_rng(1)
    queries = np.asarray(file.vectors[np.sort(rng.choice(len(file), QUERIES, replace=False))], np.float32)
    queries = unit(queries + np.float32(0.3) * unit(rng.normal(size=queries.shape).astype(np.float32)))
    for exact in (True, False):
        file.nearest(queries[0], K, centred=False, exact=exact)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    agreed = 0
    for query in queries:
        found = []
        for exact in (True, False):
            started = time.perf_counter()
            found.append(set(file.nearest(query, K, centred=False, exact=exact).positions.tolist()))
            seconds[exact].append(time.perf_counter() - started)
        agreed += len(found[0] & found[1])
    exact_ms, fast_ms = (1e3 * statistics.median(seconds[e]) for e in (True, False))
    peak_gb = peak_mib() / 1024
    return (
        f"search, {len(file):,} {name} vectors of {DIM}: {fast_ms:.1f} ms against {exact_ms:.0f} ms exact "
        f"(x{exact_ms / fast_ms:.0f}; {_filtered_ms(file, queries):.1f} ms among half of them), "
        f"recall@{K} {agreed / QUERIES / K:.3f}; built in {build_s:.0f} s; peak memory {peak_gb:.2f} GB"
    )


def report(n: int = 1_000_000) -> list[str]:
    """One line a kind of vectors."""
    lines = []
    for name, parts in (("clustered", clustered), ("isotropic", isotropic)):
        with tempfile.TemporaryDirectory() as root:
            lines.append(_measure(name, parts(n), Path(root) / "index"))
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    report(*(int(a) for a in sys.argv[1:]))
