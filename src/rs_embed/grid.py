"""Pixel grids of places: in the local UTM zone, north-up, edges on multiples of the pixel size.

The same place and `scale_m` give the same grid on every backend.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from rs_embed.arrays import CoordinateArray
from rs_embed.errors import SpecError
from rs_embed.specs import BBox, Place

if TYPE_CHECKING:  # imported when needed: they take a quarter of a second
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

MAX_SIDE_PX = 8192
_SNAP_PX = 1e-6
_OUTLINE_POINTS = 21


def utm_epsg(lon: float, lat: float) -> int:
    """Return the EPSG code of the UTM zone of a point, with MGRS's exceptions 32V and 31X to 37X."""
    zone = min(math.floor((lon + 180) / 6) + 1, 60)
    if 56 <= lat < 64 and 3 <= lon < 12:
        zone = 32
    elif 72 <= lat <= 84 and 0 <= lon < 42:
        zone = next(z for east, z in ((9, 31), (21, 33), (33, 35), (42, 37)) if lon < east)
    return (32600 if lat >= 0 else 32700) + zone


def place_geobox(place: Place, scale_m: float) -> GeoBox:
    """Return the pixel grid of a place.

    Raises:
        SpecError: for a grid of more than 8,192 px a side.
    """
    from odc.geo.geobox import GeoBox

    epsg = utm_epsg(*place.centre)
    if isinstance(place, BBox):
        left, top, width, height = _box_pixels(place, epsg, scale_m)
    else:
        x, y = transformer(4326, epsg).transform(place.lon, place.lat)
        width = height = math.ceil(2 * place.buffer_m / scale_m - _SNAP_PX)
        left, top = math.floor(x / scale_m - width / 2 + 0.5), math.floor(y / scale_m + width / 2 + 0.5)
    if max(width, height) > MAX_SIDE_PX:
        raise SpecError(
            f"{place} is {width} x {height} px at scale_m={scale_m:g}; at most {MAX_SIDE_PX} px a side are read at "
            "once: cut the area into smaller places (input_prep='tile' embeds each at native resolution; "
            "`rs-embed export --bbox W S E N --chip M` does the cutting) or take a larger scale_m"
        )
    affine = Affine(scale_m, 0.0, left * scale_m, 0.0, -scale_m, top * scale_m)
    return GeoBox((height, width), affine, f"EPSG:{epsg}")


def lonlat_bounds(geobox: GeoBox) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of a grid's outline in degrees, cut at the antimeridian."""
    box, epsg = geobox.boundingbox, epsg_of(geobox)
    lon, lat = transformer(epsg, 4326).transform(*_outline(box.left, box.bottom, box.right, box.top))
    side = np.sign(6 * (epsg % 100) - 183)  # of the zone: 180.001 must not become -179.999
    lon = np.where(lon * side < -90, 180.0 * side, lon) if epsg % 100 in (1, 60) else lon
    return float(np.min(lon)), float(np.min(lat)), float(np.max(lon)), float(np.max(lat))


def lonlat_text(lon: float, lat: float) -> str:
    """Format a point as `48.2223°N 13.7209°E`, so that nobody swaps latitude and longitude."""
    return f"{abs(lat):.4f}°{'N' if lat >= 0 else 'S'} {abs(lon):.4f}°{'E' if lon >= 0 else 'W'}"


def epsg_of(geobox: GeoBox) -> int:
    """Return the EPSG code of a grid.

    Raises:
        SpecError: for a grid without one.
    """
    epsg = geobox.crs.epsg if geobox.crs is not None else None
    if epsg is None:
        raise SpecError(f"the grid's CRS has no EPSG code: {geobox.crs}")
    return int(epsg)


@lru_cache(maxsize=64)
def transformer(source_epsg: int, target_epsg: int) -> Transformer:
    """Return the exact coordinate transform, x (longitude) first; threads may share it."""
    from pyproj import Transformer

    return Transformer.from_crs(source_epsg, target_epsg, always_xy=True)


def _box_pixels(place: BBox, epsg: int, scale_m: float) -> tuple[int, int, int, int]:
    """Return left, top, width, height in pixels of a box's UTM envelope, snapped outward."""
    x, y = transformer(4326, epsg).transform(*_outline(place.minlon, place.minlat, place.maxlon, place.maxlat))
    left, bottom = (math.floor(float(np.min(v)) / scale_m + _SNAP_PX) for v in (x, y))
    right, top = (math.ceil(float(np.max(v)) / scale_m - _SNAP_PX) for v in (x, y))
    return left, top, right - left, top - bottom


def _outline(west: float, south: float, east: float, north: float) -> tuple[CoordinateArray, CoordinateArray]:
    """Return x and y of points along the four sides of a box."""
    x, y = np.linspace(west, east, _OUTLINE_POINTS), np.linspace(south, north, _OUTLINE_POINTS)
    return (
        np.concatenate([x, x, np.full_like(y, west), np.full_like(y, east)]),
        np.concatenate([np.full_like(x, south), np.full_like(x, north), y, y]),
    )
