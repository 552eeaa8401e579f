"""Regions: the polygons of a file, cut into chips of equal size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from rs_embed.arrays import CoordinateArray, IndexArray
from rs_embed.errors import SpecError
from rs_embed.export.formats import is_lonlat, mend_outlines, parse_shape, read_geojson_document, table_of
from rs_embed.export.inputs import InputPlaces
from rs_embed.grid import transformer, utm_epsg, utm_epsgs
from rs_embed.lonlat import NORTH, SOUTH
from rs_embed.outlines import box_of, polygon, split
from rs_embed.specs import BBox

_SEGMENTS = 100
_EARTH_RADIUS_M = 6_371_007.2  # of the sphere with the surface of WGS 84
_BLOCK = 1 << 19  # chips that are cut at once
_SQUARE = 16  # a partition's 256 places as a square
_PRIMES = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_log = logging.getLogger("rs_embed")


def read_region(file: Path) -> BaseGeometry:
    """Return the union of a GeoJSON file's polygons, longitude and latitude; self-crossing ones are mended."""
    document, crs = read_geojson_document(file)
    listed = document.get("features")
    parts = [part for part in (listed if isinstance(listed, list) else [document]) if isinstance(part, dict)]
    shapes = np.array([parse_shape(part.get("geometry", part)) for part in parts], dtype=object)
    mended = mend_outlines(shapes[~shapely.is_missing(shapes)], "feature {}".format, file)
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


def as_region(places: object) -> BaseGeometry | None:
    """Return a box or a shapely geometry as a region in degrees; None for anything else."""
    if isinstance(places, BBox):
        return polygon(places.bounds)
    return places if isinstance(places, BaseGeometry) else None


def count_chips(region: BaseGeometry, chip_m: float) -> int:
    """Return about how many chips a region has, from its area alone."""
    equal_area = shapely.transform(
        region, lambda xy: np.column_stack((np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1])))) * _EARTH_RADIUS_M
    )
    return round(float(equal_area.area) / chip_m**2)


def region_places(
    region: BaseGeometry, chip_m: float, *, every_nth: int = 1, report: Callable[[int, int], None] | None = None
) -> InputPlaces:
    """Cut a region (longitude and latitude) into chips on multiples of their size, each in the UTM zone of its centre.

    A chip belongs to the region that has its centre: later runs and neighbouring regions align.

    Args:
        region: polygons in degrees.
        chip_m: side of the chips.
        every_nth: cut only every n-th square of 16 x 16 chips, to estimate a cost.
        report: called with the numbers of squares looked at and of all that may lie in the region.
    """
    region = _within_utm(split(region if region.is_valid else shapely.make_valid(region)))
    shapely.prepare(region)
    zones = [_Zone(epsg, chip_m, *_zone_box(bounds, epsg, chip_m)) for epsg, bounds in _zones(region)]
    found, seen, total = [], 0, sum(zone.candidates for zone in zones)
    for zone in zones:
        for column, row in zone.blocks():
            found.append(zone.inside(region, column, row, every_nth))
            seen += len(column) * len(row)
            if report is not None:
                report(seen, total)
    chips = [block for block in found if len(block.lon)]
    if not chips and every_nth == 1:
        raise SpecError(
            f"the region {box_of(region)} holds the centre of no chip of {chip_m:g} m: take a smaller --chip"
        )
    lon, lat = (np.concatenate([[], *(getattr(block, axis) for block in chips)]) for axis in ("lon", "lat"))
    ids = pa.chunked_array([block.ids for block in chips], pa.string()).combine_chunks()
    return InputPlaces(
        lon=lon,
        lat=lat,
        half_m=np.broadcast_to(chip_m / 2, len(lon)),
        ids=ids,
        where=lambda i: f"chip {ids[i]}",
        columns=table_of({}, len(lon)),
        chip_m=chip_m,
    )


class _Chips(NamedTuple):
    """Centres of some chips, and their ids."""

    lon: CoordinateArray
    lat: CoordinateArray
    ids: pa.Array


@dataclass(frozen=True, slots=True)
class _Zone:
    """Chips of one UTM zone that may lie in a region, by their columns and rows: multiples of the chip's side."""

    epsg: int
    chip_m: float
    left: int
    bottom: int
    right: int
    top: int

    @property
    def candidates(self) -> int:
        """Number of chips in the zone's box."""
        return (self.right - self.left) * (self.top - self.bottom)

    def blocks(self) -> Iterator[tuple[IndexArray, IndexArray]]:
        """Yield columns and rows of strips of chips, north to south, so that a country takes no memory at once."""
        columns = np.arange(self.left, self.right)
        step = max(1, _BLOCK // max(len(columns), 1))
        for top in range(self.top, self.bottom, -step):
            yield columns, np.arange(top - 1, max(top - step, self.bottom) - 1, -1)

    def inside(self, region: BaseGeometry, columns: IndexArray, rows: IndexArray, every_nth: int) -> _Chips:
        """Return the chips whose centre lies in a region and in this zone, north to south, west to east."""
        row, column = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
        if every_nth > 1:  # a hash, since every n-th square of a line would follow its pattern
            across, down = ((axis // _SQUARE).astype(np.uint64) for axis in (column, row))
            keep = (across * _PRIMES[0] + down * _PRIMES[1] >> np.uint64(20)) % np.uint64(every_nth) == 0
            row, column = row[keep], column[keep]
        x, y = (column + 0.5) * self.chip_m, (row + 0.5) * self.chip_m
        lon, lat = transformer(self.epsg, 4326).transform(x, y)
        keep = shapely.contains_xy(region, lon, lat)
        keep[keep] = utm_epsgs(lon[keep], lat[keep]) == self.epsg
        west, south = (pa.array(np.rint(axis[keep] * self.chip_m).astype(np.int64)) for axis in (column, row))
        zone = f"{self.epsg % 100:02d}{'N' if self.epsg < 32700 else 'S'}"
        ids = pc.binary_join_element_wise(zone, west.cast(pa.string()), south.cast(pa.string()), "_")
        return _Chips(lon[keep], lat[keep], ids)


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


def _zone_box(bounds: tuple[float, ...], epsg: int, chip_m: float) -> tuple[int, int, int, int]:
    """Return left, bottom, right and top of a region's box in a zone, in chips."""
    x, y = transformer(4326, epsg).transform(*_outline(bounds, epsg))
    low, high = ((extreme(x), extreme(y)) for extreme in (np.nanmin, np.nanmax))
    left, bottom = (math.floor(value / chip_m) for value in low)
    right, top = (math.ceil(value / chip_m) for value in high)
    return left, bottom, right, top


def _outline(bounds: tuple[float, ...], epsg: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points of a region's box inside a zone and 3 degrees around it, because MGRS widens some zones."""
    west_of_zone = (epsg % 100 - 1) * 6 - 180
    north = epsg < 32700
    west, east = np.clip(bounds[::2], west_of_zone - 3, west_of_zone + 9)
    low, high = np.clip(bounds[1::2], *((0, 84) if north else (-80, 0)))
    lon, lat = np.meshgrid(np.linspace(west, east, 21), np.linspace(low, high, 21))
    return lon.ravel(), lat.ravel()
