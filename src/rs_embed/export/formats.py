"""Readers of files of places. Each returns coordinates and ids, and all other columns unchanged."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from rs_embed import outlines
from rs_embed.errors import SpecError, missing_package

LON_NAMES = ("lon", "longitude", "lng", "long", "x")
LAT_NAMES = ("lat", "latitude", "y")
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)?(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options for reading places."""

    chip_m: float | None = None
    """Side of the square on each point or centroid, ground metres."""
    crs: str = "EPSG:4326"
    """CRS of a CSV's two columns."""
    id_column: str = "id"
    lon_column: str | None = None
    lat_column: str | None = None
    """Column of latitude or y, found by its usual names when None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Content of a file: coordinates in its CRS, ids, reasons why rows are not places, and the user's columns."""

    where: Callable[[int], str]
    """Function that returns the place of a row in the input: `line 3`, `feature 2`."""
    ids: Sequence[object]
    x: Sequence[object]
    y: Sequence[object]
    faults: Mapping[int, str]
    table: pa.Table
    crs: str | CRS = "EPSG:4326"


def read_file(file: Path, options: ReadOptions) -> Columns:
    """Read a file by the reader of its ending."""
    if not file.is_file():
        raise SpecError(f"{file}: no such file")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise SpecError(f"{file}: places come from {known}, not {file.suffix or 'a file without ending'}")
    try:
        columns = reader(file, options)
    except (UnicodeDecodeError, json.JSONDecodeError, pa.ArrowInvalid, csv.Error) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    if not columns.ids:
        raise SpecError(f"{file} has no places")
    return columns


