"""Unit vectors on disk and nearest-neighbour search over them: exact, or by sign bits and rescoring for many vectors.

One file holds the vectors in float16, a second the signs of the mean-centred vectors, one bit a dimension. The signs
narrow a million vectors down to about a thousand by Hamming distance (faiss); the vectors then rank those.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from rs_embed.arrays import FloatArray
from rs_embed.errors import ModelError, import_extra
from rs_embed.export.checks import check_counts
from rs_embed.files import atomic_write, make_folder, read_json

Positions = npt.NDArray[np.int64]

EXACT_UP_TO = 100_000
"""Number of vectors up to which each is compared with the query; it takes some hundredths of a second."""
_HEADER = "index.json"
_CHUNK = 65_536
_READ_BYTES = 32 << 20
"""Size up to which vectors are read to memory instead of mapped."""
_SAMPLE = 4096
_MIN_RESCORED, _RESCORED_PER_HIT, _ROWS_PER_RESCORED = 1000, 100, 1000
"""Vectors that are compared exactly: more among more rows, of which more are alike (`docs/search-at-scale.md`)."""
_RECALL_NOISE = 0.3
"""Length of the noise that is added to stored vectors to make the queries that measure recall."""
_ROUNDING = 1e-5
"""Difference of scores whose sums were taken in another order."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Positions of vectors with their scores, best first."""

    positions: Positions
    scores: FloatArray
    percentiles: FloatArray
    """Share of the vectors searched that score lower, per cent."""
    exact: bool


