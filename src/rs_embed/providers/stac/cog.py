"""One COG over HTTP: its header, its blocks, and the histogram of its coarsest overview."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from affine import Affine
from async_tiff import TIFF, DecoderRegistry, ImageFileDirectory, Tile
from async_tiff.enums import Compression, PlanarConfiguration
from isal import isal_zlib

from rs_embed.arrays import AnyArray
from rs_embed.background import run_coroutine
from rs_embed.providers.http import JOIN_GAP_BYTES, FetchError, RangeReader, SasTokens, new_client
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.stac.offsets import DarkPixels, dark_pixels
from rs_embed.retry import COG_BLOCK

if TYPE_CHECKING:
    from typing_extensions import Buffer

_BLOCK_BYTES = 1 << 21  # size of a usual block when decoded: 1024 px a side, uint16
_HEADER_BYTES = 32_768
_OVERVIEW_BYTES = 786_432  # length of a file's beginning that holds its header and its coarsest overview
_MAX_OVERVIEW_PX = 1400  # largest side of an overview that is read for a histogram
_SCALE_TAG = re.compile(r'role="(scale|offset)"[^>]*>([^<]+)<')


def _inflate(buffer: Buffer) -> bytes:
    """Inflate with isal, three times as fast as async-tiff's decoder and without holding the GIL."""
    return isal_zlib.decompress(buffer, bufsize=_BLOCK_BYTES)


_DECODERS = DecoderRegistry({int(kind): _inflate for kind in (Compression.Deflate, Compression.OldDeflate)})


