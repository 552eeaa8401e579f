"""Readers of geometries: GeoJSON, GeoParquet, a GeoDataFrame, and with GDAL GeoPackage, FlatGeobuf, shapefile and KML.

Each returns coordinates and ids, and all other columns unchanged.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from rs_embed import outlines
from rs_embed.errors import SpecError, import_extra

_DEGREES = (("lon", "longitude", "lng", "long", "x"), ("lat", "latitude", "y"))
_METRES = (("x", "easting", "lon", "longitude"), ("y", "northing", "lat", "latitude"))
_log = logging.getLogger("rs_embed")
MAX_PLACES = 200_000
"""Rows that an export takes without being asked twice: three hours of ViT-B/32 on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options for reading places."""

    chip_m: float | None = None
    """Side of the square on each point or centroid, ground metres."""
    crs: str = "EPSG:4326"
    """CRS of the two columns of a text table."""
    id_column: str = "id"
    lon_column: str | None = None
    lat_column: str | None = None
    """Column of latitude or y, found by its usual names when None."""
    max_places: int | None = MAX_PLACES
    """Number of rows that an export refuses to exceed, with what they would cost; None for any number."""

    def __post_init__(self) -> None:
        if self.chip_m is not None and not (isinstance(self.chip_m, Real) and 0 < self.chip_m < math.inf):
            raise SpecError(
                f"a chip's side must be greater than 0 metres, got {self.chip_m!r}: give --chip, or half of it as "
                "--buffer-m"
            )


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


def coordinate_names(options: ReadOptions) -> list[Sequence[str]]:
    """Return the names that the columns of longitude or x, and of latitude or y, may have, best first."""
    usual = _DEGREES if is_lonlat(options.crs) else _METRES
    given = (options.lon_column, options.lat_column)
    return [(name,) if name else names for name, names in zip(given, usual, strict=True)]


def pick_column(header: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of the names that a header has, as it is written there or in other capitals."""
    by_name = {name.lower(): name for name in reversed(header)}
    return next((name if name in header else by_name[name.lower()] for name in names if name.lower() in by_name), None)


def table_of(columns: Mapping[str, pa.Array], rows: int) -> pa.Table:
    """Return a table that keeps its number of rows when it has no column."""
    return pa.table({"": pa.nulls(rows), **columns}).drop_columns([""])


def read_geojson(file: Path, options: ReadOptions) -> Columns:
    """Read the features of a GeoJSON file: a collection, a feature, or a feature a line."""
    document, crs = read_geojson_document(file)
    listed = [document] if document.get("type") == "Feature" else document.get("features")
    if not isinstance(listed, list) or not listed:
        raise SpecError(f"{file} is no GeoJSON FeatureCollection with features: wrap its geometries in features")
    features = [f if isinstance(f, dict) else {} for f in listed]
    properties = [p if isinstance(p := f.get("properties"), dict) else {} for f in features]
    names = list(dict.fromkeys(name for p in properties for name in p))
    geometries = [parse_shape(f.get("geometry")) for f in features]
    ids = [f.get("id", p.get(options.id_column)) for f, p in zip(features, properties, strict=True)]
    kept = {n: _mixed([p.get(n) for p in properties]) for n in names if n != options.id_column}
    return _on_centroids(geometries, ids, table_of(kept, len(features)), "feature", crs, file)


def read_geojson_document(file: Path) -> tuple[dict[str, Any], CRS]:
    """Return the object in a GeoJSON file, and its CRS: longitude and latitude, unless an old `crs` member differs."""
    try:
        document = _parse_json(file.read_bytes())
    except RecursionError:
        raise SpecError(f"{file} cannot be read as GeoJSON: it is nested too deep") from None
    except (OSError, ValueError) as error:
        remedy = ": save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise SpecError(f"{file} cannot be read as GeoJSON: {error}{remedy}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{file} is no GeoJSON object")
    member = document.get("crs") or {"properties": {"name": "OGC:CRS84"}}
    try:
        return document, CRS.from_user_input(member["properties"]["name"])
    except (CRSError, KeyError, TypeError) as error:
        raise SpecError(f"{file}: its crs {member} is not known: name it as EPSG:…, or leave it out") from error


