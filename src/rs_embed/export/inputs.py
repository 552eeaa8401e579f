"""Places of an export's input; a row that is not a place keeps its error and becomes a failure of the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from rs_embed.errors import SpecError
from rs_embed.export.formats import Columns, ReadOptions, is_lonlat, number, read_file, read_frame, table_of
from rs_embed.specs import BBox, Place, PointBuffer, TemporalSpec, parse_day


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of the input, in one time range once the export is planned."""

    number: int  # position in the input, from 0
    where: str  # position for a reader: `line 3`, `feature 2`
    id: str
    place: Place | None  # None for a bad row
    start: str | None = None
    end: str | None = None
    """Day after the last of the row's time range, where it has one."""
    error: str | None = None

    @property
    def temporal(self) -> TemporalSpec | None:
        """Time range, if both days are known."""
        return TemporalSpec.range(self.start, self.end) if self.start and self.end else None


@dataclass(frozen=True, slots=True)
class InputPlaces:
    """Rows of the input, and the user's columns."""

    rows: tuple[InputRow, ...]
    columns: pa.Table

    @property
    def bad(self) -> tuple[InputRow, ...]:
        """Rows that are not places."""
        return tuple(row for row in self.rows if row.error is not None)


def read_places(source: object, options: ReadOptions) -> InputPlaces:
    """Read the places of a file, a GeoDataFrame or a sequence of places; a bad row carries its error."""
    if isinstance(source, (str, Path)):
        return _to_places(read_file(Path(source), options), options)
    if type(source).__module__.partition(".")[0] == "geopandas":
        return _to_places(read_frame(source, options), options)
    if isinstance(source, Sequence) and all(isinstance(p, (BBox, PointBuffer)) for p in source):
        rows = [InputRow(number=i, where=f"place {i}", id=str(i), place=p) for i, p in enumerate(source)]
        return InputPlaces(tuple(rows), table_of({}, len(rows)))
    raise SpecError(f"places come from a file, a GeoDataFrame or a list of BBox and PointBuffer, got {source!r:.120}")


def _to_places(columns: Columns, options: ReadOptions) -> InputPlaces:
    """Return the rows with their places or errors."""
    if options.chip_m is None:
        raise SpecError("a size is needed: --chip M (the side, ground metres) or --buffer-m M (half of it)")
    half_m = options.chip_m / 2
    lon, lat = _to_lonlat(columns)
    names = columns.table.column_names
    starts, ends = (columns.table[n].to_pylist() if n in names else [None] * len(lon) for n in ("start", "end"))
    rows: list[InputRow] = []
    seen: set[str] = set()
    for i, given in enumerate(columns.ids):
        name = str(i) if given is None or given == "" else str(given)
        start, end = (str(days[i])[:10] if days[i] not in (None, "") else None for days in (starts, ends))
        row = InputRow(number=i, where=columns.where(i), id=name, place=None, start=start, end=end)
        try:
            if fault := columns.faults.get(i) or (f"the id {name!r} stands there twice" if name in seen else None):
                raise SpecError(fault)
            _ = row.temporal  # raises for a range that is reversed
            for label, day in (("start", start), ("end", end)):
                if day is not None:
                    parse_day(label, day)  # one of them may come from the whole run
            rows.append(replace(row, place=PointBuffer(lon[i], lat[i], half_m)))
        except SpecError as error:
            rows.append(replace(row, error=str(error)))
        seen.add(name)
    return InputPlaces(tuple(rows), columns.table.drop_columns([n for n in ("start", "end") if n in names]))


def _to_lonlat(columns: Columns) -> tuple[list[float], list[float]]:
    x, y = (np.array([number(v) for v in values]) for values in (columns.x, columns.y))
    try:
        source = CRS.from_user_input(columns.crs)
    except CRSError as error:
        raise SpecError(f"the CRS {columns.crs!r} is not known: {error}") from error
    if not is_lonlat(source):
        x, y = Transformer.from_crs(source, 4326, always_xy=True).transform(x, y)
    return [float(v) for v in x], [float(v) for v in y]
