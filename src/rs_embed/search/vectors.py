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
_CHUNK = 65_536
_SAMPLE = 4096
_RESCORED_A_HIT, _RESCORED = 100, 1000


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
    """Vectors of one length; a process that dies while it adds leaves what was there before."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Count, length, and what the writer noted."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "index.json").read_text())
        except FileNotFoundError:
            return {"count": 0, "dim": 0}
        return found

    def __len__(self) -> int:
        return int(self.facts["count"])

    @cached_property
    def vectors(self) -> npt.NDArray[np.float16]:
        """(n, d) unit vectors, mapped: they need not fit into memory."""
        if not len(self):
            return np.empty((0, self.facts["dim"]), np.float16)
        shape = len(self), self.facts["dim"]
        return np.memmap(self.folder / "vectors.f16", np.float16, "r", shape=shape)

    @cached_property
    def _mean(self) -> FloatArray:
        found: FloatArray = np.load(self.folder / "mean.npy", allow_pickle=False)
        return found

    @cached_property
    def _signs(self) -> Any:
        """A faiss index over the sign bits: 64 MB for a million vectors of 512."""
        try:
            import faiss
        except ModuleNotFoundError:
            raise RSEmbedError(missing_package("faiss", extra="search")) from None
        dim = self.facts["dim"]
        index = faiss.IndexBinaryFlat(dim)
        bits = np.fromfile(self.folder / "signs.u1", np.uint8, count=len(self) * dim // 8)
        index.add(bits.reshape(-1, dim // 8))
        return index

    def append(self, vectors: FloatArray, note: Mapping[str, Any]) -> None:
        """Add (n, d) unit vectors; they count once `index.json` says so.

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
        _write_at(self.folder / "signs.u1", count * dim // 8, np.packbits(vectors > mean, axis=1).tobytes())
        part = self.folder / f"index.json.{os.getpid()}"
        part.write_text(json.dumps({**note, "count": count + len(vectors), "dim": dim}))
        os.replace(part, self.folder / "index.json")
        self.forget()

    def forget(self) -> None:
        """Read again from disk what is asked for next."""
        for name in ("facts", "vectors", "_mean", "_signs", "_sample"):
            self.__dict__.pop(name, None)

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
        if exact or among is not None:
            return self._exact(query, min(k, n), among)
        count = max(_RESCORED, _RESCORED_A_HIT * k) if rescored is None else rescored
        return self._by_signs(query, min(k, n), centred, min(max(count, k), len(self)))

    def _exact(self, query: FloatArray, k: int, among: IndexArray | None) -> Nearest:
        positions = np.arange(len(self)) if among is None else among
        scores = np.empty(len(positions), np.float32)
        for start in range(0, len(positions), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = self.vectors[rows] if among is None else self.vectors[positions[rows]]
            scores[rows] = np.asarray(part, np.float32) @ query
        best = _best(scores, k)
        ordered = np.sort(scores)
        below = np.searchsorted(ordered, scores[best]) * (100.0 / max(len(scores), 1))
        return Nearest(positions[best], scores[best], below.astype(np.float32), exact=True)

    def _by_signs(self, query: FloatArray, k: int, centred: bool, rescored: int) -> Nearest:
        bits = np.packbits(query > (0 if centred else self._mean))[None]
        _, found = self._signs.search(bits, rescored)
        positions = np.sort(found[0]).astype(np.int64)
        scores = np.asarray(self.vectors[positions], np.float32) @ query
        best = _best(scores, k)
        below = np.searchsorted(np.sort(self._sample @ query), scores[best]) * (100.0 / len(self._sample))
        return Nearest(positions[best], scores[best], below.astype(np.float32), exact=False)

    @cached_property
    def _sample(self) -> FloatArray:
        """Some vectors from everywhere: what a score is compared with where not all are scored."""
        positions = np.sort(np.random.default_rng(0).choice(len(self), min(_SAMPLE, len(self)), replace=False))
        return np.asarray(self.vectors[positions], np.float32)


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
