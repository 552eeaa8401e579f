"""Files that are read block by block: COGs by the fast reader, every other raster by GDAL, with equal pixels."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rs_embed.arrays import AnyArray
from rs_embed.background import run_coroutine
from rs_embed.errors import FetchError
from rs_embed.providers.gdal import open_gdal
from rs_embed.providers.ranges import ByteReader, FileReader, is_remote
from rs_embed.providers.raster import BlockGrid, driver_by_name
from rs_embed.providers.stac.cog import NotFastError, open_cog
from rs_embed.providers.stac.offsets import DarkPixels

if TYPE_CHECKING:
    from rs_embed.providers.http import Signer


class BlockFile(Protocol):
    """One raster whose header is read."""

    @property
    def name(self) -> str:
        """Name of the file, for errors."""

    @property
    def grid(self) -> BlockGrid:
        """Pixel grid and size of the blocks."""

    @property
    def count(self) -> int:
        """Number of bands."""

    @property
    def nodata(self) -> float | None:
        """Value that the file declares as no data; 0 is no data beside it."""

    @property
    def value_bytes(self) -> int:
        """Size of one value when decoded."""

    @property
    def blocks_at_once(self) -> int:
        """Largest number of blocks of one row that are best fetched together."""

    @property
    def bands_at_once(self) -> int:
        """Largest number of bands that are best fetched together."""

    def scale_and_offset(self, band: int) -> tuple[float, float]:
        """Return the tags of a band (from 0): reflectance = value * scale + offset; 1 and 0 when it has none."""

    def is_contiguous(self, row: int, col: int) -> bool:
        """Return True when a block and the one to the right are best fetched together."""

    async def fetch_blocks(
        self, row: int, cols: Sequence[int], bands: Sequence[int] | None = None
    ) -> list[AnyArray | FetchError | None]:
        """Fetch some bands (from 0; None: all) of adjacent blocks (bands, y, x) of one row, each decoded once.

        An error stands in for a block that cannot be read, None for one that the file leaves out, which is no data.
        """

    async def fetch_dark_pixels(self) -> DarkPixels | None:
        """Return the dark end of the first band's histogram, from the coarsest overview; None without one."""


async def open_block_file(reader: ByteReader | None, url: str, *, with_overview: bool = False) -> BlockFile:
    """Read the header of a file at an address, or on disk, and decide once and for all how its blocks are read.

    A local file needs no reader. A file that cannot be read is a FetchError.
    """
    remote = reader if is_remote(url) else None
    if remote is None and _needs_gdal(url):
        return await open_gdal(url)
    source = remote or FileReader()
    keep_beginning = False
    try:
        cog = await open_cog(source, url, with_overview=with_overview)
        keep_beginning = with_overview
        return cog
    except NotFastError:
        return await open_gdal(url, remote)
    finally:
        if not keep_beginning:
            source.beginnings.pop(url, None)


def _needs_gdal(path: str) -> bool:
    """Tell if only GDAL opens a local file, or if something beside it changes its pixels or tags."""
    is_plain = driver_by_name(path) in ("GTiff", "JP2OpenJPEG") and not path.startswith("/vsizip/")
    return not is_plain or any(os.path.exists(f"{path}{ending}") for ending in (".aux.xml", ".msk"))


def fetch_dark_pixels(path: str, signer: Signer | None) -> DarkPixels | None:
    """Fetch the dark end of one file's histogram; None where it cannot be read."""
    from rs_embed.providers.http import RangeReader, new_client

    async def fetch() -> DarkPixels | None:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(1), signer)
            try:
                return await (await open_block_file(reader, path, with_overview=True)).fetch_dark_pixels()
            except FetchError:
                return None

    return run_coroutine(fetch())
