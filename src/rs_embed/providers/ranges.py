"""Byte ranges of files: what a reader of rasters asks for, over HTTP (`http`) or from a disk of this machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from rs_embed.errors import FetchError

JOIN_GAP_BYTES = 4096  # largest gap between two ranges that are fetched with one request


class ByteReader(Protocol):
    """A reader of byte ranges: an obspec `GetRangeAsync` and `GetRangesAsync`, which async-tiff asks."""

    faults: dict[str, str]  # by address, since async-tiff replaces our errors by its own
    beginnings: dict[str, bytes]  # of files, read ahead; ranges inside cause no request
    sizes: dict[str, int]  # bytes of each file, where they are known

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Fetch the bytes from `start` to `end` (exclusive) of a file, fewer at its end."""

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Sequence[bytes]:
        """Fetch several ranges of a file."""


@dataclass(slots=True, repr=False)  # async-tiff asks for the repr again and again
class FileReader:
    """Reader of byte ranges of local files; each read opens its file, so that thousands of files are no limit."""

    faults: dict[str, str] = field(default_factory=dict)
    beginnings: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Read the bytes from `start` to `end` (exclusive) of a file, fewer at its end."""
        stop = end if end is not None else start + (length or 0)
        if min(stop, self.sizes.get(path, stop)) <= len(self.beginnings.get(path, b"")):
            return self.beginnings[path][start:stop]
        return (await self.get_ranges_async(path, starts=[start], ends=[stop]))[0]

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Read several ranges of a file."""
        stops = ends if ends is not None else [a + n for a, n in zip(starts, lengths or (), strict=True)]
        try:
            return await asyncio.to_thread(self._read, path, list(zip(starts, stops, strict=True)))
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