def number(value: object) -> float:
    """Return a value as a number; NaN if it is not one."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def table_of(columns: Mapping[str, pa.Array], rows: int) -> pa.Table:
    """Return a table that keeps its number of rows when it has no column."""
    return pa.table({"": pa.nulls(rows), **columns}).drop_columns([""])


def _read_csv(file: Path, options: ReadOptions) -> Columns:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, cells) for cells in reader if cells]
    lon = _column(header, options.lon_column, LON_NAMES, file)
    lat = _column(header, options.lat_column, LAT_NAMES, file)
    faults = {
        i: f"it has {len(cells)} values for {len(header)} columns"
        for i, (_, cells) in enumerate(lines)
        if len(cells) != len(header)
    }
    values = {name: [c[k] if k < len(c) else "" for _, c in lines] for k, name in enumerate(header)}
    for i, (x, y) in enumerate(zip(values[lon], values[lat], strict=True)):
        if i not in faults and math.isnan(number(x) + number(y)):
            faults[i] = f"{lon}={x!r}, {lat}={y!r} are no numbers"
    by_name = {name.lower(): name for name in header}
    id_name, *days = (by_name.get(name) for name in (options.id_column.lower(), "start", "end"))
    kept = {n: _typed(v) for n, v in values.items() if n not in (lon, lat, id_name, *days)}
    kept |= {n: pa.array(values[column]) for n, column in zip(("start", "end"), days, strict=True) if column}
    return Columns(
        where=lambda i: f"line {lines[i][0]}",
        ids=[None] * len(lines) if id_name is None else values[id_name],
        x=values[lon],
        y=values[lat],
        faults=faults,
        table=table_of(kept, len(lines)),
        crs=options.crs,
    )


def _column(header: Sequence[str], named: str | None, usual: Sequence[str], file: Path) -> str:
    by_name = {name.lower(): name for name in header}
    for name in (named.lower(),) if named else usual:
        if name in by_name:
            return by_name[name]
    raise SpecError(f"{file} has no column {named or ' or '.join(usual[:2])}; it has {', '.join(header) or 'none'}")


def _typed(texts: Sequence[str]) -> pa.Array:
    """Return texts as numbers where that loses nothing: `007` and `1.0.0` stay texts; an empty text is null."""
    filled = [t for t in texts if t != ""]
    for pattern, kind, parse in ((_INTEGER, pa.int64(), int), (_DECIMAL, pa.float64(), float)):
        if filled and all(pattern.fullmatch(t) and t not in ("-", ".") for t in filled):
            return pa.array([None if t == "" else parse(t) for t in texts], kind)
    return pa.array(texts, pa.string())


def _read_geojson(file: Path, options: ReadOptions) -> Columns:
    document, crs = read_geojson_document(file)
    listed = document.get("features")
    if not isinstance(listed, list) or not listed:
        raise SpecError(f"{file} is no GeoJSON FeatureCollection with features")
    features = [f if isinstance(f, dict) else {} for f in listed]
    properties = [p if isinstance(p := f.get("properties"), dict) else {} for f in features]
    names = list(dict.fromkeys(name for p in properties for name in p))
    geometries = [parse_shape(f.get("geometry")) for f in features]
    ids = [f.get("id", p.get(options.id_column)) for f, p in zip(features, properties, strict=True)]
    kept = {n: _mixed([p.get(n) for p in properties]) for n in names if n != options.id_column}
    return _on_centroids(geometries, ids, table_of(kept, len(features)), "feature", crs)


def read_geojson_document(file: Path) -> tuple[dict[str, Any], CRS]:
    """Return the object in a GeoJSON file, and its CRS: longitude and latitude, unless an old `crs` member differs."""
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{file} cannot be read as GeoJSON: {error}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{file} is no GeoJSON object")
    member = document.get("crs") or {"properties": {"name": "OGC:CRS84"}}
    try:
        return document, CRS.from_user_input(member["properties"]["name"])
    except (CRSError, KeyError, TypeError) as error:
        raise SpecError(f"{file}: its crs {member} is not known: name it as EPSG:…, or leave it out") from error


def is_lonlat(crs: str | CRS) -> bool:
    """Tell if coordinates in a CRS are degrees of longitude and latitude on WGS 84."""
    return CRS.from_user_input(crs).equals(CRS.from_epsg(4326), ignore_axis_order=True)


def parse_shape(geometry: object) -> BaseGeometry | None:
    """Return a GeoJSON geometry as a shape; None for an invalid one."""
    try:
        return shapely.geometry.shape(geometry) if geometry else None
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError):
        return None


def _mixed(values: Sequence[object]) -> pa.Array:
    """Return values of one type as they are, values of several types as JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # the last for whole numbers over 64 bits
        return pa.array([None if v is None else json.dumps(v) for v in values])


def _read_parquet(file: Path, options: ReadOptions) -> Columns:
    table = pq.read_table(file)
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("primary_column", "geometry")
    described = geo.get("columns", {}).get(column, {})
    covering = described.get("covering", {}).get("bbox", {}).get("xmin", [None])[0]
    crs = CRS.from_user_input(described.get("crs", "OGC:CRS84") or "OGC:CRS84")
    kept = table.drop_columns([covering]) if covering in table.column_names else table
    return _from_column(file, kept, column, crs, options, described.get("encoding", "WKB"))


def _read_with_gdal(file: Path, options: ReadOptions) -> Columns:
    try:
        import pyogrio
    except ModuleNotFoundError:
        raise SpecError(f"{file}: {missing_package('pyogrio', extra='all')}") from None
    try:
        layers = [name for name, _ in pyogrio.list_layers(file)]
        if len(layers) != 1:
            raise SpecError(f"{file} has {len(layers)} layers ({', '.join(layers)}): keep the one with the places")
        meta, table = pyogrio.read_arrow(file)
    except pyogrio.errors.DataSourceError as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    if meta["crs"] is None:
        raise SpecError(f"{file} has no CRS: a shapefile needs its .prj file, other formats store one")
    column = meta["geometry_name"] or "wkb_geometry"
    return _from_column(file, table, column, CRS.from_user_input(meta["crs"]), options)


