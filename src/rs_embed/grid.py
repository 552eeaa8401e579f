"""Pixel grids of places: in the local UTM zone, north-up, edges on multiples of the pixel size.

The same place and `scale_m` give the same grid on every backend.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine

from rs_embed.arguments import check_place
from rs_embed.arrays import CoordinateArray
from rs_embed.errors import SpecError
from rs_embed.lonlat import Box
from rs_embed.specs import BBox, Place

if TYPE_CHECKING:  # imported when needed: they take a quarter of a second
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer

MAX_SIDE_PX = 8192
_SNAP_PX = 1e-6
_DENSIFY = 19
"""Points on each side of a box between its corners, whose envelope is the box in another CRS."""


def utm_epsg(lon: float, lat: float) -> int:
    """Return the EPSG code of the UTM zone of a point, with MGRS's exceptions 32V and 31X to 37X."""
    zone = min(math.floor((lon + 180) / 6) + 1, 60)
    if 56 <= lat < 64 and 3 <= lon < 12:
        zone = 32
    elif 72 <= lat <= 84 and 0 <= lon < 42:
        zone = next(z for east, z in ((9, 31), (21, 33), (33, 35), (42, 37)) if lon < east)
    return (32600 if lat >= 0 else 32700) + zone


def utm_epsgs(lon: CoordinateArray, lat: CoordinateArray) -> npt.NDArray[np.int32]:
    """Return `utm_epsg` of many points."""
    zone = np.minimum(np.floor((lon + 180) / 6).astype(np.int32) + 1, 60)
    zone[(lat >= 56) & (lat < 64) & (lon >= 3) & (lon < 12)] = 32
    wide = (lat >= 72) & (lat <= 84) & (lon >= 0) & (lon < 42)
    zone[wide] = 31 + 2 * np.searchsorted((9, 21, 33), lon[wide], side="right")
    return zone + np.where(lat >= 0, 32600, 32700).astype(np.int32)


def place_geobox(place: Place, scale_m: float) -> GeoBox:
    """Return the pixel grid of a place; a grid of more than 8,192 px a side is a SpecError."""
    from odc.geo.geobox import GeoBox

    epsg = utm_epsg(*check_place(place).centre)
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


def lonlat_bounds(geobox: GeoBox) -> Box:
    """Return (west, south, east, north) of a grid's outline in degrees; west > east where it crosses 180°."""
    epsg, box = epsg_of(geobox), geobox.boundingbox
    to_lonlat = transformer(epsg, 4326)
    west, south, east, north = to_lonlat.transform_bounds(*box.bbox, densify_pts=_DENSIFY)
    return west, south, east, north


def lonlat_text(lon: float, lat: float) -> str:
    """Format a point as `48.2223°N 13.7209°E`, so that nobody swaps latitude and longitude."""
    return f"{abs(lat):.4f}°{'N' if lat >= 0 else 'S'} {abs(lon):.4f}°{'E' if lon >= 0 else 'W'}"


def map_url(lon: float, lat: float) -> str:
    """Return the address of a point on OpenStreetMap."""
    return f"https://www.openstreetmap.org/?mlat={lat:.5f}&mlon={lon:.5f}#map=13/{lat:.5f}/{lon:.5f}"


def epsg_of(geobox: GeoBox) -> int:
    """Return the EPSG code of a grid."""
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
    west, south, east, north = transformer(4326, epsg).transform_bounds(*place.bounds, densify_pts=_DENSIFY)
    left, bottom = (math.floor(v / scale_m + _SNAP_PX) for v in (west, south))
    right, top = (math.ceil(v / scale_m - _SNAP_PX) for v in (east, north))
    return left, top, right - left, top - bottom
