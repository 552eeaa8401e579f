"""Places of an export's input, as columns; a row that is not a place keeps the reason why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyproj import Transformer

from rs_embed.arrays import BoolArray, CoordinateArray, IndexArray
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
from rs_embed.lonlat import NORTH, SOUTH
from rs_embed.specs import BBox, Place, PointBuffer, TemporalSpec, parse_day

Days = tuple[str | None, str | None]
"""First day of a row's time range and the day after the last, each where the row states it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of the input."""

    number: int  # position in the input, from 0
    where: str  # position for a reader: `line 3`, `feature 2`
    id: str
    place: Place | None  # None for a bad row
    start: str | None = None
    end: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPlaces:
    """Rows of the input as columns, so that ten million take little memory, and the user's columns."""

    lon: CoordinateArray
    lat: CoordinateArray
    half_m: CoordinateArray  # half the side of the square on the point; NaN for a box
    ids: pa.Array
    where: Callable[[int], str]
    columns: pa.Table
    chip_m: float | None = None  # side of all squares, where they have one side
    faults: Mapping[int, str] = field(default_factory=dict)  # rows that are not places, and why
    boxes: Mapping[int, BBox] = field(default_factory=dict)  # rows that are boxes
    ranges: tuple[Days, ...] = ((None, None),)
    range_of: npt.NDArray[np.int64] | None = None  # number of each row's time range in `ranges`; None: all the first

    def __len__(self) -> int:
        return len(self.lon)

    def place(self, i: int) -> Place:
        """Return the place of a row that is one."""
        return self.boxes.get(i) or PointBuffer(float(self.lon[i]), float(self.lat[i]), float(self.half_m[i]))

    def row(self, i: int) -> InputRow:
        """Return one row."""
        start, end = self.ranges[0 if self.range_of is None else self.range_of[i]]
        error = self.faults.get(i)
        place = self.place(i) if error is None else None
        name = self.ids[i].as_py()
        return InputRow(number=i, where=self.where(i), id=name, place=place, start=start, end=end, error=error)

    @property
    def rows(self) -> tuple[InputRow, ...]:
        """All rows as objects, for inputs that fit into memory so."""
        return tuple(map(self.row, range(len(self))))

    @property
    def column_types(self) -> tuple[tuple[str, str], ...]:
        """Names and types of the user's columns."""
        return tuple((column.name, str(column.type)) for column in self.columns.schema)

    @property
    def bad(self) -> tuple[InputRow, ...]:
        """Rows that are not places."""
        return tuple(map(self.row, sorted(self.faults)))


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
        found = _from_objects(source)
    else:
        raise SpecError(
            f"places come from a file, a GeoDataFrame or a list of BBox and PointBuffer, got {source!r:.120}"
        )
    label = source if isinstance(source, (str, Path)) else "the input"
    if not len(found):
        raise SpecError(f"{label} has no places: it needs at least one row")
    good = np.ones(len(found), bool)
    good[list(found.faults)] = False
    warn_if_swapped(np.column_stack((found.lon, found.lat))[good], label)
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


def _from_objects(places: Sequence[Place]) -> InputPlaces:
    half_m = np.array([p.buffer_m if isinstance(p, PointBuffer) else np.nan for p in places])
    centres = np.array([p.centre for p in places], np.float64).reshape(-1, 2)
    return InputPlaces(
        lon=centres[:, 0],
        lat=centres[:, 1],
        half_m=half_m,
        ids=pa.array([str(i) for i in range(len(places))], pa.string()),
        where="place {}".format,
        columns=table_of({}, len(places)),
        chip_m=float(2 * half_m[0]) if len(places) and (half_m == half_m[0]).all() else None,
        boxes={i: p for i, p in enumerate(places) if isinstance(p, BBox)},
    )