def _from_column(
    file: Path, table: pa.Table, column: str, crs: CRS, options: ReadOptions, encoding: str = "WKB"
) -> Columns:
    if column not in table.column_names:
        raise SpecError(f"{file} has no geometry column {column!r}; it has {', '.join(table.column_names)}")
    if encoding == "WKB":
        geometries = shapely.from_wkb(table[column].to_numpy(zero_copy_only=False), on_invalid="ignore")
    elif encoding.upper() in shapely.GeometryType.__members__:
        geometries = _decode_geoarrow(table[column].combine_chunks(), shapely.GeometryType[encoding.upper()])
    else:
        raise SpecError(f"{file} has geometries encoded as {encoding!r}: write them as WKB")
    return _from_table(geometries, table.drop_columns([column]), crs, options)


def _decode_geoarrow(array: Any, kind: shapely.GeometryType) -> npt.NDArray[np.object_]:
    """Return the geometries of a column of nested lists of coordinates, https://geoarrow.org/format."""
    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    offsets: list[npt.NDArray[np.integer[Any]]] = []
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets.insert(0, array.offsets.to_numpy())  # shapely wants the innermost first
        array = array.values
    if pa.types.is_struct(array.type):
        axes = [axis.to_numpy(zero_copy_only=False) for axis in array.flatten()]
        coordinates = np.column_stack(axes[:2])
    else:
        coordinates = array.flatten().to_numpy().reshape(len(array), -1)[:, :2]
    found: npt.NDArray[np.object_] = shapely.from_ragged_array(kind, np.ascontiguousarray(coordinates), tuple(offsets))
    return found


def read_frame(frame: Any, options: ReadOptions) -> Columns:
    """Read a GeoDataFrame."""
    if frame.crs is None:
        raise SpecError("the GeoDataFrame has no CRS: set it with frame.set_crs(…)")
    plain = frame.to_wkb().drop(columns=frame.geometry.name)  # further columns of geometries are kept as WKB
    table = pa.Table.from_pandas(plain, preserve_index=False)
    return _from_table(frame.geometry.to_numpy(), table, CRS.from_user_input(frame.crs), options)


def _from_table(geometries: Iterable[Any], table: pa.Table, crs: CRS, options: ReadOptions) -> Columns:
    ids: list[object] = [None] * table.num_rows
    if options.id_column in table.column_names:
        ids = table[options.id_column].to_pylist()
        table = table.drop_columns([options.id_column])
    return _on_centroids(list(geometries), ids, table.replace_schema_metadata(), "row", crs)


def _on_centroids(
    geometries: Sequence[BaseGeometry | None], ids: Sequence[object], table: pa.Table, word: str, crs: str | CRS
) -> Columns:
    """Return columns with the centroid of each geometry, whatever its type, also of parts on either side of 180°."""
    shapes = np.array(geometries, dtype=object)
    points = shapely.centroid(shapes)
    empty = np.flatnonzero(shapely.is_missing(points) | shapely.is_empty(points))
    faults = dict.fromkeys(empty.tolist(), "it has no geometry")
    points[empty] = None  # an empty point has no x
    x, y = shapely.get_x(points).tolist(), shapely.get_y(points).tolist()
    if CRS.from_user_input(crs).is_geographic:
        west, _, east, _ = shapely.bounds(shapes).T
        is_around_180 = ((west < -180) | (east > 180) | (east - west > 180)) & (west >= -540) & (east <= 540)
        for i in np.flatnonzero(is_around_180).tolist():
            x[i], y[i] = outlines.centroid(shapely.make_valid(shapes[i]))
    return Columns(where=partial("{} {}".format, word), ids=ids, x=x, y=y, faults=faults, table=table, crs=crs)


_READERS: Mapping[str, Callable[[Path, ReadOptions], Columns]] = {
    ".csv": _read_csv,
    ".geojson": _read_geojson,
    ".json": _read_geojson,
    ".parquet": _read_parquet,
    ".gpkg": _read_with_gdal,
    ".shp": _read_with_gdal,
    ".fgb": _read_with_gdal,
}
