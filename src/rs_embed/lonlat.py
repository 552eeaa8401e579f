"""Boxes in longitude and latitude, also across 180°, as RFC 7946 has them (docs/design/0030).

A box is west, south, east, north in degrees; west > east where it crosses 180°.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rs_embed.errors import SpecError

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west > east across 180°."""
WORLD: Box = (-180.0, -90.0, 180.0, 90.0)
SOUTH, NORTH = -80.0, 84.0
"""Latitudes where UTM ends."""


def wrap(lon: float) -> float:
    """Return a longitude in -180…180."""
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def width(box: Box) -> float:
    """Return the degrees of longitude from a box's west to its east."""
    west, _, east, _ = box
    return east - west if west <= east else east - west + 360


def middle(box: Box) -> tuple[float, float]:
    """Return longitude and latitude of a box's middle."""
    west, south, _, north = box
    return wrap(west + width(box) / 2), (south + north) / 2


def parts(box: Box) -> list[Box]:
    """Return a box as one or, on either side of 180°, two boxes with west < east."""
    west, south, east, north = box
    if west <= east:
        return [box]
    return [p for p in ((west, south, 180.0, north), (-180.0, south, east, north)) if p[0] < p[2]]


def meets(box: Box, west: Any, south: Any, east: Any, north: Any) -> Any:
    """Tell if a box meets another one, or each of many as arrays or as the expressions of a table's columns."""
    found: Any = None
    for w, s, e, n in parts(box):
        starts_before, ends_after = west < e, east > w
        on_it = (starts_before & ends_after) | ((west > east) & (starts_before | ends_after))
        on_it = on_it & (south < n) & (north > s)
        found = on_it if found is None else found | on_it
    return found


def contains(box: Box, lon: float, lat: float) -> bool:
    """Tell if a point lies in a box or on its edge."""
    lons = (-180, 180) if abs(lon) == 180 else (lon,)
    return any(w <= x <= e and s <= lat <= n for w, s, e, n in parts(box) for x in lons)


def enclose(boxes: Iterable[Box]) -> Box:
    """Return the narrowest box around others; it crosses 180° where the widest empty stretch lies elsewhere."""
    import numpy as np  # here, because places are built without it

    west, south, east, north = np.array(list(boxes), np.float64).T
    over = west > east
    starts, ends = np.append(west, np.full(over.sum(), -180.0)), np.append(np.where(over, 180.0, east), east[over])
    order = np.argsort(starts)
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    gaps = starts[1:] - reach[:-1]
    edges = float(starts[0]), float(reach[-1])
    if len(gaps) and gaps.max() > edges[0] + 360 - edges[1]:
        k = int(gaps.argmax())
        edges = float(starts[k + 1]), float(reach[k])
    return edges[0], float(south.min()), edges[1], float(north.max())


def check_lonlat(crs: str, *points: tuple[float, float]) -> None:
    """Raise a SpecError for another CRS than longitude and latitude, and for a point off the globe."""
    if crs != "EPSG:4326":
        raise SpecError(f"crs must be 'EPSG:4326' (longitude, latitude), got {crs!r}: transform the place first")
    for lon, lat in points:
        if not -180 <= lon <= 180:
            metres = " (are these metres? name their CRS, or transform them)" if abs(lon) > 540 else ""
            raise SpecError(f"longitude {lon:g} lies outside -180…180{metres}")
        if not -90 <= lat <= 90:
            swapped = " (are longitude and latitude swapped?)" if abs(lon) <= 90 else ""
            raise SpecError(f"latitude {lat:g} lies outside -90…90{swapped}")


def check_utm(*lats: float) -> None:
    """Raise a SpecError for a latitude beyond UTM."""
    for lat in lats:
        if not SOUTH <= lat <= NORTH:
            raise SpecError(f"latitude {lat:g} lies beyond UTM (80°S…84°N), where Sentinel-2 has no tiles for us")


def check_box(box: Box) -> None:
    """Raise a SpecError for a box without an area, or with swapped edges."""
    west, south, east, north = box
    if south > north:
        raise SpecError(f"minlat {south:g} is greater than maxlat {north:g}: swap them")
    if width(box) == 0 or south == north:
        raise SpecError(f"the box {box} has no area; for a point use PointBuffer(lon, lat, buffer_m)")
    if west > east and width(box) > 180:
        raise SpecError(
            f"minlon {west:g} is greater than maxlon {east:g}, which is a box of {width(box):g} degrees across the "
            "antimeridian: swap them"
        )
