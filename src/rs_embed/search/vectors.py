"""Unit vectors on disk, and the ones nearest to a query: exact, or by sign bits and rescoring where there are many.

Vectors lie in one file, float16; beside it the signs of the mean-centred vectors, one bit a dimension. The signs narrow
a million vectors down to some thousand by Hamming distance (faiss), the vectors themselves give those their order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.errors import ModelError, RSEmbedError, missing_package

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

EXACT_UP_TO = 100_000
"""So many vectors are compared one by one in the time of a blink."""
_FACTS = "index.json"
_CHUNK = 65_536
_SAMPLE = 4096
_RESCORED_A_HIT, _RESCORED = 100, 1000
_NOISE, _ROUNDING = 0.3, 1e-5
"""How far from the file's vectors recall is measured, and what sums in another order differ by."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """What a search found, best first."""

    positions: IndexArray
    scores: FloatArray
    percentiles: FloatArray
    """Share of the vectors searched that score lower, per cent."""
    exact: bool


@dataclass(frozen=True)
class VectorFile:
    """Vectors of one length, as they were when they were first looked at: what is appended is in what `append` returns.

    A process that dies while it adds leaves what was there before.
    """

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Count, length, and what the writer noted."""
        try:
            text = (self.folder / _FACTS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"count": 0, "dim": 0}
        found = json.loads(text)
        if not isinstance(found, dict) or not all(isinstance(found.get(n), int) for n in ("count", "dim")):
            raise ValueError(f"{_FACTS} holds no count and length")
        return found

    def __len__(self) -> int:
        return int(self.facts["count"])

    def load(self) -> VectorFile:
        """Map everything now, so that nothing of it changes under a search.

        Raises:
            ValueError: when a file is damaged or shorter than it should be.
            OSError: when one is missing.
        """
        if len(self) and self.mean.shape != (self.facts["dim"],):
            raise ValueError(f"mean.npy has the shape {self.mean.shape}")
        _ = self.vectors, self._bits
        return self

    @cached_property
    def vectors(self) -> npt.NDArray[np.float16]:
        """(n, d) unit vectors, mapped: they need not fit into memory."""
        if not len(self):
            return np.empty((0, self.facts["dim"]), np.float16)
        shape = len(self), self.facts["dim"]
        return np.memmap(self.folder / "vectors.f16", np.float16, "r", shape=shape)

    @cached_property
    def mean(self) -> FloatArray:
        """(d,) of the first vectors that were added."""
        found: FloatArray = np.load(self.folder / "mean.npy", allow_pickle=False)
        return found

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint8]:
        """(n, d / 8, rounded up) signs."""
        shape = len(self), _sign_bytes(self.facts["dim"])
        if not len(self):
            return np.empty(shape, np.uint8)
        return np.memmap(self.folder / "signs.u1", np.uint8, "r", shape=shape)

    @cached_property
    def _signs(self) -> Any:
        """A faiss index over the sign bits: 64 MB for a million vectors of 512."""
        return _hamming(self._bits)

    def append(self, vectors: FloatArray, note: Mapping[str, Any]) -> VectorFile:
        """Add (n, d) unit vectors; they count once `index.json` says so.

        Returns:
            The file with them.

        Raises:
            ModelError: for vectors of another length.
        """
        count, dim = len(self), int(vectors.shape[1])
        if count and dim != self.facts["dim"]:
            raise ModelError(f"the index holds vectors of {self.facts['dim']} numbers, got {dim}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not count:
            np.save(self.folder / "mean.npy", vectors[: 16 * _CHUNK].mean(axis=0, dtype=np.float64).astype(np.float32))
        mean: FloatArray = np.load(self.folder / "mean.npy", allow_pickle=False)
        _write_at(self.folder / "vectors.f16", count * dim * 2, vectors.astype(np.float16).tobytes())
        signs = np.packbits(vectors > mean, axis=1).tobytes()
        _write_at(self.folder / "signs.u1", count * _sign_bytes(dim), signs)
        return self.note({**note, "count": count + len(vectors), "dim": dim})

    def note(self, facts: Mapping[str, Any]) -> VectorFile:
        """Write facts beside those that are there, whole or not at all; returns the file with them."""
        part = self.folder / f"{_FACTS}.{os.getpid()}"
        part.write_text(json.dumps({**self.facts, **facts}), encoding="utf-8")
        os.replace(part, self.folder / _FACTS)
        return VectorFile(self.folder)

    def recall(self, k: int = 10, queries: int = 32) -> float:
        """Share of the `k` truly nearest that sign bits find, for vectors of the file and for differences of two."""
        rng = np.random.default_rng(0)
        pairs = np.asarray(self.vectors[rng.integers(0, len(self), 2 * queries)], np.float32)
        noise = rng.normal(size=pairs.shape).astype(np.float32) * np.float32(_NOISE / np.sqrt(pairs.shape[1]))
        asked = pairs + noise
        asked[queries:] = pairs[queries:] - pairs[:queries]
        centred = [False] * queries + [True] * queries
        best = np.full((2 * queries, k), -np.inf, np.float32)  # exact scores, all queries in one pass over the file
        for start in range(0, len(self), _CHUNK):
            scores = asked @ np.asarray(self.vectors[start : start + _CHUNK], np.float32).T
            best = -np.partition(-np.column_stack([best, scores]), k - 1, axis=1)[:, :k]
        found = [self.nearest(q, k, centred=c, exact=False).scores for q, c in zip(asked, centred, strict=True)]
        hit = [(f >= b.min() - _ROUNDING).sum() for f, b in zip(found, best, strict=True)]
        return float(np.sum(hit) / best.size)

    def nearest(
        self,
        query: FloatArray,
        k: int,
        *,
        among: IndexArray | None = None,
        centred: bool,
        exact: bool | None = None,
        rescored: int | None = None,
    ) -> Nearest:
        """The `k` vectors with the greatest product with a query.

        Args:
            query: (d,).
            k: how many.
            among: positions to search; all when None.
            centred: whether the query is a difference already (words minus background), not a vector like the stored.
            exact: compare every vector; None decides by their number.
            rescored: how many of the nearest by sign bits are compared by themselves; by `k` when None.
        """
        n = len(self) if among is None else len(among)
        if exact is None:
            exact = n <= EXACT_UP_TO
        if exact:
            return self._exact(query, min(k, n), among)
        count = max(_RESCORED, _RESCORED_A_HIT * k) if rescored is None else rescored
        return self._by_signs(query, min(k, n), among, centred, min(max(count, k), n))

    def compare(self, query: FloatArray, positions: IndexArray) -> Nearest:
        """Vectors at some positions, in that order, scored and set against all (against some of all where many)."""
        scores = self._scores(query, positions)
        others = self._scores(query, None) if len(self) <= EXACT_UP_TO else self._sample @ query
        return Nearest(positions, scores, _percentiles(scores, others), exact=True)

    def _exact(self, query: FloatArray, k: int, among: IndexArray | None) -> Nearest:
        scores = self._scores(query, among)
        best = _best(scores, k)
        positions = best if among is None else among[best]
        return Nearest(positions, scores[best], _percentiles(scores[best], scores), exact=True)

    def _scores(self, query: FloatArray, among: IndexArray | None) -> FloatArray:
        scores = np.empty(len(self) if among is None else len(among), np.float32)
        for start in range(0, len(scores), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = self.vectors[rows] if among is None else self.vectors[among[rows]]
            scores[rows] = np.asarray(part, np.float32) @ query
        return scores

    def _by_signs(self, query: FloatArray, k: int, among: IndexArray | None, centred: bool, rescored: int) -> Nearest:
        bits = np.packbits(query > (0 if centred else self.mean))[None]
        _, found = self._signs.search(bits, rescored, params=None if among is None else _only(among, len(self)))
        positions = np.sort(found[0]).astype(np.int64)
        scores = np.asarray(self.vectors[positions], np.float32) @ query
        best = _best(scores, k)
        sample = self._sample if among is None else self._some_of(among)
        return Nearest(positions[best], scores[best], _percentiles(scores[best], sample @ query), exact=False)

    @cached_property
    def _sample(self) -> FloatArray:
        return self._some_of(np.arange(len(self)))

    def _some_of(self, positions: IndexArray) -> FloatArray:
        """Some vectors from everywhere: what a score is compared with where not all are scored."""
        chosen = np.random.default_rng(0).choice(positions, min(_SAMPLE, len(positions)), replace=False)
        return np.asarray(self.vectors[np.sort(chosen)], np.float32)


def _percentiles(scores: FloatArray, of: FloatArray) -> FloatArray:
    """Share of the others that score lower, per cent."""
    below = np.searchsorted(np.sort(of), scores)
    return (below * (100.0 / max(len(of), 1))).astype(np.float32)


def _sign_bytes(dim: int) -> int:
    return -(-dim // 8)


def _faiss() -> Any:
    """The module, untyped: its Python layer takes more than its stubs know."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise RSEmbedError(missing_package("faiss", extra="search")) from None
    return faiss


def _hamming(bits: npt.NDArray[np.uint8]) -> Any:
    """Faiss's index of these signs."""
    index = _faiss().IndexBinaryFlat(bits.shape[1] * 8)
    index.add(np.ascontiguousarray(bits))
    return index


def _only(among: IndexArray, count: int) -> Any:
    """Faiss's selector of some positions: a bit each, lowest first."""
    faiss, chosen = _faiss(), np.zeros(count, bool)
    chosen[among] = True
    return faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little")))


def _best(scores: FloatArray, k: int) -> IndexArray:
    """Positions of the `k` greatest, best first, ties in the order in which they lie."""
    if k <= 0:
        return np.empty(0, np.int64)
    top = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    order = np.lexsort((top, -scores[top]))
    return top[order].astype(np.int64)


def _write_at(path: Path, offset: int, body: bytes) -> None:
    """Write behind what counts; what a dead process left there is overwritten."""
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.truncate(offset)
        stream.seek(offset)
        stream.write(body)
        stream.flush()
        os.fsync(stream.fileno())
