"""Rasters that GDAL reads block by block; bytes over HTTP come by our own reader, with its retries and tokens."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Interleaving, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from rasterio.windows import Window

from rs_embed.arrays import AnyArray
from rs_embed.errors import FetchError, UnusableImageryError
from rs_embed.providers.gdal_stream import Content
from rs_embed.providers.ranges import ByteReader, file_name
from rs_embed.providers.raster import BlockGrid, driver_by_name
from rs_embed.providers.stac.offsets import DarkPixels, dark_pixels
from rs_embed.retry import COG_BLOCK

BLOCK_LIMIT_BYTES = 1 << 28  # largest block when decoded; a whole Sentinel-2 band in one strip is just below
MAX_OVERVIEW_PX = 1400  # largest side of an overview that is read for a histogram
JPEG2000_MAGIC = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_STRIP_PX = 1 << 20  # strips are joined to blocks of about this many pixels
_MOST_BLOCKS = 64  # small ones that one opening of the file serves
_RUN_VALUES = 1 << 24  # values that it reads: a time series of years would fill the memory
_GCP_TOLERANCE_PX = 0.5  # largest distance of a control point from the affine transform through all of them
_HEADER_PIECE_BYTES = 1 << 18
_PEEK_BYTES = 64
_NO_CODEC = "missing codec"  # in the words of GDAL
_CLOSED = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",  # the file, and none beside it
    "GDAL_NUM_THREADS": "1",  # GDAL's own threads do not find an opener of ours, and give zeros without an error
}


@dataclass(slots=True, eq=False, kw_only=True)
class GdalFile:
    """A raster that GDAL reads: the slow way, and the one that knows every variant of TIFF, JPEG 2000 and netCDF."""

    source: _Source
    grid: BlockGrid
    count: int
    nodata: float | None
    value_bytes: int
    tags: Sequence[tuple[float, float]]
    is_planar: bool  # True where a band is read without the others

    @property
    def name(self) -> str:
        """Name of the file, for errors."""
        return self.source.name

    @property
    def blocks_at_once(self) -> int:
        """Largest number of blocks of one row that are best read together."""
        return min(max(4, _STRIP_PX // (self.grid.block_height * self.grid.block_width)), _MOST_BLOCKS)

    @property
    def bands_at_once(self) -> int:
        """Largest number of bands that are best read together."""
        grid = self.grid
        values = min(grid.block_height, grid.height) * min(grid.block_width * self.blocks_at_once, grid.width)
        return max(1, _RUN_VALUES // values) if self.is_planar else self.count

    def scale_and_offset(self, band: int) -> tuple[float, float]:
        """Return the tags of a band (from 0): reflectance = value * scale + offset."""
        return self.tags[band]

    def is_contiguous(self, row: int, col: int) -> bool:
        """Return True: each opening of the file serves several blocks."""
        return True

    async def fetch_blocks(
        self, row: int, cols: Sequence[int], bands: Sequence[int] | None = None
    ) -> list[AnyArray | FetchError | None]:
        """Read adjacent blocks (bands, y, x) of one row; an error stands in for a block that cannot be read."""
        return await asyncio.to_thread(self._read_blocks, row, cols, range(self.count) if bands is None else bands)

    async def fetch_dark_pixels(self) -> DarkPixels | None:
        """Return the dark end of the first band's histogram, from the coarsest overview; None without one."""
        return await asyncio.to_thread(self._read_dark_pixels)

    def _read_blocks(self, row: int, cols: Sequence[int], bands: Sequence[int]) -> list[AnyArray | FetchError | None]:
        blocks: dict[int, AnyArray | FetchError] = {}
        missing = list(cols)
        for _ in range(self.source.attempts):
            try:
                with self.source.opened() as dataset:
                    blocks |= {col: self._read_block(dataset, row, col, bands) for col in missing}
            except FetchError as error:
                return [b if isinstance(b := blocks.get(col), np.ndarray) else error for col in cols]
            except RasterioError as error:
                blocks |= dict.fromkeys(missing, FetchError(f"{self.source.name}: cannot be opened ({_detail(error)})"))
            missing = [col for col in missing if isinstance(blocks[col], FetchError)]
            if not missing:
                break
        return [blocks[col] for col in cols]

    def _read_block(self, dataset: DatasetReader, row: int, col: int, bands: Sequence[int]) -> AnyArray | FetchError:
        grid = self.grid
        top, left = row * grid.block_height, col * grid.block_width
        height, width = min(grid.block_height, grid.height - top), min(grid.block_width, grid.width - left)
        try:
            return _read_window(dataset, Window(left, top, width, height), bands)
        except RasterioError as error:
            return FetchError(f"{self.source.name}: block {row},{col} is corrupt ({_detail(error)})")

    def _read_dark_pixels(self) -> DarkPixels | None:
        try:
            with self.source.opened() as dataset:
                factors = [f for f in dataset.overviews(1) if dataset.width <= f * MAX_OVERVIEW_PX]
                if not factors or self.source.driver == "JP2OpenJPEG":  # whose overviews are spread over the whole file
                    return None
                shape = (-(-dataset.height // max(factors)), -(-dataset.width // max(factors)))
                return dark_pixels(dataset.read(1, out_shape=shape), self.nodata)
        except (FetchError, RasterioError):
            return None  # the check is optional; the bands themselves are read with all care


async def open_gdal(path: str, reader: ByteReader | None = None) -> GdalFile:
    """Read the header of a raster by GDAL: an HTTP address, whose bytes `reader` fetches, or a local file.

    The `beginnings` of the reader may hold the first bytes. A file that cannot be read or has no georeference is a
    FetchError.
    """
    source = _Source(path, reader, asyncio.get_running_loop())
    return await asyncio.to_thread(_read_header, source)


def _read_header(source: _Source) -> GdalFile:
    fault = ""
    source.driver = source.find_driver()
    for _ in range(source.attempts):
        try:
            with source.opened(keep_header=True) as dataset:
                grid = _grid(dataset)
                tags = [(float(s), float(o)) for s, o in zip(dataset.scales, dataset.offsets, strict=True)]
                nodata = None if dataset.nodata is None else float(dataset.nodata)
                is_planar = dataset.interleaving != Interleaving.pixel
                value_bytes = np.dtype(dataset.dtypes[0]).itemsize
                layout = {"count": dataset.count, "value_bytes": value_bytes, "is_planar": is_planar}
                return GdalFile(source=source, grid=grid, nodata=nodata, tags=tags, **layout)
        except RasterioError as error:
            fault = _detail(error)
    kind = UnusableImageryError if _NO_CODEC in fault else FetchError
    raise kind(f"{source.name}: its header cannot be read ({fault})")


def _grid(dataset: DatasetReader) -> BlockGrid:
    """Return the grid of a dataset; strips are joined to larger blocks, and too large blocks are refused."""
    height, width = dataset.block_shapes[0]
    dtype = np.dtype(dataset.dtypes[0])
    bands = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    if dtype.kind not in "uif":
        raise UnusableImageryError(f"its values are {dtype}, no real numbers")
    if height * width * bands * dtype.itemsize > BLOCK_LIMIT_BYTES:
        raise UnusableImageryError(
            f"a block of {width} x {height} pixels is over {BLOCK_LIMIT_BYTES >> 20} MB when decoded: "
            "write the file anew with smaller ones (gdal_translate -of COG)"
        )
    if width >= dataset.width:
        height *= max(1, _STRIP_PX // (height * width * bands))
    transform, crs = _georeference(dataset)
    shape = {"height": dataset.height, "width": dataset.width, "block_height": height, "block_width": width}
    return BlockGrid(transform=transform, crs=crs, **shape)


def _georeference(dataset: DatasetReader) -> tuple[Affine, int | str]:
    """Return the transform and the CRS (EPSG code, else WKT), of control points too where one transform fits them."""
    crs, transform = dataset.crs, dataset.transform
    points, points_crs = dataset.gcps
    if points and transform == Affine.identity():
        crs, transform = points_crs, from_gcps(points)
        for point in points:
            col, row = ~transform * (point.x, point.y)
            if max(abs(col - point.col), abs(row - point.row)) > _GCP_TOLERANCE_PX:
                raise UnusableImageryError("its control points bend its grid: warp it first (gdalwarp)")
    if crs is None or transform == Affine.identity():
        raise UnusableImageryError("it has no georeference")
    return transform, crs.to_epsg() or crs.to_wkt()


def _read_window(dataset: DatasetReader, window: Window, bands: Sequence[int]) -> AnyArray:
    """Read bands of a window (bands, y, x), 0 where the file's mask says that there is nothing."""
    values: AnyArray = dataset.read([band + 1 for band in bands], window=window)
    flags, nodata = dataset.mask_flag_enums, dataset.nodatavals
    for plane, band in zip(values, bands, strict=True):
        if MaskFlags.per_dataset in flags[band]:  # a mask or an alpha band; nodata is told by its value
            plane[dataset.read_masks(band + 1, window=window) == 0] = 0
        if nodata[band] != nodata[0]:
            plane[plane == nodata[band]] = 0
    return values


@dataclass(slots=True)
class _Source:
    """The place of a raster, and the way to its bytes."""

    path: str
    reader: ByteReader | None  # None for a local file
    loop: asyncio.AbstractEventLoop
    driver: str = "GTiff"
    header: list[tuple[int, bytes]] = field(default_factory=list)  # pieces of the file that its opening needs

    @property
    def name(self) -> str:
        """Name of the file, for errors."""
        return file_name(self.path)

    def find_driver(self) -> str:
        """Return the one driver that may read the file, by its first bytes, or its name where they do not tell it."""
        named = "GTiff" if self.reader is not None else driver_by_name(self.path)
        if named not in ("GTiff", "JP2OpenJPEG") or self.path.startswith("/vsizip/"):
            return named
        return "JP2OpenJPEG" if self._first_bytes().startswith(JPEG2000_MAGIC) else "GTiff"

    def _first_bytes(self) -> bytes:
        if self.reader is not None:
            return self.reader.beginnings.get(self.path) or self._fetch(0, _PEEK_BYTES)
        try:
            with Path(self.path).open("rb") as stream:
                return stream.read(_PEEK_BYTES)
        except OSError as error:
            raise FetchError(f"{self.name} cannot be read ({error.strerror})") from error

    @property
    def attempts(self) -> int:
        """Number of times that a block is asked for while it is corrupt: a local file stays as it is."""
        return COG_BLOCK.attempts if self.reader is not None else 1

    @contextmanager
    def opened(self, *, keep_header: bool = False) -> Iterator[DatasetReader]:
        """Open the raster with the one driver that may read it; a request that failed is a FetchError."""
        content: Content | None = None
        path, opener = self.path, None
        if self.reader is not None:
            content = Content(self._fetch, self.reader.sizes.get(self.path, 0), deque(self._beginning(), maxlen=16))
            path = f"{uuid4().hex}/{self.name}"  # GDAL's handles to one file must not share a name
            opener = content.opener(path)
        try:
            with (
                rasterio.Env(**({} if content is None else _CLOSED)),
                rasterio.open(path, driver=self.driver, sharing=False, opener=opener) as dataset,
            ):
                yield dataset
                if content is not None and keep_header:
                    self.header = [(start, data[:_HEADER_PIECE_BYTES]) for start, data in content.pieces]
        finally:
            if content is not None and content.fault is not None:
                raise FetchError(content.fault) from None

    def _beginning(self) -> list[tuple[int, bytes]]:
        beginning = self.reader.beginnings.get(self.path) if self.reader is not None else None
        return self.header or ([(0, beginning)] if beginning else [])

    def _fetch(self, start: int, stop: int) -> bytes:
        if self.reader is None:
            raise ValueError(f"{self.path} is not read over HTTP")
        request = self.reader.get_range_async(self.path, start=start, end=stop)
        return asyncio.run_coroutine_threadsafe(request, self.loop).result()


def _detail(error: BaseException) -> str:
    """Return GDAL's words without addresses, whose query may be a credential."""
    return re.sub(r"(/vsi|https?:)\S+", "the file", str(error.__cause__ or error))