@dataclass(frozen=True)
class VectorFile:
    """Vectors of one length, as they were when they were first read; `append` returns a new file with the added ones.

    A process that dies while it appends leaves the vectors that were there before.
    """

    folder: Path

    @cached_property
    def header(self) -> dict[str, Any]:
        """Number and length of the vectors, and the writer's notes."""
        try:
            header = read_json(self.folder / _HEADER)
        except FileNotFoundError:
            return {"count": 0, "dim": 0}
        if not isinstance(header, dict) or not {"count", "dim"} <= set(header):
            raise ValueError(f"{_HEADER} holds no count and length")
        check_counts(header, "count", "dim")
        return header

    def __len__(self) -> int:
        return int(self.header["count"])

    def load(self) -> VectorFile:
        """Open all files, so that a search sees no change. Damaged files are a ValueError, missing ones an OSError."""
        if len(self) and (self.mean.shape != (self.header["dim"],) or not np.isfinite(self.mean).all()):
            raise ValueError(f"mean.npy holds no {self.header['dim']} numbers")
        _ = self.vectors, self._bits
        return self

    @cached_property
    def vectors(self) -> npt.NDArray[np.float16]:
        """(n, d) unit vectors, memory-mapped where they are many."""
        return self._map("vectors.f16", np.float16, self.header["dim"])

    @cached_property
    def mean(self) -> FloatArray:
        """(d,) mean of the first vectors that were added."""
        try:
            mean = open_memmap(self.folder / "mean.npy", mode="r")  # its header may claim any size
        except (SyntaxError, RecursionError, TokenError) as error:
            raise ValueError(f"mean.npy cannot be read: {error}") from error
        if mean.dtype != np.float32:
            raise ValueError("mean.npy holds no array of numbers")
        return np.array(mean)

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint8]:
        """(n, d / 8 rounded up) signs, eight to a byte."""
        return self._map("signs.u1", np.uint8, -(-self.header["dim"] // 8))

    def _map(self, name: str, dtype: type[np.generic], width: int) -> npt.NDArray[Any]:
        shape, file = (len(self), width), self.folder / name
        if not len(self):
            return np.empty(shape, dtype)
        if len(self) * width * np.dtype(dtype).itemsize > _READ_BYTES:
            return np.memmap(file, dtype, "r", shape=shape)
        values = np.fromfile(file, dtype, len(self) * width).reshape(shape)  # stays whole whatever becomes of the file
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity")
        return values

    @cached_property
    def _signs(self) -> Any:
        """Faiss index over the sign bits: 64 MB for a million vectors of 512."""
        index = _faiss().IndexBinaryFlat(self._bits.shape[1] * 8)
        index.add(np.ascontiguousarray(self._bits))
        return index

    def append(self, vectors: FloatArray, notes: Mapping[str, Any]) -> VectorFile:
        """Add (n, d) unit vectors and return the file with them; they count once the header, written last, says so.

        Raises:
            ModelError: for vectors of another length.
        """
        count, dim = len(self), int(vectors.shape[1])
        if count and dim != self.header["dim"]:
            raise ModelError(f"the index holds vectors of {self.header['dim']} numbers, got {dim}")
        make_folder(self.folder)
        if not count:
            np.save(self.folder / "mean.npy", vectors[: 16 * _CHUNK].mean(axis=0, dtype=np.float64).astype(np.float32))
        _write_at(self.folder / "vectors.f16", count * dim * 2, vectors.astype(np.float16).tobytes())
        signs = np.packbits(vectors > self.mean, axis=1)
        _write_at(self.folder / "signs.u1", count * signs.shape[1], signs.tobytes())
        return self.annotate({**notes, "count": count + len(vectors), "dim": dim})

    def annotate(self, notes: Mapping[str, Any]) -> VectorFile:
        """Merge notes into the header and return the file with them."""
        with atomic_write(self.folder / _HEADER, durable=True) as part:
            part.write_text(json.dumps({**self.header, **notes}), encoding="utf-8")
        return VectorFile(self.folder)

    def recall(self, k: int = 10, queries: int = 32) -> float:
        """Measure the share of the `k` nearest that sign bits find.

        Half of the queries are stored vectors with noise, half are differences of two.
        """
        rng = np.random.default_rng(0)
        pairs = np.asarray(self.vectors[rng.integers(0, len(self), 2 * queries)], np.float32)
        noise = rng.normal(size=pairs.shape).astype(np.float32) * np.float32(_RECALL_NOISE / np.sqrt(pairs.shape[1]))
        directions = pairs + noise
        directions[queries:] = pairs[queries:] - pairs[:queries]
        centred = [False] * queries + [True] * queries
        best = np.full((2 * queries, k), -np.inf, np.float32)  # exact scores, all queries in one pass over the file
        for start in range(0, len(self), _CHUNK):
            scores = directions @ np.asarray(self.vectors[start : start + _CHUNK], np.float32).T
            best = -np.partition(-np.column_stack([best, scores]), k - 1, axis=1)[:, :k]
        found = [self.nearest(q, k, centred=c, exact=False).scores for q, c in zip(directions, centred, strict=True)]
        hits = [(f >= b.min() - _ROUNDING).sum() for f, b in zip(found, best, strict=True)]
        return float(np.sum(hits) / best.size)

    def nearest(
        self,
        query: FloatArray,
        k: int,
        *,
        candidates: Positions | None = None,
        centred: bool,
        exact: bool | None = None,
        rescored: int | None = None,
    ) -> Neighbours:
        """Find the `k` vectors, among the candidates or all, that have the greatest product with a query (d,).

        Args:
            centred: True for a query that is a difference of vectors, False for one like the stored vectors.
            exact: compare every vector; None decides by their number.
            rescored: number of the nearest by sign bits that are compared exactly; None decides by `k` and `n`.
        """
        n = len(self) if candidates is None else len(candidates)
        if exact or (exact is None and n <= EXACT_UP_TO):
            return self._exact(query, min(k, n), candidates)
        enough = max(_MIN_RESCORED, _RESCORED_PER_HIT * k, n // _ROWS_PER_RESCORED)
        count = enough if rescored is None else rescored
        return self._by_signs(query, min(k, n), candidates, centred, min(max(count, k), n))

    def compare(self, query: FloatArray, positions: Positions) -> Neighbours:
        """Score the vectors at some positions, in that order, with percentiles among all (a sample of all if many)."""
        scores = self._scores(query, positions)
        others = self._scores(query, None) if len(self) <= EXACT_UP_TO else self._sample @ query
        return Neighbours(positions, scores, _percentiles(scores, others), exact=True)

    def _exact(self, query: FloatArray, k: int, candidates: Positions | None) -> Neighbours:
        scores = self._scores(query, candidates)
        best = _best(scores, k)
        positions = best if candidates is None else candidates[best]
        return Neighbours(positions, scores[best], _percentiles(scores[best], scores), exact=True)

    def _scores(self, query: FloatArray, candidates: Positions | None) -> FloatArray:
        scores = np.empty(len(self) if candidates is None else len(candidates), np.float32)
        for start in range(0, len(scores), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = self.vectors[rows] if candidates is None else self.vectors[candidates[rows]]
            scores[rows] = np.asarray(part, np.float32) @ query
        return scores

    def _by_signs(
        self, query: FloatArray, k: int, candidates: Positions | None, centred: bool, rescored: int
    ) -> Neighbours:
        faiss, selector = _faiss(), None
        if candidates is not None:
            chosen = np.packbits(np.bincount(candidates, minlength=len(self)), bitorder="little")
            selector = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(chosen))
        bits = np.packbits(query > (0 if centred else self.mean))[None]
        _, found = self._signs.search(bits, rescored, params=selector)
        positions = np.sort(found[0]).astype(np.int64)
        scores = np.asarray(self.vectors[positions], np.float32) @ query
        best = _best(scores, k)
        sample = self._sample if candidates is None else self._sample_of(candidates)
        return Neighbours(positions[best], scores[best], _percentiles(scores[best], sample @ query), exact=False)

    @cached_property
    def _sample(self) -> FloatArray:
        return self._sample_of(np.arange(len(self)))

    def _sample_of(self, positions: Positions) -> FloatArray:
        """Return a random sample of vectors to measure percentiles against where not all vectors are scored."""
        chosen = np.random.default_rng(0).choice(positions, min(_SAMPLE, len(positions)), replace=False)
        return np.asarray(self.vectors[np.sort(chosen)], np.float32)


def _percentiles(scores: FloatArray, others: FloatArray) -> FloatArray:
    """Return the share of other scores that are lower, per cent."""
    return (np.searchsorted(np.sort(others), scores) * (100.0 / max(len(others), 1))).astype(np.float32)


def _faiss() -> Any:
    """Import faiss, untyped: its Python layer takes more than its stubs declare."""
    return import_extra("faiss", extra="search")


def _best(scores: FloatArray, k: int) -> Positions:
    """Return the positions of the `k` greatest scores, best first; ties keep their order."""
    top = np.sort(np.argpartition(-scores, k - 1)[:k]) if 0 < k < len(scores) else np.arange(len(scores))
    return top[np.argsort(-scores[top], kind="stable")][:k]


def _write_at(path: Path, offset: int, body: bytes) -> None:
    """Write at the end of what counts, over whatever a dead process left there."""
    with path.open("r+b" if path.exists() else "wb") as stream:
        stream.truncate(offset)
        stream.seek(offset)
        stream.write(body)
        stream.flush()
        os.fsync(stream.fileno())
