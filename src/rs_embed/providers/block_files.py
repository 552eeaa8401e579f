"""Files that are read block by block: COGs by the fast reader, every other raster by GDAL, with equal pixels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from rs_embed.arrays import AnyArray
from rs_embed.background import run_coroutine
from rs_embed.providers.gdal import open_gdal
from rs_embed.providers.http import FetchError, RangeReader, Signer, new_client
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.stac.cog import NotFastError, open_cog
from rs_embed.providers.stac.offsets import DarkPixels


class BlockFile(Protocol):
    """One raster whose header is read."""

    @property
    def grid(self) -> BlockGrid:
        """Pixel grid and size of the blocks."""

    @property
    def count(self) -> int:
        """Number of bands."""

    @property
    def nodata(self) -> float | None:
        """Value that the file declares as no data; 0 is no data beside it."""

    def scale_and_offset(self, band: int) -> tuple[float, float]:
        """Return the tags of a band (from 0): reflectance = value * scale + offset; 1 and 0 when it has none."""

    def is_contiguous(self, row: int, col: int) -> bool:
        """Return True when a block and the one to the right are best fetched together."""

    async def fetch_blocks(self, row: int, cols: Sequence[int]) -> list[AnyArray | FetchError | None]:
        """Fetch adjacent blocks (bands, y, x) of one row, each decoded once.

        An error stands in for a block that cannot be read, None for one that the file leaves out, which is no data.
        """

    async def fetch_dark_pixels(self) -> DarkPixels | None:
        """Return the dark end of the first band's histogram, from the coarsest overview; None without one."""


async def open_block_file(reader: RangeReader, url: str, *, with_overview: bool = False) -> BlockFile:
    """Read the header of a file at an address, or on disk, and decide once and for all how its blocks are read.

    A file that cannot be read is a FetchError.
    """
    if not url.startswith(("http://", "https://")):
        return await open_gdal(url)
    keep_beginning = False
    try:
        cog = await open_cog(reader, url, with_overview=with_overview)
        keep_beginning = with_overview
        return cog
    except NotFastError:
        return await open_gdal(url, reader)
    finally:
        if not keep_beginning:
            reader.beginnings.pop(url, None)


def fetch_dark_pixels(path: str, signer: Signer | None) -> DarkPixels | None:
    """Fetch the dark end of one file's histogram; None where it cannot be read."""

    async def fetch() -> DarkPixels | None:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(1), signer)
            try:
                return await (await open_block_file(reader, path, with_overview=True)).fetch_dark_pixels()
            except FetchError:
                return None

    return run_coroutine(fetch())
