"""Places of an export's input; a row that is not a place keeps its error and becomes a failure of the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyproj import Transformer

from rs_embed.errors import SpecError
from rs_embed.export.delimited import read_delimited
from rs_embed.export.formats import (
    Columns,
    ReadOptions,
    is_lonlat,
    parse_crs,
    read_frame,
    read_geojson,
    read_parquet,
    read_with_gdal,
    table_of,
)
from rs_embed.export.land import warn_if_swapped
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


_READERS: Mapping[str, Callable[[Path, ReadOptions], Columns]] = (
    {".csv": read_delimited}
    | dict.fromkeys((".geojson", ".json", ".geojsonl", ".ndjson"), read_geojson)
    | dict.fromkeys((".parquet", ".geoparquet"), read_parquet)
    | dict.fromkeys((".gpkg", ".shp", ".fgb", ".kml", ".kmz"), read_with_gdal)
    | {".tsv": read_delimited}
)


def read_places(source: object, options: ReadOptions) -> InputPlaces:
    """Read the places of a file, a GeoDataFrame or a sequence of places; a bad row carries its error."""
    if isinstance(source, (str, Path)):
        found = _to_places(_read_file(Path(source), options), options)
    elif type(source).__module__.partition(".")[0] == "geopandas":
        found = _to_places(read_frame(source, options), options)
    elif isinstance(source, Sequence) and all(isinstance(p, (BBox, PointBuffer)) for p in source):
        rows = [InputRow(number=i, where=f"place {i}", id=str(i), place=p) for i, p in enumerate(source)]
        found = InputPlaces(tuple(rows), table_of({}, len(rows)))
    else:
        raise SpecError(
            f"places come from a file, a GeoDataFrame or a list of BBox and PointBuffer, got {source!r:.120}"
        )
    label = source if isinstance(source, (str, Path)) else "the input"
    if not found.rows:
        raise SpecError(f"{label} has no places: it needs at least one row")
    warn_if_swapped([row.place.centre for row in found.rows if row.place is not None], label)
    return found


def _read_file(file: Path, options: ReadOptions) -> Columns:
    """Read a file by the reader for its ending."""
    if not file.is_file():
        raise SpecError(f"{file}: {'it is a folder, name a file in it' if file.is_dir() else 'no such file'}")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise SpecError(f"{file}: places come from {known}, not {file.suffix or 'a file without ending'}")
    try:
        return reader(file, options)
    except (OSError, pa.ArrowException) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error


def _to_places(columns: Columns, options: ReadOptions) -> InputPlaces:
    """Return the rows with their places or errors."""
    if options.chip_m is None:
        raise SpecError("a size is needed: --chip M (the side, ground metres) or --buffer-m M (half of it)")
    half_m = options.chip_m / 2
    PointBuffer(0, 0, half_m)  # a wrong size is one error, not one a row
    lon, lat = _to_lonlat(columns)
    names = columns.table.column_names
    starts, ends = (columns.table[n].to_pylist() if n in names else [None] * len(lon) for n in ("start", "end"))
    rows: list[InputRow] = []
    seen: set[str] = set()
    for i, given in enumerate(columns.ids):
        name = str(i) if given is None or given == "" else str(given)
        start, end = (_day(days[i]) for days in (starts, ends))
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


def _day(value: object) -> str | None:
    """Return a day or the day of a moment as it is written; None for an empty value."""
    text = str(value).strip()
    return None if value is None or not text else text[:10] if text[10:11] in ("T", " ") else text


def _to_lonlat(columns: Columns) -> tuple[list[float], list[float]]:
    x, y = (np.array([_number(v) for v in values]) for values in (columns.x, columns.y))
    source = parse_crs(columns.crs)
    if not is_lonlat(source):
        x, y = Transformer.from_crs(source, 4326, always_xy=True).transform(x, y)
    return [float(v) for v in x], [float(v) for v in y]


def _number(value: object) -> float:
    """Return a value as a number; NaN if it is not one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
