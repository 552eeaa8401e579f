"""Byte ranges of files: what a reader of rasters asks for, over HTTP (`http`) or from a disk of this machine."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from rs_embed.errors import FetchError

JOIN_GAP_BYTES = 4096  # largest gap between two ranges that are fetched with one request


@dataclass(slots=True, repr=False, kw_only=True)  # async-tiff asks for the repr again and again
class ByteReader(ABC):
    """A reader of byte ranges: an obspec `GetRangeAsync` and `GetRangesAsync`, which async-tiff asks."""

    faults: dict[str, str] = field(default_factory=dict)  # by address, since async-tiff replaces our errors by its own
    beginnings: dict[str, bytes] = field(default_factory=dict)  # of files, read ahead; ranges inside cause no request
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file, where they are known

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Fetch the bytes from `start` to `end` (exclusive) of a file, fewer at its end."""
        stop = end if end is not None else start + (length or 0)
        if min(stop, self.sizes.get(path, stop)) <= len(self.beginnings.get(path, b"")):
            return self.beginnings[path][start:stop]
        return await self.fetch(path, start, stop)

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Fetch several ranges of a file."""
        stops = ends if ends is not None else [a + n for a, n in zip(starts, lengths or (), strict=True)]
        return await self.fetch_several(path, list(zip(starts, stops, strict=True)))

    @abstractmethod
    async def fetch(self, path: str, start: int, stop: int) -> bytes:
        """Fetch bytes that were not read ahead."""

    @abstractmethod
    async def fetch_several(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Fetch several ranges (start and stop) of a file, in their order."""


@dataclass(slots=True, repr=False)
class FileReader(ByteReader):
    """Reader of byte ranges of local files; each read opens its file, so that thousands of files are no limit."""

    async def fetch(self, path: str, start: int, stop: int) -> bytes:
        """Read bytes that were not read ahead."""
        return (await self.fetch_several(path, [(start, stop)]))[0]

    async def fetch_several(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges of a file."""
        try:
            return await asyncio.to_thread(self._read, path, ranges)
        except OSError as error:
            self.faults[path] = f"{file_name(path)} cannot be read ({error.strerror})"
            raise FetchError(self.faults[path]) from error

    def _read(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        with open(path, "rb", buffering=0) as file:
            size = self.sizes[path] = os.fstat(file.fileno()).st_size
            parts = []
            for start, stop in ranges:
                file.seek(start)
                parts.append(file.read(max(0, min(stop, size) - start)))
            return parts


def is_remote(address: str) -> bool:
    """Tell if an address leads over HTTP, and not to a file of this machine."""
    return address.startswith(("http://", "https://"))


def file_name(address: str) -> str:
    """Return the name of the file at an address, for errors."""
    return PurePosixPath(urlsplit(address).path if is_remote(address) else address).name
