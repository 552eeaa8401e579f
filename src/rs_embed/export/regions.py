"""Regions: the polygons of a file, cut into chips of equal size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rs_embed.errors import SpecError
from rs_embed.export.formats import parse_shape, table_of
from rs_embed.export.inputs import InputPlaces, InputRow
from rs_embed.grid import transformer, utm_epsg
from rs_embed.specs import PointBuffer


def read_region(file: Path) -> BaseGeometry:
    """Return the union of a GeoJSON file's polygons, longitude and latitude."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{file} cannot be read as GeoJSON: {error}") from error
    parts = document.get("features", [document])
    shapes = [parse_shape(part.get("geometry", part)) for part in parts]
    polygons = [s for s in shapes if s is not None and s.area > 0]
    if not polygons:
        raise SpecError(f"{file} has no polygon")
    return shapely.union_all(polygons)


def region_places(region: BaseGeometry, chip_m: float) -> InputPlaces:
    """Cut a region (longitude and latitude) into chips on multiples of their size, each in the UTM zone of its centre.

    A chip belongs to the region that has its centre: later runs and neighbouring regions align.
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
    return InputPlaces(tuple(rows), table_of({}, len(rows)))


def _zones(region: BaseGeometry) -> list[int]:
    west, south, east, north = region.bounds
    lons = np.unique(np.clip(np.append(np.arange(west, east, 1.0), east), -180, 180))
    lats = np.unique(np.append(np.arange(south, north, 1.0), north))
    return sorted({utm_epsg(float(lon), float(lat)) for lon in lons for lat in lats})


def _centres(region: BaseGeometry, epsg: int, chip_m: float) -> Iterator[tuple[float, float, float, float]]:
    """Yield the centres (x, y, longitude, latitude) of the chips of one zone, north to south, west to east."""
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
    """Return points of a region's box inside a zone and 3 degrees around it, because MGRS widens some zones."""
    west_of_zone = (epsg % 100 - 1) * 6 - 180
    north = epsg < 32700
    west, east = np.clip(bounds[::2], west_of_zone - 3, west_of_zone + 9)
    low, high = np.clip(bounds[1::2], *((0, 84) if north else (-80, 0)))
    lon, lat = np.meshgrid(np.linspace(west, east, 21), np.linspace(low, high, 21))
    return lon.ravel(), lat.ravel()
