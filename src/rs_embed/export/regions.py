"""Regions: the polygons of a file, cut into chips of equal size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from rs_embed.errors import SpecError
from rs_embed.export.formats import is_lonlat, parse_shape, read_geojson_document, table_of
from rs_embed.export.inputs import InputPlaces, InputRow
from rs_embed.grid import transformer, utm_epsg
from rs_embed.outlines import box_of, split
from rs_embed.specs import NORTH, SOUTH, PointBuffer

_SEGMENTS = 100
_log = logging.getLogger("rs_embed")


def read_region(file: Path) -> BaseGeometry:
    """Return the union of a GeoJSON file's polygons, longitude and latitude; self-crossing ones are mended."""
    document, crs = read_geojson_document(file)
    listed = document.get("features")
    parts = [part for part in (listed if isinstance(listed, list) else [document]) if isinstance(part, dict)]
    shapes = [parse_shape(part.get("geometry", part)) for part in parts]
    mended = [shapely.make_valid(shape) for shape in shapes if shape is not None]
    polygons = [p for shape in mended for p in shapely.get_parts(shape) if p.area > 0]
    if not polygons:
        raise SpecError(f"{file} has no polygon")
    return shapely.union_all([_to_degrees(polygon, crs, file) for polygon in polygons])


def _to_degrees(polygon: BaseGeometry, crs: CRS, file: Path) -> BaseGeometry:
    """Return a polygon of a file in degrees, cut at 180°."""
    if not is_lonlat(crs):
        west, south, east, north = polygon.bounds
        dense = shapely.segmentize(polygon, max(east - west, north - south) / _SEGMENTS)  # straight lines become curves
        to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
        polygon = shapely.transform(dense, to_degrees.transform, interleaved=False)
    west, south, east, north = polygon.bounds
    if not (west >= -540 and east <= 540 and south >= -90 and north <= 90):
        raise SpecError(
            f"{file}: {polygon.bounds} are no degrees: GeoJSON is in longitude and latitude; reproject it, or name its "
            'CRS: "crs": {"type": "name", "properties": {"name": "EPSG:…"}}'
        )
    return split(polygon)


def region_places(region: BaseGeometry, chip_m: float) -> InputPlaces:
    """Cut a region (longitude and latitude) into chips on multiples of their size, each in the UTM zone of its centre.

    A chip belongs to the region that has its centre: later runs and neighbouring regions align.
    """
    region = _within_utm(split(region if region.is_valid else shapely.make_valid(region)))
    rows: list[InputRow] = []
    for epsg, bounds in _zones(region):
        for x, y, lon, lat in _centres(region, bounds, epsg, chip_m):
            name = f"{epsg % 100:02d}{'N' if epsg < 32700 else 'S'}_{round(x - chip_m / 2)}_{round(y - chip_m / 2)}"
            place = PointBuffer(lon, lat, chip_m / 2)
            rows.append(InputRow(number=len(rows), where=f"chip {name}", id=name, place=place))
    if not rows:
        raise SpecError(
            f"the region {box_of(region)} holds the centre of no chip of {chip_m:g} m: take a smaller --chip"
        )
    return InputPlaces(tuple(rows), table_of({}, len(rows)))


def _within_utm(region: BaseGeometry) -> BaseGeometry:
    """Return the part of a region where UTM zones are; a warning tells what is left out."""
    _, south, _, north = region.bounds
    if south >= SOUTH and north <= NORTH:
        return region
    inside = region.intersection(shapely.box(-180, SOUTH, 180, NORTH))
    if inside.is_empty:
        raise SpecError(f"the region lies beyond UTM (80°S…84°N), at latitudes {south:g} to {north:g}: move it")
    _log.warning("the region reaches latitudes %g to %g: beyond UTM (80°S…84°N) it has no chips", south, north)
    return inside


def _zones(region: BaseGeometry) -> list[tuple[int, tuple[float, ...]]]:
    """Return the UTM zones of a region, each with the bounds of the part that may have chips in it."""
    found: dict[int, list[BaseGeometry]] = {}
    for part in shapely.get_parts(region):
        west, south, east, north = part.bounds
        lons = np.unique(np.clip(np.append(np.arange(west, east, 1.0), east), -180, 180))
        lats = np.unique(np.append(np.arange(south, north, 1.0), north))
        for epsg in {utm_epsg(float(lon), float(lat)) for lon in lons for lat in lats}:
            found.setdefault(epsg, []).append(part)
    return [(epsg, tuple(shapely.total_bounds(parts).tolist())) for epsg, parts in sorted(found.items())]


def _centres(
    region: BaseGeometry, bounds: tuple[float, ...], epsg: int, chip_m: float
) -> Iterator[tuple[float, float, float, float]]:
    """Yield the centres (x, y, longitude, latitude) of the chips of one zone, north to south, west to east."""
    x, y = transformer(4326, epsg).transform(*_outline(bounds, epsg))
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
    """Return points of a region's box inside a zone and 3 degrees around it, because MGRS widens some zones."""
    west_of_zone = (epsg % 100 - 1) * 6 - 180
    north = epsg < 32700
    west, east = np.clip(bounds[::2], west_of_zone - 3, west_of_zone + 9)
    low, high = np.clip(bounds[1::2], *((0, 84) if north else (-80, 0)))
    lon, lat = np.meshgrid(np.linspace(west, east, 21), np.linspace(low, high, 21))
    return lon.ravel(), lat.ravel()
