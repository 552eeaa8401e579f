"""Places from CSV, GeoJSON, GeoParquet, a GeoDataFrame or a region; every other column is carried along unchanged.

A row that is no place is kept with its reason: it becomes a failure of the dataset, it does not vanish.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from rs_embed.errors import SpecError
from rs_embed.grid import transformer, utm_epsg
from rs_embed.specs import BBox, Place, PointBuffer, TemporalSpec

LON_NAMES = ("lon", "longitude", "lng", "long", "x")
LAT_NAMES = ("lat", "latitude", "y")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRow:
    """One row of the input."""

    number: int
    """From 0, as it stands in the input."""
    where: str
    """The same for a person: `line 3`, `feature 2`."""
    id: str
    place: Place | None
    """None for a bad row."""
    start: str | None = None
    end: str | None = None
    """The row's own time range, where it has one."""
    error: str | None = None
    """Why it is no place."""


@dataclass(frozen=True, slots=True)
class InputPlaces:
    """Rows, and the columns that belong to the user."""

    rows: tuple[InputRow, ...]
    columns: pa.Table

    @property
    def bad(self) -> tuple[InputRow, ...]:
        """Rows that are no place."""
        return tuple(row for row in self.rows if row.error is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How places are read."""

    chip_m: float | None = None
    """Side of the square on each point or centroid, ground metres."""
    crs: str = "EPSG:4326"
    """Of a CSV's two columns."""
    id_column: str = "id"
    lon_column: str | None = None
    lat_column: str | None = None
    """Found by their usual names when None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What every format is read to."""

    where: Callable[[int], str]
    ids: Sequence[object]
    x: Sequence[object]
    y: Sequence[object]
    faults: Mapping[int, str]
    table: pa.Table
    crs: str | CRS = "EPSG:4326"


def read_places(source: object, options: ReadOptions) -> InputPlaces:
    """Places of a file, a GeoDataFrame, or a sequence of places.

    Raises:
        SpecError: for a source that is none of these or cannot be read; a bad row is no error, it says why it is bad.
    """
    if isinstance(source, (str, Path)):
        return _finish(_read_file(Path(source), options), options)
    if type(source).__module__.partition(".")[0] == "geopandas":
        return _finish(_read_frame(source, options), options)
    if isinstance(source, Sequence) and all(isinstance(p, (BBox, PointBuffer)) for p in source):
        rows = [InputRow(number=i, where=f"place {i}", id=str(i), place=p) for i, p in enumerate(source)]
        return InputPlaces(tuple(rows), pa.table({"": pa.nulls(len(rows))}).drop_columns([""]))
    raise SpecError(f"places come from a file, a GeoDataFrame or a list of BBox and PointBuffer, got {source!r:.120}")


def _read_file(file: Path, options: ReadOptions) -> _Columns:
    if not file.is_file():
        raise SpecError(f"{file}: no such file")
    readers = {".csv": _read_csv, ".geojson": _read_geojson, ".json": _read_geojson, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise SpecError(f"{file}: places come from {', '.join(readers)}, not {file.suffix or 'a file without ending'}")
    try:
        columns = reader(file, options)
    except (UnicodeDecodeError, json.JSONDecodeError, pa.ArrowInvalid, csv.Error) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    if not columns.ids:
        raise SpecError(f"{file} has no places")
    return columns


def _finish(columns: _Columns, options: ReadOptions) -> InputPlaces:
    """Rows with their places, or why they have none."""
    if options.chip_m is None:
        raise SpecError("a size is needed: --chip M (the side, ground metres) or --buffer-m M (half of it)")
    half_m = options.chip_m / 2
    lon, lat = _to_lonlat(columns)
    names = columns.table.column_names
    starts, ends = (columns.table[n].to_pylist() if n in names else [None] * len(lon) for n in ("start", "end"))
    rows: list[InputRow] = []
    seen: set[str] = set()
    for i, told in enumerate(columns.ids):
        row = InputRow(
            number=i,
            where=columns.where(i),
            id=str(i) if told is None or told == "" else str(told),
            place=None,
            start=_day(starts[i]),
            end=_day(ends[i]),
        )
        fault = columns.faults.get(i) or (f"the id {row.id!r} stands there twice" if row.id in seen else None)
        seen.add(row.id)
        rows.append(replace(row, error=fault) if fault else _placed(row, lon[i], lat[i], half_m))
    return InputPlaces(tuple(rows), columns.table.drop_columns([n for n in ("start", "end") if n in names]))


def _placed(row: InputRow, lon: float, lat: float, half_m: float) -> InputRow:
    try:
        if row.start is not None and row.end is not None:
            TemporalSpec.range(row.start, row.end)
        return replace(row, place=PointBuffer(lon, lat, half_m))
    except SpecError as error:
        return replace(row, error=str(error))


def _day(value: object) -> str | None:
    return None if value is None or value == "" else str(value)[:10]


def _to_lonlat(columns: _Columns) -> tuple[list[float], list[float]]:
    x, y = (np.array([_number(v) for v in values]) for values in (columns.x, columns.y))
    try:
        source = CRS.from_user_input(columns.crs)
    except CRSError as error:
        raise SpecError(f"the CRS {columns.crs!r} is not known: {error}") from error
    if not source.equals(CRS.from_epsg(4326), ignore_axis_order=True):
        x, y = Transformer.from_crs(source, 4326, always_xy=True).transform(x, y)
    return [float(v) for v in x], [float(v) for v in y]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


# --- formats -------------------------------------------------------------------------------------------


def _read_csv(file: Path, options: ReadOptions) -> _Columns:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        lines, cells = [], []
        for cell in reader:
            if cell:
                lines.append(reader.line_num)
                cells.append(cell)
    lon = _column(header, options.lon_column, LON_NAMES, file)
    lat = _column(header, options.lat_column, LAT_NAMES, file)
    faults = {
        i: f"it has {len(cell)} values for {len(header)} columns"
        for i, cell in enumerate(cells)
        if len(cell) != len(header)
    }
    values = {name: [c[k] if k < len(c) else "" for c in cells] for k, name in enumerate(header)}
    for i in range(len(cells)):
        if i not in faults and math.isnan(_number(values[lon][i]) + _number(values[lat][i])):
            faults[i] = f"{lon}={values[lon][i]!r}, {lat}={values[lat][i]!r} are no numbers"
    found = {name.lower(): name for name in header}
    ids = values[found[options.id_column.lower()]] if options.id_column.lower() in found else [None] * len(cells)
    used = {lon, lat, found.get(options.id_column.lower())}
    names = {"start": found.get("start"), "end": found.get("end")}
    kept = {n: _typed(v) for n, v in values.items() if n not in used and n not in names.values()}
    kept |= {n: pa.array(values[column]) for n, column in names.items() if column is not None}
    return _Columns(
        where=lambda i: f"line {lines[i]}",
        ids=ids,
        x=values[lon],
        y=values[lat],
        faults=faults,
        table=_table(kept, len(cells)),
        crs=options.crs,
    )


def _column(header: Sequence[str], named: str | None, usual: Sequence[str], file: Path) -> str:
    by_name = {name.lower(): name for name in header}
    for name in (named.lower(),) if named else usual:
        if name in by_name:
            return by_name[name]
    raise SpecError(f"{file} has no column {named or ' or '.join(usual[:2])}; it has {', '.join(header) or 'none'}")


def _typed(texts: Sequence[str]) -> pa.Array:
    """Texts as numbers where that loses nothing: `007` and `1.0.0` stay texts; nothing is null."""
    filled = [t for t in texts if t != ""]
    for pattern, kind, parse in ((_INTEGER, pa.int64(), int), (_DECIMAL, pa.float64(), float)):
        if filled and all(pattern.fullmatch(t) and t not in ("-", ".") for t in filled):
            return pa.array([None if t == "" else parse(t) for t in texts], kind)
    return pa.array(texts, pa.string())


def _read_geojson(file: Path, options: ReadOptions) -> _Columns:
    document = json.loads(file.read_text(encoding="utf-8"))
    features = document.get("features", []) if isinstance(document, dict) else []
    if not features:
        raise SpecError(f"{file} is no GeoJSON FeatureCollection with features")
    properties = [f.get("properties") or {} for f in features]
    names = list(dict.fromkeys(name for p in properties for name in p))
    geometries = [_shape(f.get("geometry")) for f in features]
    ids = [f.get("id", p.get(options.id_column)) for f, p in zip(features, properties, strict=True)]
    kept = {n: _mixed([p.get(n) for p in properties]) for n in names if n != options.id_column}
    return _from_geometries(geometries, ids, _table(kept, len(features)), "feature")


def _shape(geometry: object) -> BaseGeometry | None:
    try:
        return shapely.geometry.shape(geometry) if geometry else None
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError):
        return None


def _mixed(values: Sequence[object]) -> pa.Array:
    """Values of one type as they are, of several as JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else json.dumps(v) for v in values])


def _read_parquet(file: Path, options: ReadOptions) -> _Columns:
    table = pq.read_table(file)
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("primary_column", "geometry")
    if column not in table.column_names:
        raise SpecError(f"{file} has no geometry column {column!r}; it has {', '.join(table.column_names)}")
    facts = geo.get("columns", {}).get(column, {})
    covering = facts.get("covering", {}).get("bbox", {}).get("xmin", [None])[0]
    crs = facts.get("crs", "OGC:CRS84") or "OGC:CRS84"
    geometries = shapely.from_wkb(table[column].to_numpy(zero_copy_only=False), on_invalid="ignore")
    kept = table.drop_columns([n for n in (column, covering) if n in table.column_names])
    return _from_table(geometries, kept, CRS.from_user_input(crs), options)


def _read_frame(frame: Any, options: ReadOptions) -> _Columns:
    if frame.crs is None:
        raise SpecError("the GeoDataFrame has no CRS: set it with frame.set_crs(…)")
    table = pa.Table.from_pandas(frame.drop(columns=frame.geometry.name), preserve_index=False)
    return _from_table(frame.geometry.to_numpy(), table, CRS.from_user_input(frame.crs), options)


def _from_table(geometries: Iterable[Any], table: pa.Table, crs: CRS, options: ReadOptions) -> _Columns:
    ids = table[options.id_column].to_pylist() if options.id_column in table.column_names else [None] * table.num_rows
    kept = table.drop_columns([options.id_column]) if options.id_column in table.column_names else table
    return replace(_from_geometries(list(geometries), ids, kept.replace_schema_metadata(), "row"), crs=crs)


def _from_geometries(
    geometries: Sequence[BaseGeometry | None], ids: Sequence[object], table: pa.Table, word: str
) -> _Columns:
    """Squares lie on centroids, whatever the geometry."""
    faults = {i: "it has no geometry" for i, g in enumerate(geometries) if g is None or g.is_empty}
    points = [None if i in faults else shapely.centroid(g) for i, g in enumerate(geometries)]
    return _Columns(
        where=partial("{} {}".format, word),
        ids=ids,
        x=[None if p is None else p.x for p in points],
        y=[None if p is None else p.y for p in points],
        faults=faults,
        table=table,
    )


def _table(columns: Mapping[str, pa.Array], rows: int) -> pa.Table:
    """A table that has its rows also when it has no column."""
    return pa.table({"": pa.nulls(rows), **columns}).drop_columns([""])


# --- regions -------------------------------------------------------------------------------------------


def read_region(file: Path) -> BaseGeometry:
    """The union of a GeoJSON file's polygons, longitude and latitude.

    Raises:
        SpecError: when it has none.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{file} cannot be read as GeoJSON: {error}") from error
    parts = document.get("features", [document])
    shapes = [_shape(part.get("geometry", part)) for part in parts]
    polygons = [s for s in shapes if s is not None and s.area > 0]
    if not polygons:
        raise SpecError(f"{file} has no polygon")
    return shapely.union_all(polygons)


def region_places(region: BaseGeometry, chip_m: float) -> InputPlaces:
    """A region cut into chips on multiples of their size in the UTM zone of their centre.

    A chip belongs to the region when its centre does, so that runs months apart, and regions side by side, align.

    Args:
        region: longitude and latitude.
        chip_m: side of a chip, ground metres.
    """
    rows: list[InputRow] = []
    for epsg in _zones(region):
        for x, y, lon, lat in _centres(region, epsg, chip_m):
            name = f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}_{round(x - chip_m / 2)}_{round(y - chip_m / 2)}"
            place = PointBuffer(lon, lat, chip_m / 2)
            rows.append(InputRow(number=len(rows), where=f"chip {name}", id=name, place=place))
    if not rows:
        raise SpecError(
            f"the region {region.bounds} holds the centre of no chip of {chip_m:g} m: take a smaller --chip"
        )
    return InputPlaces(tuple(rows), _table({}, len(rows)))


