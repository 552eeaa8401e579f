"""One raster file onto a grid: any GDAL raster, any CRS, its own nodata, mask, scale and offset.

Nearest neighbour by the exact transform: the source pixel under each target pixel's centre. GDAL's
own warp is not used, since its answer depends on the window that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from rs_embed.errors import ProviderError
from rs_embed.grid import epsg_of

_EDGE_PX = 1e-6
"""A target centre this close to a source pixel's edge belongs to the pixel right of or below it."""

_STRIP_PX = 1 << 22

BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class RasterPixels:
    """Stored values of some bands of one file on the target grid."""

    values: npt.NDArray[np.generic]
    """(bands, y, x), as stored; what lies under `valid` False means nothing."""
    valid: BoolArray
    """(y, x), True where every band has a value."""
    scale: float
    offset: float
    """The file's own tags: reflectance = value * scale + offset; 1 and 0 when it has none."""


@dataclass(frozen=True, slots=True)
class RasterHeader:
    """What the header of a file tells."""

    bands: int
    descriptions: tuple[str | None, ...]
    bounds_lonlat: tuple[float, float, float, float]
    """(west, south, east, north)."""
    resolution_m: float


def read_header(path: str) -> RasterHeader:
    """Read a file's header.

    Raises:
        ProviderError: when it cannot be opened or has no georeference.
    """
    with _open(path) as dataset:
        _check_georeference(dataset, path)
        bounds = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds, densify_pts=21)
        return RasterHeader(dataset.count, tuple(dataset.descriptions), bounds, abs(float(dataset.transform.a)))


def read_onto(path: str, indexes: Sequence[int], geobox: GeoBox) -> RasterPixels:
    """Read bands `indexes` (from 1) of a file at the pixels of `geobox`.

    Raises:
        ProviderError: when the file cannot be opened or read, or has no georeference.
    """
    with _open(path) as dataset:
        _check_georeference(dataset, path)
        tags = float(dataset.scales[indexes[0] - 1]), float(dataset.offsets[indexes[0] - 1])
        strips = [_read_strip(dataset, indexes, strip) for strip in _strips(geobox)]
    values, valid = ([s[i] for s in strips] for i in (0, 1))
    return RasterPixels(np.concatenate(values, axis=1), np.concatenate(valid), *tags)


