"""Reading of a raster on another pixel grid, nearest pixel: the result of GDAL's warp depends on the window read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from rs_embed.arrays import AnyArray, BoolArray, IndexArray
from rs_embed.errors import ProviderError
from rs_embed.grid import epsg_of
from rs_embed.lonlat import Box, wrap

_EDGE_PX = 1e-6  # a target centre this close to a source pixel's edge belongs to the pixel right of or below it
_DRIVERS = {".jp2": "JP2OpenJPEG", ".img": "HFA", ".nc": "netCDF"}  # a VRT under another name may lead to any host
_WINDOW_BYTES = 1 << 30  # of a file that is finer than the place's grid, decoded
_FILL_VALUE_BELOW = -1001  # DN 0 with the offset of 2022 taken off is -1000
_STRIP_PX = 1 << 22  # pixels of a strip: the coordinates of a large grid would fill the memory


@dataclass(frozen=True, slots=True)
class RasterPixels:
    """Stored values of some bands of one file on the target grid."""

    values: AnyArray  # (bands, y, x), as stored; undefined where `valid` is False
    valid: BoolArray  # (y, x), True where every band has a value
    scale: float
    offset: float  # tags of the file: reflectance = value * scale + offset; 1 and 0 when it has none


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


def read_onto(path: str, indexes: Sequence[int], geobox: GeoBox) -> RasterPixels:
    """Read bands `indexes` (from 1) of a file: each pixel of `geobox` takes the source pixel under its centre."""
    height, width = geobox.shape
    step = max(1, _STRIP_PX // width)
    with _open(path) as dataset:
        tags = float(dataset.scales[indexes[0] - 1]), float(dataset.offsets[indexes[0] - 1])
        strips = [geobox[top : min(top + step, height), :] for top in range(0, height, step)]
        values, valid = zip(*(_read_strip(dataset, indexes, strip) for strip in strips), strict=True)
    return RasterPixels(np.concatenate(values, axis=1), np.concatenate(valid), *tags)


def _read_strip(dataset: DatasetReader, indexes: Sequence[int], geobox: GeoBox) -> tuple[AnyArray, BoolArray]:
    rows, cols = source_pixels(dataset.transform, _crs(dataset.crs.to_wkt()), geobox)
    inside = (rows >= 0) & (rows < dataset.height) & (cols >= 0) & (cols < dataset.width)
    if not inside.any():
        return np.zeros((len(indexes), *geobox.shape), np.dtype(dataset.dtypes[indexes[0] - 1])), inside
    rows, cols = (np.clip(v, 0, n - 1) for v, n in ((rows, dataset.height), (cols, dataset.width)))
    top, left = int(rows.min()), int(cols.min())
    window = Window(left, top, int(cols.max()) - left + 1, int(rows.max()) - top + 1)
    size = window.width * window.height * len(indexes) * np.dtype(dataset.dtypes[indexes[0] - 1]).itemsize
    if size > _WINDOW_BYTES:
        raise ProviderError(
            f"{dataset.name} is {dataset.width} x {dataset.height} px, and the place would take {size >> 20:,} MB of "
            "it: resample it to 10 m"
        )
    try:
        values = dataset.read(list(indexes), window=window)
        valid = _valid(dataset, indexes, values, window)
    except rasterio.errors.RasterioIOError as error:
        raise ProviderError(f"{dataset.name} cannot be read: {error}") from error
    return values[:, rows - top, cols - left], valid[rows - top, cols - left] & inside


def _open(path: str) -> DatasetReader:
    driver = "netCDF" if path.startswith("netcdf:") else _DRIVERS.get(PurePath(path).suffix.lower(), "GTiff")
    try:
        dataset = rasterio.open(path, driver=driver)
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
        mapping = to_source * to_target  # both north-up: rows depend on y alone, columns on x alone
        col = (mapping.c + mapping.a * (np.arange(width) + 0.5))[None, :]
        row = (mapping.f + mapping.e * (np.arange(height) + 0.5))[:, None]
    else:
        x, y = to_target * np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        if crs != target:
            x, y = _between(target, crs).transform(x, y)
        col, row = to_source * (x, y)
    finite = (np.where(np.isfinite(v), v, -1.0) for v in (row, col))  # a point that the CRS cannot represent is outside
    rows, cols = (np.floor(position + _EDGE_PX).astype(np.intp) for position in finite)
    return rows, cols


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """Pixel grid of a tiled raster, and the size of its blocks."""

    transform: Affine
    crs: int | str  # EPSG code, or WKT of a CRS that has none
    height: int
    width: int
    block_height: int = 1024
    block_width: int = 1024

    def pixels_under(self, geobox: GeoBox) -> tuple[IndexArray, IndexArray]:
        """Return row and column of the pixel under each pixel's centre of another grid, as `source_pixels` does."""
        return _source_pixels(_key(geobox), self.transform, self.crs)

    def blocks_under(self, geobox: GeoBox) -> tuple[tuple[int, int], ...]:
        """Return row and column of each block that another grid needs."""
        return _blocks_under(self, _key(geobox))


_GridKey = tuple[tuple[int, int], Affine, int]  # shape, affine, EPSG: a GeoBox formats its CRS each time it is hashed


def _key(geobox: GeoBox) -> _GridKey:
    height, width = geobox.shape
    return (height, width), geobox.affine, epsg_of(geobox)


@lru_cache(maxsize=256)
def _blocks_under(grid: BlockGrid, key: _GridKey) -> tuple[tuple[int, int], ...]:
    rows, cols = _source_pixels(key, grid.transform, grid.crs)
    in_rows, in_cols = (rows >= 0) & (rows < grid.height), (cols >= 0) & (cols < grid.width)
    if is_separable(rows, cols):
        block_rows = np.unique(rows[in_rows] // grid.block_height)
        block_cols = np.unique(cols[in_cols] // grid.block_width)
        return tuple((int(r), int(c)) for r in block_rows for c in block_cols)
    inside = in_rows & in_cols
    pairs = np.stack([rows[inside] // grid.block_height, cols[inside] // grid.block_width], axis=1)
    return tuple((int(r), int(c)) for r, c in np.unique(pairs, axis=0))


def is_separable(rows: IndexArray, cols: IndexArray) -> bool:
    """Return True where rows depend on y alone and columns on x alone: same CRS, both north-up."""
    return bool(rows.shape[1] == 1 and cols.shape[0] == 1)


@lru_cache(maxsize=64)
def _source_pixels(key: _GridKey, transform: Affine, crs: int | str) -> tuple[IndexArray, IndexArray]:
    shape, affine, target = key
    return source_pixels(transform, _crs(crs), GeoBox(shape, affine, f"EPSG:{target}"))


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


def _valid(dataset: DatasetReader, indexes: Sequence[int], values: AnyArray, window: Window) -> BoolArray:
    """Return (y, x), True where each band has a value by the file's mask, its nodata, and `has_value`."""
    valid: BoolArray = np.ones(values.shape[1:], bool)
    for value, index in zip(values, indexes, strict=True):
        valid &= has_value(value, None)
        if MaskFlags.all_valid not in dataset.mask_flag_enums[index - 1]:
            valid &= dataset.read_masks(index, window=window) > 0
    return valid