def _parse_json(text: bytes) -> Any:
    """Parse a JSON text in UTF-8 or UTF-16; several features, one a line, become a collection (RFC 8142)."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        lines = [line.strip(b"\x1e \r") for line in text.split(b"\n")]
        if sum(map(bool, lines)) < 2 or not lines[0].endswith(b"}"):
            raise
        return {"type": "FeatureCollection", "features": [json.loads(line) for line in lines if line]}


def parse_crs(crs: object) -> CRS:
    """Return a CRS; a SpecError for an unknown one."""
    try:
        return CRS.from_user_input(crs)
    except CRSError as error:
        raise SpecError(f"the CRS {crs!r} is not known: name it as EPSG:… ({error})") from error


def is_lonlat(crs: str | CRS) -> bool:
    """Tell if coordinates in a CRS are degrees of longitude and latitude on WGS 84."""
    return parse_crs(crs).equals(CRS.from_epsg(4326), ignore_axis_order=True)


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
    except (pa.ArrowException, OverflowError):  # the last for whole numbers over 64 bits
        return pa.array([None if v is None else json.dumps(v, default=str) for v in values])


def read_parquet(file: Path, options: ReadOptions) -> Columns:
    """Read GeoParquet 1.0 or 1.1, in WKB or GeoArrow."""
    table = pq.read_table(file)
    try:
        geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
        column = geo.get("primary_column", "geometry")
        described = geo.get("columns", {}).get(column, {})
        covering = described.get("covering", {}).get("bbox", {}).get("xmin", [None])[0]
        crs = described.get("crs", "OGC:CRS84")
        encoding = str(described.get("encoding", "WKB"))
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise SpecError(f"{file}: its metadata `geo` is no GeoParquet ({error}): write it again") from error
    if crs is None:
        raise SpecError(f"{file} has no CRS: set it, as with frame.set_crs(…) of geopandas, and write it again")
    kept = table.drop_columns([covering]) if covering in table.column_names else table
    return _from_column(file, kept, column, parse_crs(crs), options, encoding)


_SIGNATURES = {".gpkg": b"SQLite format 3", ".fgb": b"fgb", ".shp": b"\0\0\x27\x0a", ".kmz": b"PK"}
"""First bytes of a format. GDAL goes by the content, and a file of another format may name files elsewhere."""
_OF_KML = ("timestamp", "begin", "end", "altitudeMode", "tessellate", "extrude", "visibility", "drawOrder", "icon")


def read_with_gdal(file: Path, options: ReadOptions) -> Columns:
    """Read a GeoPackage, FlatGeobuf or shapefile of one layer, or all folders of a KML or KMZ file."""
    pyogrio = import_extra("pyogrio", extra="notebook")
    with file.open("rb") as stream:
        start = stream.read(4096)
    ending = file.suffix.lower()
    if not start.startswith(_SIGNATURES.get(ending, b"")) or (ending == ".kml" and b"<kml" not in start):
        raise SpecError(f"{file} cannot be read: its content is no {ending}")
    try:
        layers = [name for name, _ in pyogrio.list_layers(file)]
        if len(layers) != 1 and ending not in (".kml", ".kmz"):
            raise SpecError(f"{file} has {len(layers)} layers ({', '.join(layers)}): keep the one with the places")
        read = [pyogrio.read_arrow(file, layer=name) for name in layers]
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        raise SpecError(f"{file} cannot be read: {error}") from error
    if not read:
        raise SpecError(f"{file} has no places")
    meta, table = read[0][0], pa.concat_tables([part for _, part in read], promote_options="permissive")
    if meta["crs"] is None:
        raise SpecError(f"{file} has no CRS: a shapefile needs its .prj file, other formats store one")
    if ending in (".kml", ".kmz"):
        table = table.drop_columns([name for name in _OF_KML if name in table.column_names])
    return _from_column(file, table, meta["geometry_name"] or "wkb_geometry", parse_crs(meta["crs"]), options)


def _from_column(
    file: Path, table: pa.Table, column: str, crs: CRS, options: ReadOptions, encoding: str = "WKB"
) -> Columns:
    lon, lat = (pick_column(table.column_names, names) for names in coordinate_names(options))
    if column not in table.column_names and lon and lat:
        ids, kept = _ids(table.drop_columns([lon, lat]), options)
        x, y = table[lon].to_pylist(), table[lat].to_pylist()
        return Columns(where="row {}".format, ids=ids, x=x, y=y, faults={}, table=kept, crs=options.crs)
    if column not in table.column_names:
        raise SpecError(f"{file} has no geometry column {column!r}; it has {', '.join(table.column_names)}")
    if encoding == "WKB":
        geometries = shapely.from_wkb(table[column].to_numpy(zero_copy_only=False), on_invalid="ignore")
    elif encoding.upper() in shapely.GeometryType.__members__:
        geometries = _decode_geoarrow(table[column].combine_chunks(), shapely.GeometryType[encoding.upper()])
    else:
        raise SpecError(f"{file} has geometries encoded as {encoding!r}: write them as WKB")
    ids, kept = _ids(table.drop_columns([column]), options)
    return _on_centroids(geometries, ids, kept, "row", crs, file)


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
    """Read a GeoDataFrame, or a GeoSeries."""
    frame = frame.to_frame("geometry") if frame.ndim == 1 else frame
    name = frame._geometry_column_name
    if name not in frame.columns:
        raise SpecError("the GeoDataFrame has no geometry column: choose one with frame.set_geometry(…)")
    if frame.crs is None:
        raise SpecError("the GeoDataFrame has no CRS: set it with frame.set_crs(…)")
    if not frame.columns.is_unique:
        doubled = frame.columns[frame.columns.duplicated()][0]
        raise SpecError(f"the GeoDataFrame has the column {doubled!r} twice: rename one of them")
    plain = frame.to_wkb().drop(columns=name)  # further columns of geometries are kept as WKB
    if options.id_column in plain and plain[options.id_column].dtype == object:  # ids may be numbers and texts
        plain[options.id_column] = plain[options.id_column].map(str, na_action="ignore")
    columns = {str(column): _column_of(plain[column]) for column in plain.columns}
    ids, kept = _ids(table_of(columns, len(frame)), options)
    return _on_centroids(frame.geometry.to_numpy(), ids, kept, "row", parse_crs(frame.crs), "the GeoDataFrame")


def _column_of(series: Any) -> pa.Array | pa.ChunkedArray:
    """Return a column of a frame as it is; values of several types, or of a type that Arrow lacks, as JSON."""
    try:
        return pa.Array.from_pandas(series)
    except (pa.ArrowException, OverflowError):
        return _mixed([None if missing else value for value, missing in zip(series, series.isna(), strict=True)])


def _ids(table: pa.Table, options: ReadOptions) -> tuple[list[object], pa.Table]:
    """Return the ids of a table, and its other columns."""
    name, ids = options.id_column, cast(list[object], [None] * table.num_rows)
    if name in table.column_names:
        ids, table = table[name].to_pylist(), table.drop_columns([name])
    return ids, table.replace_schema_metadata()


def _on_centroids(
    geometries: Sequence[BaseGeometry | None],
    ids: Sequence[object],
    table: pa.Table,
    word: str,
    crs: CRS,
    source: object,
) -> Columns:
    """Return columns with the centroid of each geometry, whatever its type, also of parts on either side of 180°."""
    where = partial("{} {}".format, word)
    shapes = mend_outlines(np.array(geometries, dtype=object), where, source)
    points = shapely.centroid(shapes)
    empty = np.flatnonzero(shapely.is_missing(points) | shapely.is_empty(points))
    faults = dict.fromkeys(empty.tolist(), "it has no geometry")
    points[empty] = None  # an empty point has no x
    x, y = shapely.get_x(points).tolist(), shapely.get_y(points).tolist()
    if crs.is_geographic:
        west, _, east, _ = shapely.bounds(shapes).T
        is_around_180 = ((west < -180) | (east > 180) | (east - west > 180)) & (west >= -540) & (east <= 540)
        for i in np.flatnonzero(is_around_180).tolist():
            x[i], y[i] = outlines.centroid(shapes[i])
    return Columns(where=where, ids=ids, x=x, y=y, faults=faults, table=table, crs=crs)


def mend_outlines(
    shapes: npt.NDArray[np.object_], where: Callable[[int], str], source: object
) -> npt.NDArray[np.object_]:
    """Return the shapes with the area that self-crossing outlines enclose, and say which were mended."""
    broken = np.flatnonzero(
        ~shapely.is_missing(shapes) & ~shapely.is_valid(shapes) & (shapely.get_dimensions(shapes) == 2)
    )
    broken = broken[np.isfinite(shapely.bounds(shapes[broken])).all(axis=1)]  # the others are no places
    if broken.size:
        shapes[broken] = shapely.make_valid(shapes[broken])
        message = "%s: %s outline(s) cross themselves, the first in %s: the area that they enclose is taken"
        _log.warning(message, source, f"{broken.size:,}", where(int(broken[0])))
    return shapes
