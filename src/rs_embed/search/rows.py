"""The rows of an index as they were when it was opened: their facts and vectors, filters, and answers made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rs_embed.errors import SpecError
from rs_embed.search.results import JUDGED_BY, Hit, corners_of, day_of
from rs_embed.search.vectors import Nearest, VectorFile
from rs_embed.specs import BBox, TemporalSpec

FloatArray = npt.NDArray[np.float32]
Box = BBox | tuple[float, float, float, float]

COLUMNS = (
    "unique_id",
    "id",
    "centre_lon",
    "centre_lat",
    "bbox",
    "geometry",
    "datetime_start",
    "datetime_end",
    "status",
    "scene_ids",
)
STORED = [*COLUMNS, "part"]
"""Of the rows' facts; `part` is the dataset's file that a row came from."""
_PLACE = ["id", "centre_lon", "centre_lat"]
"""Rows that have these in common are windows of one place: ids are unique within one input."""


@dataclass(frozen=True)
class Rows:
    """They do not change under a search, whatever is added meanwhile, by this process or another."""

    file: VectorFile
    table: pa.Table
    """Facts, in the order of the vectors."""

    @classmethod
    def open(cls, folder: Path) -> Rows:
        """What an index folder holds now; nothing where there is none.

        Raises:
            ValueError: when a file of it is damaged, or they do not fit together.
            OSError: when one is missing.
        """
        file = VectorFile(folder).load()
        files = sorted(folder.glob("rows-*.parquet"))
        tables = [pq.read_table(f) for f in files if int(f.stem.removeprefix("rows-")) < len(file)]
        table = pa.concat_tables(tables).combine_chunks() if tables else pa.table({name: [] for name in STORED})
        if table.num_rows != len(file):
            raise ValueError(f"{table.num_rows} rows have facts, {len(file)} have vectors")
        return cls(file, table)

    def __len__(self) -> int:
        return len(self.file)

    @cached_property
    def _places(self) -> dict[str, npt.NDArray[Any]]:
        """What filters look at, as arrays."""
        boxes = self.table["bbox"].combine_chunks()
        found = {n: boxes.field(n).to_numpy() for n in ("xmin", "ymin", "xmax", "ymax")}
        return found | {n: self.table[n].to_numpy() for n in ("datetime_start", "datetime_end")}

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north of all rows; None without any."""
        if not len(self):
            return None
        places = self._places
        west, south, east, north = (
            places["xmin"].min(),
            places["ymin"].min(),
            places["xmax"].max(),
            places["ymax"].max(),
        )
        return float(west), float(south), float(east), float(north)

    @property
    def time_range(self) -> tuple[str, str] | None:
        """The first and the last day of all rows, the last not included."""
        if not len(self):
            return None
        start, end = self._places["datetime_start"].min(), self._places["datetime_end"].max()
        return str(start.astype("M8[D]")), str(end.astype("M8[D]"))

    def position_of(self, id: str) -> int:
        """Where a row is, by its `unique_id` or `id`.

        Raises:
            SpecError: when there is none.
        """
        for column in ("unique_id", "id"):
            position = self.table[column].combine_chunks().index(id).as_py() if len(self) else -1
            if position >= 0:
                return int(position)
        raise SpecError(f"the dataset has no row {id!r}")

    def unique_id(self, position: int) -> str:
        """The `unique_id` of the row at a position."""
        return str(self.table["unique_id"][position].as_py())

    def vectors(self, names: Sequence[str]) -> FloatArray:
        """(n, d) unit vectors of rows by their names."""
        return self.vectors_at(np.array([self.position_of(name) for name in names], np.int64))

    def vectors_at(self, positions: npt.NDArray[np.int64]) -> FloatArray:
        """(n, d) unit vectors."""
        return np.asarray(self.file.vectors[positions], np.float32)

    def among(
        self, bbox: Box | None, time: TemporalSpec | None, own: Sequence[str], every_window: bool = True
    ) -> npt.NDArray[np.int64] | None:
        """Positions that the filters leave; None for all.

        Args:
            bbox: only rows whose footprint meets it.
            time: only rows whose time range lies inside of it.
            own: names of rows to leave out.
            every_window: leave out these rows alone, not the other time ranges of their places.
        """
        if not len(self) or (bbox is None and time is None and not own):
            return None
        keep, places = np.ones(len(self), bool), self._places
        if bbox is not None:
            box = bbox if isinstance(bbox, BBox) else BBox(*bbox)
            keep &= (places["xmin"] < box.maxlon) & (places["xmax"] > box.minlon)
            keep &= (places["ymin"] < box.maxlat) & (places["ymax"] > box.minlat)
        if time is not None:
            keep &= places["datetime_start"] >= np.datetime64(time.start)
            keep &= places["datetime_end"] <= np.datetime64(time.end)
        for position in map(self.position_of, own):
            keep[position] = False
            if not every_window:
                keep &= self._elsewhere(position)
        return np.flatnonzero(keep)

    def _elsewhere(self, position: int) -> npt.NDArray[np.bool_]:
        """True for rows that are no window of a row's place."""
        place = {name: self.table[name][position] for name in _PLACE}
        same = [pc.equal(self.table[name], value) for name, value in place.items()]
        found: npt.NDArray[np.bool_] = ~np.logical_and.reduce([s.to_numpy(zero_copy_only=False) for s in same])
        return found

    @property
    def span(self) -> str:
        """What filters have to meet, for a person."""
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
        among: npt.NDArray[np.int64] | None,
        *,
        centred: bool,
        exact: bool | None,
        every_window: bool,
    ) -> Nearest:
        """As many as `k` places need: windows of one place are one answer, so more may have to be looked at."""
        n, wanted = len(self) if among is None else len(among), max(k, JUDGED_BY)
        while True:
            found = self.file.nearest(query, wanted, among=among, centred=centred, exact=exact)
            if every_window or wanted >= n or len(set(self._places_of(found.positions))) >= k:
                return found
            wanted = min(2 * wanted, n)

    def _places_of(self, positions: npt.NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """What tells places apart."""
        some = self.table.select(_PLACE).take(pa.array(positions))
        return list(zip(*(column.to_pylist() for column in some.columns), strict=True))

    def hits(self, found: Nearest, odds: FloatArray | None, k: int, every_window: bool) -> tuple[Hit, ...]:
        """The first `k` places (or rows) of what was found, with their facts."""
        hits: list[Hit] = []
        seen: set[tuple[Any, ...]] = set()
        rows = self.table.take(pa.array(found.positions)).to_pylist()
        for i, (facts, place) in enumerate(zip(rows, self._places_of(found.positions), strict=True)):
            if len(hits) == k:
                break
            if place in seen and not every_window:
                continue
            seen.add(place)
            box = facts["bbox"]
            hits.append(
                Hit(
                    rank=len(hits) + 1,
                    score=float(found.scores[i]),
                    percentile=float(found.percentiles[i]),
                    probability=None if odds is None else float(odds[i]),
                    unique_id=facts["unique_id"],
                    id=facts["id"],
                    lon=facts["centre_lon"],
                    lat=facts["centre_lat"],
                    bounds=(box["xmin"], box["ymin"], box["xmax"], box["ymax"]),
                    footprint=corners_of(facts["geometry"]),
                    start=day_of(facts["datetime_start"]),
                    end=day_of(facts["datetime_end"]),
                    status=facts["status"],
                    scene_ids=tuple(facts["scene_ids"]),
                )
            )
        return tuple(hits)
