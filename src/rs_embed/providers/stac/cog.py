"""One tiled TIFF, over HTTP or from disk: its header, its blocks, and the histogram of its coarsest overview."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from affine import Affine
from async_tiff import TIFF, ImageFileDirectory, Tile
from async_tiff.enums import ExtraSamples

from rs_embed.arrays import AnyArray
from rs_embed.errors import FetchError, UnusableImageryError
from rs_embed.providers.gdal import JPEG2000_MAGIC, MAX_OVERVIEW_PX
from rs_embed.providers.ranges import JOIN_GAP_BYTES, ByteReader, file_name
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.stac.decoding import block_bytes, decode, is_planar, why_not_decodable
from rs_embed.providers.stac.offsets import DarkPixels, dark_pixels
from rs_embed.providers.stac.tiff_header import MAGIC, ImpossibleHeaderError, check_header
from rs_embed.retry import COG_BLOCK

_BLOCKS_PER_REQUEST = 4
_STORED_SLACK = 1 << 16  # bytes that a block may have beyond twice its decoded size
_HEADER_BYTES = 32_768
_OVERVIEW_BYTES = 786_432  # length of a file's beginning that holds its header and its coarsest overview
_MASK = 4  # bit of the subfile type of a transparency mask
_PIXEL_IS_POINT = 2
_OTHER_FORMATS = {
    b"\x89HDF": "netCDF or HDF5",
    b"CDF": "netCDF",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"NITF": "NITF",
    b"GRIB": "GRIB",
}
_USER_DEFINED = 32_767  # a CRS without an EPSG code
_TAG = re.compile(r'<Item ([^>]*)role="(scale|offset)"[^>]*>([^<]*)<')
_SAMPLE = re.compile(r'sample="(\d+)"')


class NotFastError(FetchError):
    """A raster that this reader does not decode; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Cog:
    """The header of a tiled TIFF, and the reader of its bytes."""

    url: str
    reader: ByteReader
    tiff: TIFF
    grid: BlockGrid
    count: int
    is_planar: bool  # True where each block holds a single band
    nodata: float | None
    block_bytes: int  # size of a block when decoded
    tags: Mapping[tuple[int, str], float]  # by band from 0, and `"scale"` or `"offset"`

    def scale_and_offset(self, band: int) -> tuple[float, float]:
        """Return the tags of a band (from 0): reflectance = value * scale + offset; 1 and 0 when it has none."""
        return self.tags.get((band, "scale"), 1.0), self.tags.get((band, "offset"), 0.0)

    @cached_property
    def _byte_ranges(self) -> tuple[list[int], list[int]]:
        directory = self.tiff.ifds[0]
        return directory.tile_offsets or [], directory.tile_byte_counts or []

    @property
    def name(self) -> str:
        """Name of the file, for errors."""
        return file_name(self.url)

    @property
    def value_bytes(self) -> int:
        """Size of one value when decoded."""
        return -(-self.tiff.ifds[0].bits_per_sample[0] // 8)

    @property
    def blocks_at_once(self) -> int:
        """Largest number of blocks of one row that are best fetched together."""
        return _BLOCKS_PER_REQUEST

    @property
    def bands_at_once(self) -> int:
        """Number of bands, which each block is decoded for."""
        return self.count

    def _index(self, row: int, col: int) -> int:
        return row * -(-self.grid.width // self.grid.block_width) + col

    def is_contiguous(self, row: int, col: int) -> bool:
        """Return True when the block to the right comes next in the file, so that one request fetches both."""
        offsets, counts = self._byte_ranges
        index = self._index(row, col)
        if self.is_planar or index + 1 >= len(offsets):
            return False
        return 0 <= offsets[index + 1] - (offsets[index] + counts[index]) <= JOIN_GAP_BYTES

    async def fetch_blocks(
        self, row: int, cols: Sequence[int], bands: Sequence[int] | None = None
    ) -> list[AnyArray | FetchError | None]:
        """Fetch adjacent blocks (bands, y, x) of one row: an error for a bad one, None for one that is left out."""
        stored_bytes = {col: self._byte_ranges[1][self._index(row, col)] for col in cols}
        too_long = [n for n in stored_bytes.values() if n > 2 * self.block_bytes + _STORED_SLACK]
        if too_long:
            what = f"has {too_long[0]} bytes, {self.block_bytes} when decoded"
            return [FetchError(f"{self.name}: a block of row {row} {what}")] * len(cols)
        stored = [col for col, n in stored_bytes.items() if n > 0]
        if not stored:
            return [None] * len(cols)
        tiles: Sequence[Tile | None] = [None] * len(stored)
        self.reader.faults.pop(self.url, None)
        try:
            tiles = await self.tiff.fetch_tiles([(col, row) for col in stored], 0)
        except Exception:  # noqa: BLE001  (async-tiff wraps what our reader raises; `faults` keeps its text)
            if self.url in self.reader.faults:
                return [FetchError(self.reader.faults[self.url])] * len(cols)
        blocks = {col: await self._decode(row, col, tile) for col, tile in zip(stored, tiles, strict=True)}
        wanted = slice(None) if bands is None or len(bands) == self.count else list(bands)
        return [block[wanted] if isinstance(block := blocks.get(col), np.ndarray) else block for col in cols]

    async def _decode(self, row: int, col: int, tile: Tile | None) -> AnyArray | FetchError:
        """Decode one block, and fetch it again while it is missing or corrupt."""
        fault = ""
        for _ in range(COG_BLOCK.attempts):
            self.reader.faults.pop(self.url, None)
            try:
                tile = tile or await self.tiff.fetch_tile(col, row, 0)
                return await decode(tile, self.tiff.ifds[0])
            except Exception as error:  # noqa: BLE001  (async-tiff wraps what our reader raises, and has bare errors)
                if self.url in self.reader.faults:
                    return FetchError(self.reader.faults[self.url])
                fault, tile = str(error), None
        return FetchError(f"{self.name}: block {row},{col} is corrupt ({fault})")

    async def fetch_dark_pixels(self) -> DarkPixels | None:
        """Return the dark end of the first band's histogram, from the coarsest overview; None without one."""
        directories = self.tiff.ifds
        levels = [  # overviews of masks have another subfile type
            i
            for i, d in enumerate(directories)
            if i > 0 and d.new_subfile_type == 1 and d.tile_width and d.image_width <= MAX_OVERVIEW_PX
        ]
        try:
            if not levels:
                return None
            level = min(levels, key=lambda i: directories[i].image_width)
            directory = directories[level]
            columns, rows = directory.tile_count or (0, 0)
            stored = [n > 0 for n in directory.tile_byte_counts or []]
            blocks = [(c, r) for r in range(rows) for c in range(columns) if stored[r * columns + c]]
            tiles = await self.tiff.fetch_tiles(blocks, level)
            parts = [(await decode(tile, directory))[0].ravel() for tile in tiles]
        except Exception:  # noqa: BLE001  (the check is optional; the bands themselves are read with all care)
            self.reader.faults.pop(self.url, None)
            return None
        finally:
            self.reader.beginnings.pop(self.url, None)
        return dark_pixels(np.concatenate(parts), self.nodata) if parts else None


async def open_cog(reader: ByteReader, url: str, *, with_overview: bool = False) -> Cog:
    """Fetch a COG's header, and with the same request its coarsest overview if wanted: it comes first in a COG.

    The bytes stay in the reader's `beginnings`. A raster that needs GDAL is a NotFastError.
    """
    fault, beginning, is_possible = "", b"", True
    for _ in range(COG_BLOCK.attempts):
        try:
            length = _OVERVIEW_BYTES if with_overview else _HEADER_BYTES
            beginning = reader.beginnings[url] = await reader.get_range_async(url, start=0, length=length)
            if beginning.startswith(JPEG2000_MAGIC):
                raise NotFastError("JPEG 2000")
            if beginning.startswith(MAGIC):
                await check_header(lambda a, b: reader.get_range_async(url, start=a, end=b), reader.sizes.get(url))
            return _read_header(url, await TIFF.open(url, store=reader, prefetch=_HEADER_BYTES), reader)
        except FetchError:
            raise
        except Exception as error:  # noqa: BLE001  (async-tiff wraps what our reader raises; `faults` keeps its text)
            reader.beginnings.pop(url, None)
            if url in reader.faults:
                raise FetchError(reader.faults[url]) from None
            fault, is_possible = str(error), not isinstance(error, ImpossibleHeaderError)
    if beginning.startswith(MAGIC) and is_possible:
        raise NotFastError(f"its header is not understood ({fault})")
    for magic, name in _OTHER_FORMATS.items():
        if beginning.startswith(magic):
            raise UnusableImageryError(f"{file_name(url)} is {name}, and only TIFF and JPEG 2000 are read over HTTP")
    raise FetchError(f"{file_name(url)}: its header cannot be read ({fault})")


def _read_header(url: str, tiff: TIFF, reader: ByteReader) -> Cog:
    reason = _why_not_fast(tiff)
    if reason is not None:
        raise NotFastError(reason)
    ifd = tiff.ifds[0]
    keys, scale, tiepoint = ifd.geo_key_directory, ifd.model_pixel_scale, ifd.model_tiepoint
    if keys is None or not scale or not tiepoint or ifd.tile_width is None or ifd.tile_height is None:
        raise NotFastError("no plain georeference, or strips")
    x, y = scale[:2]
    col, row, _, left, top = tiepoint[:5]
    if keys.raster_type == _PIXEL_IS_POINT:  # the tie point is a pixel's centre
        col, row = col + 0.5, row + 0.5
    return Cog(
        url=url,
        reader=reader,
        tiff=tiff,
        grid=BlockGrid(
            transform=Affine(x, 0, left - col * x, 0, -y, top + row * y),
            crs=int(keys.projected_type or keys.geographic_type or 0),
            height=ifd.image_height,
            width=ifd.image_width,
            block_height=ifd.tile_height,
            block_width=ifd.tile_width,
        ),
        count=ifd.samples_per_pixel,
        is_planar=is_planar(ifd),
        nodata=_nodata(ifd.gdal_nodata),
        block_bytes=block_bytes(ifd),
        tags=_scale_tags(ifd.gdal_metadata or ""),
    )


def _why_not_fast(tiff: TIFF) -> str | None:
    """Return the reason why a TIFF needs GDAL; None for one that this reader decodes. `docs/formats.md` lists them."""
    ifd = tiff.ifds[0]
    if ifd.tile_width is None or ifd.tile_height is None:
        return "strips, not blocks"
    return why_not_decodable(ifd) or _why_not_georeferenced(ifd) or _why_masked(tiff)


def _why_not_georeferenced(ifd: ImageFileDirectory) -> str | None:
    keys = ifd.geo_key_directory
    code = None if keys is None else keys.projected_type or keys.geographic_type
    if not code or code == _USER_DEFINED or not ifd.model_pixel_scale or len(ifd.model_tiepoint or ()) != 6:
        return "a rotated grid, control points, or a CRS without an EPSG code"
    return None


def _why_masked(tiff: TIFF) -> str | None:
    alphas = (ExtraSamples.AssociatedAlpha, ExtraSamples.UnassociatedAlpha)
    if any((ifd.new_subfile_type or 0) & _MASK for ifd in tiff.ifds):
        return "a mask"
    return "an alpha band" if any(extra in alphas for extra in tiff.ifds[0].extra_samples or ()) else None


def _nodata(text: str | None) -> float | None:
    try:
        return float(text.strip("\x00 ")) if text else None
    except ValueError:
        return None  # 0 is no data in any case


def _scale_tags(xml: str) -> dict[tuple[int, str], float]:
    tags = {}
    for attributes, role, text in _TAG.findall(xml):
        sample = _SAMPLE.search(attributes)
        try:
            tags[int(sample[1]) if sample else 0, role] = float(text)
        except ValueError:
            tags[int(sample[1]) if sample else 0, role] = float("nan")  # refused when the scene is harmonised
    return tags