@dataclass(frozen=True, kw_only=True)
class Cog:
    """The header of a COG."""

    url: str
    tiff: TIFF
    grid: BlockGrid
    is_planar: bool  # True where each block holds a single band
    nodata: float | None
    scale: float
    offset: float

    @cached_property
    def _byte_ranges(self) -> tuple[list[int], list[int]]:
        directory = self.tiff.ifds[0]
        return directory.tile_offsets or [], directory.tile_byte_counts or []

    def is_contiguous(self, row: int, col: int) -> bool:
        """Return True when the block to the right comes next in the file, so that one request fetches both."""
        offsets, counts = self._byte_ranges
        index = row * -(-self.grid.width // self.grid.block_width) + col
        if self.is_planar or index + 1 >= len(offsets):
            return False
        return 0 <= offsets[index + 1] - (offsets[index] + counts[index]) <= JOIN_GAP_BYTES


async def open_cog(reader: RangeReader, url: str, *, with_overview: bool = False) -> Cog:
    """Fetch a COG's header, and with the same request its coarsest overview if wanted: it comes first in a COG."""
    fault = ""
    for _ in range(COG_BLOCK.attempts):
        try:
            if with_overview:
                reader.beginnings[url] = await reader.get_range_async(url, start=0, length=_OVERVIEW_BYTES)
            tiff = await TIFF.open(url, store=reader, prefetch=_HEADER_BYTES)
            return _read_header(url, tiff)
        except FetchError:
            raise
        except Exception as error:  # noqa: BLE001  (async-tiff wraps what our reader raises; `faults` keeps its text)
            reader.beginnings.pop(url, None)
            if url in reader.faults:
                raise FetchError(reader.faults[url]) from None
            fault = str(error)
    raise FetchError(f"its header cannot be read ({fault})")


def _read_header(url: str, tiff: TIFF) -> Cog:
    ifd = tiff.ifds[0]
    keys = ifd.geo_key_directory
    epsg = None if keys is None else keys.projected_type or keys.geographic_type
    if ifd.tile_width is None or ifd.tile_height is None:
        raise FetchError("it is no COG: it has strips, not blocks")
    if not epsg or not ifd.model_pixel_scale or not ifd.model_tiepoint:
        raise FetchError("it has no georeference")
    x, y = ifd.model_pixel_scale[:2]
    col, row, _, left, top = ifd.model_tiepoint[:5]
    tags = dict(_SCALE_TAG.findall(ifd.gdal_metadata or ""))
    return Cog(
        url=url,
        tiff=tiff,
        grid=BlockGrid(
            transform=Affine(x, 0, left - col * x, 0, -y, top + row * y),
            epsg=int(epsg),
            height=ifd.image_height,
            width=ifd.image_width,
            block_height=ifd.tile_height,
            block_width=ifd.tile_width,
        ),
        is_planar=_is_planar(ifd),
        nodata=float(ifd.gdal_nodata.strip("\x00 ")) if ifd.gdal_nodata else None,
        scale=float(tags.get("scale", 1.0)),
        offset=float(tags.get("offset", 0.0)),
    )


def _is_planar(ifd: ImageFileDirectory) -> bool:
    return bool(ifd.planar_configuration == PlanarConfiguration.Planar)


async def fetch_blocks(cog: Cog, reader: RangeReader, row: int, cols: Sequence[int]) -> list[AnyArray | FetchError]:
    """Fetch adjacent blocks (bands, y, x) of one row; an error stands in for a block that cannot be read."""
    reader.faults.pop(cog.url, None)
    tiles: Sequence[Tile | None] = [None] * len(cols)
    try:
        tiles = await cog.tiff.fetch_tiles([(col, row) for col in cols], 0)
    except Exception:  # noqa: BLE001  (async-tiff wraps what our reader raises; `faults` keeps its text)
        if cog.url in reader.faults:
            return [FetchError(reader.faults[cog.url])] * len(cols)
    return [await _decode(cog, reader, row, col, tile) for col, tile in zip(cols, tiles, strict=True)]


async def _decode(cog: Cog, reader: RangeReader, row: int, col: int, tile: Tile | None) -> AnyArray | FetchError:
    """Decode one block, and fetch it again while it is missing or corrupt."""
    fault = ""
    for _ in range(COG_BLOCK.attempts):
        reader.faults.pop(cog.url, None)
        try:
            tile = tile or await cog.tiff.fetch_tile(col, row, 0)
            values = np.asarray(await tile.decode(decoder_registry=_DECODERS))
        except Exception as error:  # noqa: BLE001  (async-tiff wraps what our reader raises, and raises bare errors too)
            if cog.url in reader.faults:
                return FetchError(reader.faults[cog.url])
            fault, tile = str(error), None
        else:
            return values if cog.is_planar else np.moveaxis(values, -1, 0)
    return FetchError(f"{urlsplit(cog.url).path.rpartition('/')[2]}: block {row},{col} is corrupt ({fault})")


def fetch_dark_pixels(url: str, tokens: SasTokens | None) -> DarkPixels | None:
    """Fetch the dark end of one file's histogram; None where it cannot be read."""

    async def fetch() -> DarkPixels | None:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(1), tokens)
            try:
                return await overview_dark_pixels(await open_cog(reader, url, with_overview=True), reader)
            except FetchError:
                return None

    return run_coroutine(fetch())


async def overview_dark_pixels(cog: Cog, reader: RangeReader) -> DarkPixels | None:
    """Return the dark end of the first band's histogram, from the coarsest overview; None without one."""
    directories = cog.tiff.ifds
    levels = [  # overviews of masks have another subfile type
        i
        for i, d in enumerate(directories)
        if i > 0 and d.new_subfile_type == 1 and d.tile_width and d.image_width <= _MAX_OVERVIEW_PX
    ]
    try:
        if not levels:
            return None
        level = min(levels, key=lambda i: directories[i].image_width)
        directory = directories[level]
        columns, rows = directory.tile_count or (0, 0)
        tiles = await cog.tiff.fetch_tiles([(c, r) for r in range(rows) for c in range(columns)], level)
        parts = [np.asarray(await tile.decode(decoder_registry=_DECODERS)) for tile in tiles]
    except Exception:  # noqa: BLE001  (the check is optional; the bands themselves are read with all care)
        reader.faults.pop(cog.url, None)
        return None
    finally:
        reader.beginnings.pop(cog.url, None)
    first = [(part if _is_planar(directory) else np.moveaxis(part, -1, 0))[0].ravel() for part in parts]
    return dark_pixels(np.concatenate(first))
