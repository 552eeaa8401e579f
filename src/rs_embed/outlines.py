"""Outlines in longitude and latitude, cut at 180° as RFC 7946 has them (docs/design/0030)."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from rs_embed.lonlat import Box, enclose, parts, wrap


def polygon(box: Box) -> BaseGeometry:
    """Return a box as a polygon, cut at 180°."""
    return _collect([shapely.box(*part) for part in parts(box)])


def split(geometry: BaseGeometry) -> BaseGeometry:
    """Return a geometry in -180…180, cut at 180°.

    Longitudes may run on past 180, or jump: a step of more than 180 degrees is taken the short way, over 180°.
    """
    lons = shapely.get_coordinates(geometry)[:, 0]
    if not lons.size or (lons.min() >= -180 and lons.max() <= 180 and np.ptp(lons) <= 180):
        return geometry
    return _collect([piece for part in shapely.get_parts(geometry) for piece in _cut(part)])


def box_of(geometry: BaseGeometry) -> Box:
    """Return the narrowest box around a geometry that is cut at 180°."""
    return enclose(shapely.bounds(shapely.get_parts(geometry)).tolist())


def centroid(geometry: BaseGeometry) -> tuple[float, float]:
    """Return longitude and latitude of the centroid, also of parts on either side of 180°."""
    geometry = split(geometry)
    west, _, east, _ = box_of(geometry)
    if west > east:
        sides = shapely.get_parts(geometry)
        geometry = _collect([_shift(side, 360 if side.bounds[0] < west else 0) for side in sides])
    point = geometry.centroid
    return wrap(point.x), point.y


def _cut(part: BaseGeometry) -> list[BaseGeometry]:
    """Return the pieces of one polygon, line or point on either side of 180°."""
    part = _continuous(part)
    west, _, east, _ = part.bounds
    if west >= -180 and east <= 180:
        return [part]
    windows = {turn: shapely.box(turn - 180, -90, turn + 180, 90) for turn in (-360, 0, 360)}
    pieces = [p for turn, w in windows.items() for p in shapely.get_parts(_shift(part.intersection(w), -turn))]
    return [p for p in pieces if not p.is_empty and shapely.get_dimensions(p) == shapely.get_dimensions(part)]


def _continuous(part: BaseGeometry) -> BaseGeometry:
    """Return a geometry whose longitudes run on past 180 where they jumped to the other side."""
    lons = shapely.get_coordinates(part)[:, 0]
    is_edge = np.abs(lons) == 180
    jumps = (np.abs(np.diff(lons)) > 180) & ~(is_edge[1:] & is_edge[:-1])  # from -180 to 180 is around the world
    if not jumps.any():
        return part
    return shapely.transform(part, lambda xy: xy + np.where(xy < 0, (360, 0), 0))


def _shift(geometry: BaseGeometry, degrees: float) -> BaseGeometry:
    return shapely.transform(geometry, lambda xy: xy + np.array((degrees, 0.0)))


def _collect(pieces: list[BaseGeometry]) -> BaseGeometry:
    """Return one geometry of several."""
    if len(pieces) == 1:
        return pieces[0]
    are_polygons = all(piece.geom_type == "Polygon" for piece in pieces)
    return shapely.multipolygons(pieces) if are_polygons else shapely.geometrycollections(pieces)