def _zones(region: BaseGeometry) -> list[int]:
    west, south, east, north = region.bounds
    lons = np.unique(np.clip(np.append(np.arange(west, east, 1.0), east), -180, 180))
    lats = np.unique(np.append(np.arange(south, north, 1.0), north))
    return sorted({utm_epsg(float(lon), float(lat)) for lon in lons for lat in lats})


def _centres(region: BaseGeometry, epsg: int, chip_m: float) -> Iterator[tuple[float, float, float, float]]:
    """Centres (x, y, longitude, latitude) of the chips of one zone, north to south, west to east."""
    x, y = transformer(4326, epsg).transform(*_outline(region.bounds, epsg))
    left, right = math.floor(np.nanmin(x) / chip_m), math.ceil(np.nanmax(x) / chip_m)
    bottom, top = math.floor(np.nanmin(y) / chip_m), math.ceil(np.nanmax(y) / chip_m)
    shapely.prepare(region)
    xs = (np.arange(left, right) + 0.5) * chip_m
    for row in range(top, bottom, -1):
        ys = np.full_like(xs, (row - 0.5) * chip_m)
        lon, lat = transformer(epsg, 4326).transform(xs, ys)
        for k in np.flatnonzero(shapely.contains_xy(region, lon, lat)):
            if utm_epsg(float(lon[k]), float(lat[k])) == epsg:
                yield float(xs[k]), float(ys[k]), float(lon[k]), float(lat[k])


def _outline(bounds: tuple[float, ...], epsg: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The box of a region as far as a zone may reach: three degrees beyond its own six, where MGRS widens some."""
    west_of_zone = (epsg % 100 - 1) * 6 - 180
    north = epsg < 32700
    west, east = (float(np.clip(v, west_of_zone - 3, west_of_zone + 9)) for v in (bounds[0], bounds[2]))
    low, high = (float(np.clip(v, 0 if north else -80, 84 if north else 0)) for v in (bounds[1], bounds[3]))
    lon, lat = np.linspace(west, east, 21), np.linspace(low, high, 21)
    grid = np.meshgrid(lon, lat)
    return grid[0].ravel(), grid[1].ravel()
