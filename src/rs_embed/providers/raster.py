"""Reading of a raster on another pixel grid, nearest pixel: the result of GDAL's warp depends on the window read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePath

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.io import DatasetReader

from rs_embed.arrays import AnyArray, BoolArray, IndexArray
from rs_embed.errors import ProviderError
from rs_embed.grid import epsg_of
from rs_embed.lonlat import Box, wrap

_EDGE_PX = 1e-6  # a target centre this close to a source pixel's edge belongs to the pixel right of or below it
_DRIVERS = {".jp2": "JP2OpenJPEG", ".img": "HFA", ".nc": "netCDF"}  # a VRT under another name may lead to any host
_FILL_VALUE_BELOW = -1001  # DN 0 with the offset of 2022 taken off is -1000
_DEGREE_M = 111_320.0  # of latitude
_STRIP_PX = 1 << 18  # pixels of a strip: the coordinates of a large grid in another CRS would fill the memory


@dataclass(frozen=True, slots=True)
class RasterPixels:
    """Stored values of some bands of one file on the target grid."""

    values: AnyArray  # (bands, y, x), as stored; undefined where `valid` is False
    valid: BoolArray  # (y, x), True where every band has a value
    scale: float
    offset: float  # tags of the file: reflectance = value * scale + offset; 1 and 0 when it has none
    gsd_m: float  # side of the file's pixels on the ground


@dataclass(frozen=True, slots=True)
class RasterHeader:
    """Bands and position of a file."""

    bands: int
    descriptions: tuple[str | None, ...]
    dtypes: tuple[str, ...]
    bounds_lonlat: Box
    resolution_m: float


def read_header(path: str) -> RasterHeader:
    """Read a file's header; a file without georeference is a ProviderError."""
    with _open(path) as dataset:
        to_lonlat = _between(_crs(dataset.crs.to_wkt()), _crs(4326))
        box = dataset.bounds
        west, south, east, north = to_lonlat.transform_bounds(box.left, box.bottom, box.right, box.top, 21)
        bounds = wrap(west), south, wrap(east), north
        resolution = abs(float(dataset.transform.a))
        return RasterHeader(dataset.count, tuple(dataset.descriptions), tuple(dataset.dtypes), bounds, resolution)


def driver_by_name(path: str) -> str:
    """Return the one driver that may read a local file, by its name."""
    return "netCDF" if path.startswith("netcdf:") else _DRIVERS.get(PurePath(path).suffix.lower(), "GTiff")


def _open(path: str) -> DatasetReader:
    try:
        dataset = rasterio.open(path, driver=driver_by_name(path))
    except rasterio.errors.RasterioIOError as error:
        raise ProviderError(f"{path} cannot be opened as a raster: {error}") from error
    if dataset.crs is None or dataset.transform == Affine.identity():
        dataset.close()
        raise ProviderError(f"{path} has no georeference (CRS and transform): pass its pixels as input_chw instead")
    return dataset


def source_pixels(transform: Affine, crs: CRS, geobox: GeoBox) -> tuple[IndexArray, IndexArray]:
    """Return row and column, which broadcast to (y, x), of the source pixel under each centre, on or off the raster."""
    height, width = geobox.shape
    target = _crs(str(geobox.crs))
    to_source, to_target = ~transform, geobox.affine
    if crs == target and transform.is_rectilinear:
        rows, cols = _in_line(transform, (height, width), to_target)
        return rows[:, None], cols[None, :]
    x, y = to_target * np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    if crs != target:
        x, y = _between(target, crs).transform(x, y)
    col, row = to_source * (x, y)
    finite = (np.where(np.isfinite(v), v, -1.0) for v in (row, col))  # a point that the CRS cannot represent is outside
    rows, cols = (np.floor(position + _EDGE_PX).astype(np.intp) for position in finite)
    return rows, cols


def _in_line(transform: Affine, shape: tuple[int, int], affine: Affine) -> tuple[IndexArray, IndexArray]:
    """Return the row under each row of a grid, and the column under each column, where both are in line."""
    mapping = ~transform * affine
    row = mapping.f + mapping.e * (np.arange(shape[0]) + 0.5)
    col = mapping.c + mapping.a * (np.arange(shape[1]) + 0.5)
    return np.floor(row + _EDGE_PX).astype(np.intp), np.floor(col + _EDGE_PX).astype(np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """Pixel grid of a tiled raster, and the size of its blocks."""

    transform: Affine
    crs: int | str  # EPSG code, or WKT of a CRS that has none
    height: int
    width: int
    block_height: int = 1024
    block_width: int = 1024

    @property
    def gsd_m(self) -> float:
        """Height of a pixel in ground metres."""
        crs = _crs(self.crs)
        unit_m = _DEGREE_M if crs.is_geographic else crs.axis_info[0].unit_conversion_factor
        return float(np.hypot(self.transform.b, self.transform.e) * unit_m)

    def blocks_under(self, geobox: GeoBox) -> tuple[tuple[int, int], ...]:
        """Return row and column of each block that another grid needs."""
        return _blocks_under(self, _key(geobox))

    def windows(self, geobox: GeoBox, row: int, col: int) -> Iterator[tuple[slice, Index, Index]]:
        """Yield rows of another grid, the pixels within them that lie on a block, and the block's pixels under these.

        The pixel under another's centre is that of `source_pixels`.
        """
        for rows, windows in _strips(self, _key(geobox)):
            window = windows.get((row, col))
            if window is not None:
                yield rows, *window


_GridKey = tuple[tuple[int, int], Affine, int]  # shape, affine, EPSG: a GeoBox formats its CRS each time it is hashed
Index = tuple[slice | IndexArray, slice | IndexArray]  # of (y, x)
_Windows = dict[tuple[int, int], tuple[Index, Index]]  # by block


def _key(geobox: GeoBox) -> _GridKey:
    height, width = geobox.shape
    return (height, width), geobox.affine, epsg_of(geobox)


@lru_cache(maxsize=8192)
def _blocks_under(grid: BlockGrid, key: _GridKey) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({block for _, windows in _strips(grid, key) for block in windows}))


