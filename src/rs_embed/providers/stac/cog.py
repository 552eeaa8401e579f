"""One COG over HTTP: its header, its blocks, and the dark end of its coarsest overview."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from affine import Affine
from async_tiff import TIFF, DecoderRegistry, ImageFileDirectory, Tile
from async_tiff.enums import Compression, PlanarConfiguration
from isal import isal_zlib
from typing_extensions import Buffer

from rs_embed.providers.http import GAP_BYTES, FetchError, RangeReader, SasTokens, new_client
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.stac.offsets import DarkEnd, dark_end

_DECODE_ATTEMPTS = 5
"""Of a block or header that arrives but cannot be read. With 2 % of answers corrupt, three were too few for 20,000."""
_BLOCK_BYTES = 1 << 21
"""Of a block as it mostly is: 1024 px a side, uint16."""
_HEADER_BYTES = 32_768
_OVERVIEW_BYTES = 786_432
_OVERVIEW_PX = 1400
"""An overview larger than this a side is too dear for a look at it."""
_SCALE_TAG = re.compile(r'role="(scale|offset)"[^>]*>([^<]+)<')


def _inflate(buffer: Buffer) -> bytes:
    """Decoding is the limit, and isal does it three times as fast as the library; it lets other threads run."""
    return isal_zlib.decompress(buffer, bufsize=_BLOCK_BYTES)


_DECODERS = DecoderRegistry({int(kind): _inflate for kind in (Compression.Deflate, Compression.OldDeflate)})


@dataclass(frozen=True, kw_only=True)
class Cog:
    """What a COG's header tells."""

    url: str
    tiff: TIFF
    grid: BlockGrid
    planar: bool
    """Whether its blocks hold one band after the other."""
    nodata: float | None
    scale: float
    offset: float

    @cached_property
    def _ranges(self) -> tuple[list[int], list[int]]:
        directory = self.tiff.ifds[0]
        return directory.tile_offsets or [], directory.tile_byte_counts or []

    def follow(self, row: int, col: int) -> bool:
        """Whether the block right of this one comes next in the file, so that one request brings both."""
        offsets, counts = self._ranges
        here = row * -(-self.grid.width // self.grid.block_width) + col
        if self.planar or here + 1 >= len(offsets):
            return False
        return 0 <= offsets[here + 1] - (offsets[here] + counts[here]) <= GAP_BYTES


async def open_cog(reader: RangeReader, url: str, *, with_overview: bool = False) -> Cog:
    """Read a COG's header.

    Args:
        reader: how.
        url: where.
        with_overview: read as much ahead as holds the coarsest overview, which comes first in a COG.

    Raises:
        FetchError: when it cannot be had, or is not that of a georeferenced COG.
    """
    fault = ""
    for _ in range(_DECODE_ATTEMPTS):
        try:
            if with_overview:
                await reader.read_ahead(url, _OVERVIEW_BYTES)
            tiff = await TIFF.open(url, store=reader, prefetch=_HEADER_BYTES)
            return _read_header(url, tiff)
        except FetchError:
            raise
        except Exception as error:  # noqa: BLE001  (the library wraps what our reader raised; its text is kept in `faults`)
            reader.heads.pop(url, None)
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
        planar=_planar(ifd),
        nodata=float(ifd.gdal_nodata.strip("\x00 ")) if ifd.gdal_nodata else None,
        scale=float(tags.get("scale", 1.0)),
        offset=float(tags.get("offset", 0.0)),
    )


def _planar(ifd: ImageFileDirectory) -> bool:
    return bool(ifd.planar_configuration == PlanarConfiguration.Planar)


async def read_blocks(
    cog: Cog, reader: RangeReader, row: int, cols: Sequence[int]
) -> list[npt.NDArray[np.generic] | FetchError]:
    """Blocks (bands, y, x) that lie side by side, or why one cannot be had."""
    reader.faults.pop(cog.url, None)
    tiles: Sequence[Tile | None] = [None] * len(cols)
    try:
        tiles = await cog.tiff.fetch_tiles([(col, row) for col in cols], 0)
    except Exception:  # noqa: BLE001  (the library wraps what our reader raised; its text is kept in `faults`)
        if cog.url in reader.faults:
            return [FetchError(reader.faults[cog.url])] * len(cols)
    return [await _decoded(cog, reader, row, col, tile) for col, tile in zip(cols, tiles, strict=True)]


async def _decoded(
    cog: Cog, reader: RangeReader, row: int, col: int, tile: Tile | None
) -> npt.NDArray[np.generic] | FetchError:
    """One block, fetched again when what came cannot be decoded."""
    fault = ""
    for _ in range(_DECODE_ATTEMPTS):
        reader.faults.pop(cog.url, None)
        try:
            tile = tile or await cog.tiff.fetch_tile(col, row, 0)
            values = np.asarray(await tile.decode(decoder_registry=_DECODERS))
        except Exception as error:  # noqa: BLE001  (the library wraps what our reader raised, and raises bare errors of its own)
            if cog.url in reader.faults:
                return FetchError(reader.faults[cog.url])
            fault, tile = str(error), None
        else:
            return values if cog.planar else np.moveaxis(values, -1, 0)
    return FetchError(f"{cog.url.rpartition('/')[2]}: block {row},{col} is corrupt ({fault})")


def look_at(url: str, tokens: SasTokens | None) -> DarkEnd | None:
    """The dark end of one file, by itself; None where it cannot be had."""

    async def look() -> DarkEnd | None:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(1), tokens)
            try:
                return await read_dark_end(await open_cog(reader, url, with_overview=True), reader)
            except FetchError:
                return None

    return asyncio.run(look())


async def read_dark_end(cog: Cog, reader: RangeReader) -> DarkEnd | None:
    """The dark end of the whole file's first band by its coarsest overview; None where there is none to look at."""
    try:
        level = _coarsest(cog.tiff.ifds)
        if level is None:
            return None
        directory = cog.tiff.ifds[level]
        columns, rows = directory.tile_count or (0, 0)
        tiles = await cog.tiff.fetch_tiles([(c, r) for r in range(rows) for c in range(columns)], level)
        parts = [np.asarray(await tile.decode(decoder_registry=_DECODERS)) for tile in tiles]
    except Exception:  # noqa: BLE001  (a look that fails is no look; the bands themselves are read with all care)
        reader.faults.pop(cog.url, None)
        return None
    finally:
        reader.heads.pop(cog.url, None)
    first = [(part if _planar(directory) else np.moveaxis(part, -1, 0))[0].ravel() for part in parts]
    return dark_end(np.concatenate(first))


def _coarsest(directories: Sequence[ImageFileDirectory]) -> int | None:
    """The smallest overview of the image itself: masks are overviews of their own."""
    sizes = {i: d.image_width for i, d in enumerate(directories) if i > 0 and d.new_subfile_type == 1}
    small = {i: width for i, width in sizes.items() if width <= _OVERVIEW_PX and directories[i].tile_width}
    return min(small, key=lambda i: small[i], default=None)