def _strips(geobox: GeoBox) -> list[GeoBox]:
    """Full-width pieces of a grid, top to bottom: coordinates of a large one would fill the memory."""
    height, width = geobox.shape
    rows = max(1, _STRIP_PX // width)
    return [geobox[top : min(top + rows, height), :] for top in range(0, height, rows)]


def _read_strip(
    dataset: DatasetReader, indexes: Sequence[int], geobox: GeoBox
) -> tuple[npt.NDArray[np.generic], BoolArray]:
    rows, cols = source_pixels(dataset.transform, CRS.from_user_input(dataset.crs), geobox)
    inside = (rows >= 0) & (rows < dataset.height) & (cols >= 0) & (cols < dataset.width)
    if not inside.any():
        return np.zeros((len(indexes), *geobox.shape), np.dtype(dataset.dtypes[indexes[0] - 1])), inside
    rows, cols = (np.clip(v, 0, n - 1) for v, n in ((rows, dataset.height), (cols, dataset.width)))
    top, left = int(rows.min()), int(cols.min())
    window = Window(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
    try:
        values = dataset.read(list(indexes), window=window)
        valid = _valid(dataset, indexes, values, window)
    except rasterio.errors.RasterioIOError as error:
        raise ProviderError(f"{dataset.name} cannot be read: {error}") from error
    return values[:, rows - top, cols - left], valid[rows - top, cols - left] & inside


def _open(path: str) -> DatasetReader:
    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise ProviderError(f"{path} cannot be opened as a raster: {error}") from error


def _check_georeference(dataset: DatasetReader, path: str) -> None:
    if dataset.crs is None or dataset.transform == Affine.identity():
        raise ProviderError(f"{path} has no georeference (CRS and transform): pass its pixels as input_chw instead")


def source_pixels(transform: Affine, crs: CRS, geobox: GeoBox) -> tuple[IndexArray, IndexArray]:
    """Row and column in a raster under each target pixel's centre, broadcastable to (y, x); may lie outside."""
    height, width = geobox.shape
    target = CRS.from_user_input(str(geobox.crs))
    to_source, to_target = ~transform, geobox.affine
    if crs == target and transform.is_rectilinear:
        across = to_source * to_target  # both north-up: rows depend on y alone, columns on x alone
        col, row = across.c + across.a * (np.arange(width) + 0.5), across.f + across.e * (np.arange(height) + 0.5)
        return _floor(row)[:, None], _floor(col)[None, :]
    x, y = to_target * np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    if crs != target:
        x, y = Transformer.from_crs(target, crs, always_xy=True).transform(x, y)
    col, row = to_source * (x, y)
    return _floor(row), _floor(col)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """Where the pixels and blocks of a tiled raster lie."""

    transform: Affine
    epsg: int
    height: int
    width: int
    block_height: int = 1024
    block_width: int = 1024

    def pixels_under(self, geobox: GeoBox) -> tuple[IndexArray, IndexArray]:
        """Row and column under each pixel's centre of another grid, broadcastable to (y, x); may lie outside."""
        return _mapping(_key(geobox), self.transform, self.epsg)

    def blocks_under(self, geobox: GeoBox) -> tuple[tuple[int, int], ...]:
        """Row and column of each block that another grid needs."""
        return _blocks_under(self, _key(geobox))


_GridKey = tuple[tuple[int, int], Affine, int]
"""Shape, affine and EPSG code: a GeoBox itself spells out its CRS each time that it is hashed."""


def _key(geobox: GeoBox) -> _GridKey:
    height, width = geobox.shape
    return (height, width), geobox.affine, epsg_of(geobox)


@lru_cache(maxsize=256)
def _blocks_under(grid: BlockGrid, key: _GridKey) -> tuple[tuple[int, int], ...]:
    rows, cols = _mapping(key, grid.transform, grid.epsg)
    in_rows, in_cols = (rows >= 0) & (rows < grid.height), (cols >= 0) & (cols < grid.width)
    if by_themselves(rows, cols):
        block_rows = np.unique(rows[in_rows] // grid.block_height)
        block_cols = np.unique(cols[in_cols] // grid.block_width)
        return tuple((int(r), int(c)) for r in block_rows for c in block_cols)
    inside = in_rows & in_cols
    pairs = np.stack([rows[inside] // grid.block_height, cols[inside] // grid.block_width], axis=1)
    return tuple((int(r), int(c)) for r, c in np.unique(pairs, axis=0))


def by_themselves(rows: IndexArray, cols: IndexArray) -> bool:
    """Whether rows depend on y alone and columns on x alone: the same CRS, north-up."""
    return bool(rows.shape[1] == 1 and cols.shape[0] == 1)


@lru_cache(maxsize=64)
def _mapping(key: _GridKey, transform: Affine, epsg: int) -> tuple[IndexArray, IndexArray]:
    shape, affine, target = key
    return source_pixels(transform, _crs(epsg), GeoBox(shape, affine, f"EPSG:{target}"))


@lru_cache(maxsize=256)
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)


def _floor(position: npt.NDArray[np.float64]) -> IndexArray:
    finite = np.where(np.isfinite(position), position, -1.0)  # a point that the CRS cannot hold is outside
    index: IndexArray = np.floor(finite + _EDGE_PX).astype(np.intp)
    return index


def _valid(
    dataset: DatasetReader, indexes: Sequence[int], values: npt.NDArray[np.generic], window: Window
) -> BoolArray:
    """(y, x): the file's own mask or nodata; where it declares none, 0 is no data in an integer file."""
    valid: BoolArray = np.ones(values.shape[1:], bool)
    for value, index in zip(values, indexes, strict=True):
        if MaskFlags.all_valid in dataset.mask_flag_enums[index - 1]:
            valid &= ~np.isnan(value) if np.issubdtype(value.dtype, np.floating) else value != 0
        else:
            valid &= dataset.read_masks(index, window=window) > 0
            if np.issubdtype(value.dtype, np.floating):
                valid &= ~np.isnan(value)
    return valid