def _strips(grid: BlockGrid, key: _GridKey) -> Iterator[tuple[slice, _Windows]]:
    """Yield the windows of a grid in parts of its rows, or of all rows where both grids are in line."""
    (height, width), affine, epsg = key
    if epsg == grid.crs and grid.transform.is_rectilinear:
        yield slice(0, height), _windows_in_line(grid, key)
        return
    step = max(1, _STRIP_PX // width)
    for top in range(0, height, step):
        shape = min(step, height - top), width
        strip = shape, affine * Affine.translation(0, top) if top else affine, epsg
        yield slice(top, top + shape[0]), _windows_apart(grid, strip)


@lru_cache(maxsize=8192)
def _windows_in_line(grid: BlockGrid, key: _GridKey) -> _Windows:
    """Return the pixels of another grid that lie on each block, and the block's pixels under them."""
    shape, affine, _ = key
    rows, cols = _in_line(grid.transform, shape, affine)
    down = list(_axis_windows(rows, grid.height, grid.block_height))
    across = list(_axis_windows(cols, grid.width, grid.block_width))
    return {(r, c): ((y, x), _outer(i, j)) for r, y, i in down for c, x, j in across}


@lru_cache(maxsize=128)
def _windows_apart(grid: BlockGrid, key: _GridKey) -> _Windows:
    """Return the same where the grids differ in more than position and scale."""
    shape, affine, epsg = key
    rows, cols = source_pixels(grid.transform, _crs(grid.crs), GeoBox(shape, affine, f"EPSG:{epsg}"))
    y, x = np.nonzero((rows >= 0) & (rows < grid.height) & (cols >= 0) & (cols < grid.width))
    row, col = rows[y, x], cols[y, x]
    across_blocks = -(-grid.width // grid.block_width)
    block = row // grid.block_height * across_blocks + col // grid.block_width
    order = np.argsort(block, kind="stable")
    found, starts = np.unique(block[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(found) else []
    of_block = zip((divmod(int(b), across_blocks) for b in found), parts, strict=True)
    small = np.int32
    return {
        (r, c): (
            (y[at].astype(small), x[at].astype(small)),
            ((row[at] - r * grid.block_height).astype(small), (col[at] - c * grid.block_width).astype(small)),
        )
        for (r, c), at in of_block
    }


def _axis_windows(positions: IndexArray, size: int, block: int) -> Iterator[tuple[int, slice, slice | IndexArray]]:
    """Yield, of one axis, each block's number, the target's pixels on it, and the block's pixels under these."""
    inside = np.flatnonzero((positions >= 0) & (positions < size))
    if not inside.size:
        return
    begin, end = int(inside[0]), int(inside[-1]) + 1  # positions only rise, or only fall
    numbers = positions[begin:end] // block
    edges = [begin, *(np.flatnonzero(np.diff(numbers)) + begin + 1).tolist(), end]
    for start, stop in pairwise(edges):
        number = int(numbers[start - begin])
        source = positions[start:stop] - number * block
        first, last = int(source[0]), int(source[-1])
        is_same = last - first == stop - start - 1 and bool((np.diff(source) == 1).all())
        yield number, slice(start, stop), slice(first, last + 1) if is_same else source


def _outer(rows: slice | IndexArray, cols: slice | IndexArray) -> Index:
    """Return the index of all pairs of rows and columns."""
    both = not isinstance(rows, slice) and not isinstance(cols, slice)
    return (rows[:, None], cols) if both else (rows, cols)  # type: ignore[index]


@lru_cache(maxsize=64)
def _between(source: CRS, target: CRS) -> Transformer:
    """Return the exact coordinate transform, which takes 9 ms to make; threads may share it."""
    return Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=256)
def _crs(code: int | str) -> CRS:
    return CRS.from_user_input(code)


def has_value(values: AnyArray, nodata: float | None) -> BoolArray:
    """Return True where a value is neither 0, which is Sentinel-2's emptiness in any file, nor another fill value.

    Those are nodata, and in floats NaN, infinity, and what is too far below zero for any DN, such as -9999.
    """
    valid: BoolArray = values != 0
    if nodata is not None and nodata != 0:
        valid &= values != nodata
    if values.dtype.kind == "f":
        valid &= np.isfinite(values) & np.greater(values, _FILL_VALUE_BELOW)
    return valid