def _to_places(columns: Columns, options: ReadOptions) -> InputPlaces:
    """Return the rows with their places or errors."""
    if options.chip_m is None:
        raise SpecError("a size is needed: --chip M (the side, ground metres) or --buffer-m M (half of it)")
    half_m = options.chip_m / 2
    lon, lat = _to_lonlat(columns)
    names = columns.table.column_names
    ids = [str(i) if given is None or given == "" else str(given) for i, given in enumerate(columns.ids)]
    ranges, range_of, day_faults = _ranges(columns.table, len(ids))
    faults = dict(columns.faults)
    stored = pa.array(ids, pa.string())
    for i in np.flatnonzero(_is_repeated(stored)).tolist():
        faults.setdefault(i, f"the id {ids[i]!r} stands there twice")
    for code, fault in day_faults.items():
        for i in np.flatnonzero(range_of == code).tolist():
            faults.setdefault(i, fault)
    off = ~(np.abs(lon) <= 180) | ~(lat >= SOUTH) | ~(lat <= NORTH) | (not half_m > 0)
    for i in np.flatnonzero(off).tolist():
        if i not in faults:
            faults[i] = _why_no_place(float(lon[i]), float(lat[i]), half_m)
    return InputPlaces(
        lon=lon,
        lat=lat,
        half_m=np.broadcast_to(half_m, len(ids)),
        ids=stored,
        where=columns.where,
        columns=columns.table.drop_columns([n for n in ("start", "end") if n in names]),
        chip_m=options.chip_m,
        faults=faults,
        ranges=ranges,
        range_of=range_of,
    )


def _why_no_place(lon: float, lat: float, half_m: float) -> str:
    try:
        return f"{PointBuffer(lon, lat, half_m)} is no place"
    except SpecError as error:
        return str(error)


def _is_repeated(ids: pa.Array) -> BoolArray:
    """Return True for each id that an earlier row has."""
    codes: IndexArray = ids.dictionary_encode().indices.to_numpy().astype(np.intp)  # numbered by first occurrence
    return codes <= np.maximum.accumulate(np.append(-1, codes[:-1]))


def _ranges(table: pa.Table, n: int) -> tuple[tuple[Days, ...], npt.NDArray[np.int64], dict[int, str]]:
    """Return the distinct time ranges of the rows, the number of each row's, and why some of them are none."""
    (starts, start_of), (ends, end_of) = (_days(table, name, n) for name in ("start", "end"))
    codes, range_of = np.unique(start_of * len(ends) + end_of, return_inverse=True)
    ranges = tuple((starts[code // len(ends)], ends[code % len(ends)]) for code in codes.tolist())
    return ranges, range_of, {i: fault for i, days in enumerate(ranges) if (fault := _why_no_range(*days))}


def _why_no_range(start: str | None, end: str | None) -> str | None:
    try:
        for label, day in (("start", start), ("end", end)):
            if day is not None:
                parse_day(label, day)  # one of them may come from the whole run
        if start is not None and end is not None:
            TemporalSpec.range(start, end)
    except SpecError as error:
        return str(error)
    return None


def _days(table: pa.Table, name: str, n: int) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """Return the distinct days of a column as texts, and the number of each row's."""
    if name not in table.column_names:
        return [None], np.zeros(n, np.int64)
    column = table[name].combine_chunks()
    if pa.types.is_nested(column.type):
        column = pa.array(map(str, column.to_pylist()))
    encoded = column if isinstance(column, pa.DictionaryArray) else column.dictionary_encode()
    days = [_day(value) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(days)).to_numpy(zero_copy_only=False)
    return [*days, None], codes.astype(np.int64)


def _day(value: object) -> str | None:
    """Return a day or the day of a moment as it is written; None for an empty value."""
    text = str(value).strip()
    return None if value is None or not text else text[:10] if text[10:11] in ("T", " ") else text


def _to_lonlat(columns: Columns) -> tuple[CoordinateArray, CoordinateArray]:
    x, y = (np.array([_number(v) for v in values], np.float64) for values in (columns.x, columns.y))
    source = parse_crs(columns.crs)
    if not is_lonlat(source):
        x, y = Transformer.from_crs(source, 4326, always_xy=True).transform(x, y)
    return x, y


def _number(value: object) -> float:
    """Return a value as a number; NaN if it is not one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
