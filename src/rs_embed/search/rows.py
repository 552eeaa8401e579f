"""Rows of an index as they were when it was opened: metadata and vectors, filters, and the hits made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rs_embed.arrays import BoolArray, FloatArray
from rs_embed.errors import SpecError
from rs_embed.export.checks import check_counts
from rs_embed.lonlat import Box, enclose, meets
from rs_embed.search.columns import (
    BOUNDS,
    PLACE_COLUMNS,
    STORED_COLUMNS,
    TIME_COLUMNS,
    are_part_names,
    check_table,
    usable_rows,
)
from rs_embed.search.presence import JUDGED
from rs_embed.search.results import Hit, footprint_corners, utc_day
from rs_embed.search.vectors import Neighbours, Positions, VectorFile
from rs_embed.specs import BBoxLike, TemporalSpec, bounds_of

_DENSE_FOOTPRINTS = 24
"""Half the width of the part of a dataset that a map opens on, in footprints: quicklooks are still told apart there."""


@dataclass(frozen=True)
class Rows:
    """Snapshot of an index, which does not change whatever this or another process adds meanwhile."""

    file: VectorFile
    table: pa.Table
    """Metadata of the rows, in the order of the vectors."""

    @classmethod
    def open(cls, folder: Path) -> Rows:
        """Open an index folder; a missing one has no rows. Damaged files are a ValueError, missing ones an OSError."""
        file = VectorFile(folder).load()
        files = sorted(folder.glob("rows-*.parquet"))
        for name in ("parts", "left_out"):
            check_counts(file.header.get(name, {}))
        tables = [pq.read_table(f) for f in files if int(f.stem.removeprefix("rows-")) < len(file)]
        table = pa.concat_tables(tables).combine_chunks() if tables else pa.table({n: [] for n in STORED_COLUMNS})
        if table.num_rows != len(file):
            raise ValueError(f"{table.num_rows} rows have metadata, {len(file)} have vectors")
        if len(file):
            check_table(table, STORED_COLUMNS)
            if not usable_rows(table).all() or not are_part_names(table["part"]):
                raise ValueError("it holds rows that cannot be shown")
        return cls(file, table)

    def __len__(self) -> int:
        return len(self.file)

    @cached_property
    def _filter_columns(self) -> dict[str, npt.NDArray[Any]]:
        """Bounds and time ranges of all rows, as arrays."""
        boxes = self.table["bbox"].combine_chunks()
        return {n: boxes.field(n).to_numpy() for n in BOUNDS} | {n: self.table[n].to_numpy() for n in TIME_COLUMNS}

    @property
    def extent(self) -> Box | None:
        """West, south, east, north of all rows, west > east across 180°; None without rows."""
        if not len(self):
            return None
        return enclose(np.column_stack([self._filter_columns[n] for n in BOUNDS]).tolist())

    @cached_property
    def dense_extent(self) -> Box | None:
        """West, south, east, north of the part where most rows lie together, some tens of footprints wide."""
        if not len(self):
            return None
        boxes = np.column_stack([self._filter_columns[n] for n in BOUNDS])
        lon, lat = (self.table[name].to_numpy() for name in ("centre_lon", "centre_lat"))
        side = _DENSE_FOOTPRINTS * max(1e-6, float(np.median(boxes[:, 3] - boxes[:, 1])))  # degrees of latitude
        row = np.floor(lat / side)
        column = np.floor(lon * np.cos(np.radians(row * side)) / side)
        _, cell, counts = np.unique(row * 1e8 + column, return_inverse=True, return_counts=True)
        fullest = cell == counts.argmax()
        x, y = lon[fullest].mean(), lat[fullest].mean()
        east = ((lon - x + 180) % 360 - 180) * np.cos(np.radians(y))
        return enclose(boxes[(abs(lat - y) <= side) & (abs(east) <= side)].tolist())

    @property
    def time_range(self) -> tuple[str, str] | None:
        """First day of all rows and the day after the last; None without rows."""
        if not len(self):
            return None
        start, end = (self._filter_columns[n].astype("M8[D]") for n in TIME_COLUMNS)
        return str(start.min()), str(end.max())

    def position_of(self, id: str) -> int:
        """Return the position of a row by its `unique_id` or `id`; a SpecError says that there is none."""
        for column in ("unique_id", "id"):
            position = self.table[column].combine_chunks().index(id).as_py() if len(self) else -1
            if position >= 0:
                return int(position)
        raise SpecError(f"the dataset has no row {id!r}")

    def unique_id(self, id: str) -> str:
        """Return the `unique_id` of a row by its `unique_id` or `id`; a SpecError says that there is none."""
        return str(self.table["unique_id"][self.position_of(id)].as_py())

    def vectors_of(self, ids: Sequence[str]) -> FloatArray:
        """Return the unit vectors (n, d) of rows by their ids."""
        return self.vectors_at(np.array([self.position_of(id) for id in ids], np.int64))

    def vectors_at(self, positions: Positions) -> FloatArray:
        """Return the unit vectors (n, d) at some positions."""
        return np.asarray(self.file.vectors[positions], np.float32)

    def select(
        self, bbox: BBoxLike | None, time: TemporalSpec | None, exclude: Sequence[str] = (), every_window: bool = True
    ) -> Positions | None:
        """Return the positions that the filters of `EmbeddingIndex.search` leave; None for all.

        The rows `exclude` are left out; unless `every_window`, so are the other time ranges of their places.
        """
        if not len(self) or (bbox is None and time is None and not exclude):
            return None
        keep, columns = np.ones(len(self), bool), self._filter_columns
        if bbox is not None:
            keep &= meets(bounds_of(bbox), *(columns[name] for name in BOUNDS))
        if time is not None:
            keep &= columns["datetime_start"] >= np.datetime64(time.start)
            keep &= columns["datetime_end"] <= np.datetime64(time.end)
        for position in map(self.position_of, exclude):
            keep[position] = False
            if not every_window:
                keep &= ~self._of_same_place(position)
        return np.flatnonzero(keep)

    def _of_same_place(self, position: int) -> npt.NDArray[np.bool_]:
        """Return a mask of the rows that are time ranges of one row's place."""
        columns = self.table.select(PLACE_COLUMNS).columns
        equal = [pc.equal(column, column[position]).to_numpy(zero_copy_only=False) for column in columns]
        mask: npt.NDArray[np.bool_] = np.logical_and.reduce(equal)
        return mask

    @property
    def no_match_notice(self) -> str:
        """Sentence that tells where and when the dataset has rows."""
        west, south, east, north = self.extent or (0, 0, 0, 0)
        start, end = self.time_range or ("", "")
        return (
            "no row is left by these filters: the dataset lies in W S E N "
            f"{west:.3f} {south:.3f} {east:.3f} {north:.3f}, its time ranges in {start} to {end}"
        )

    def nearest(
        self,
        query: FloatArray,
        k: int,
        candidates: Positions | None,
        *,
        centred: bool,
        exact: bool | None,
        every_window: bool,
    ) -> Neighbours:
        """Find enough neighbours for `k` places: time ranges of one place are one hit, so `k` rows may be too few."""
        n, wanted = len(self) if candidates is None else len(candidates), max(k, JUDGED)
        while True:
            found = self.file.nearest(query, wanted, candidates=candidates, centred=centred, exact=exact)
            if every_window or wanted >= n or len(set(self._place_keys(found.positions))) >= k:
                return found
            wanted = min(2 * wanted, n)

    def unlike_training(self, positions: Positions) -> BoolArray:
        """Return which rows' imagery is known to be unlike what the model was trained on."""
        return self._unlike[positions]

    def count_unlike_training(self, candidates: Positions | None) -> int:
        """Return the number of such rows among the candidates of a search; None are all rows."""
        return int((self._unlike if candidates is None else self._unlike[candidates]).sum())

    @cached_property
    def _unlike(self) -> BoolArray:
        unlike: BoolArray = pc.fill_null(self.table["unlike_training"], False).to_numpy().astype(bool)
        return unlike

    def _place_keys(self, positions: Positions) -> list[tuple[Any, ...]]:
        """Return a key for each row, equal for the time ranges of one place."""
        columns = self.table.select(PLACE_COLUMNS).take(pa.array(positions)).to_pydict()
        return list(zip(*columns.values(), strict=True))

    def hits(
        self, found: Neighbours, probabilities: FloatArray | None, limit: int, *, every_window: bool
    ) -> tuple[Hit, ...]:
        """Return the first hits of a search with their metadata, one a place unless `every_window`."""
        keys: Sequence[object] = range(len(found.positions)) if every_window else self._place_keys(found.positions)
        best = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))  # first of each key
        chosen = [i for i in sorted(best.values()) if np.isfinite(found.scores[i])][
            :limit
        ]  # a damaged vector is no hit
        rows = self.table.take(pa.array(found.positions[chosen], pa.int64())).to_pylist()
        return tuple(
            Hit(
                rank=rank,
                score=float(found.scores[i]),
                percentile=float(found.percentiles[i]),
                probability=None if probabilities is None or np.isnan(probabilities[i]) else float(probabilities[i]),
                unlike_training=row["unlike_training"],
                unique_id=row["unique_id"],
                id=row["id"],
                lon=row["centre_lon"],
                lat=row["centre_lat"],
                bounds=itemgetter(*BOUNDS)(row["bbox"]),
                footprint=footprint_corners(row["geometry"], row["centre_lon"], row["centre_lat"]),
                start=utc_day(row["datetime_start"]),
                end=utc_day(row["datetime_end"]),
                status=row["status"],
                scene_ids=tuple(row["scene_ids"]),
                warnings=tuple(row["warnings"] or ()),
            )
            for rank, (i, row) in enumerate(zip(chosen, rows, strict=True), start=1)
        )
