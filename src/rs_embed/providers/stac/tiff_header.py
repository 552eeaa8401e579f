"""A walk over the directories of a TIFF before a native library reads them: their sizes and offsets must be possible.

Source: https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, https://www.awaresystems.be/imaging/tiff/bigtiff.html
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_MOST_DIRECTORIES = 64  # overviews and masks of the largest raster that TIFF can hold, twice
_MOST_ENTRIES = 1024
_LONGEST_TAG_BYTES = 1 << 26  # where the server does not tell the size of a file
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

Read = Callable[[int, int], Awaitable[bytes]]
"""Function that returns the bytes from a start to a stop (exclusive), fewer at the end of the file."""


class ImpossibleHeaderError(ValueError):
    """A header that no TIFF of this size can have; the text says why."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and field sizes: those of TIFF, or of BigTIFF."""

    order: str
    is_big: bool

    def directory(self, data: bytes) -> int:
        """Return the number of entries that a directory begins with."""
        return int(self._unpack("Q" if self.is_big else "H", data))

    def offset(self, data: bytes) -> int:
        """Return an offset."""
        return int(self._unpack("Q" if self.is_big else "I", data))

    def entry(self, data: bytes) -> tuple[int, int, int, int]:
        """Return tag, type, count and value or offset of a directory's entry."""
        tag, kind, count, value = struct.unpack(self.order + ("HHQQ" if self.is_big else "HHII"), data)
        return tag, kind, count, value

    def _unpack(self, code: str, data: bytes) -> int:
        if len(data) < struct.calcsize(code):
            raise ImpossibleHeaderError("it ends within its header")
        (value,) = struct.unpack(self.order + code, data)
        return int(value)


async def check_header(read: Read, file_bytes: int | None) -> None:
    """Walk over the directories of a TIFF; raise an ImpossibleHeaderError if no file of this size can have them."""
    start = await read(0, 16)
    layout = _Layout("<" if start[:2] == b"II" else ">", is_big=start[:4] in MAGIC[2:])
    counted, entry_bytes, offset_bytes = (8, 20, 8) if layout.is_big else (2, 12, 4)
    position = layout.offset(start[8:16] if layout.is_big else start[4:8])
    visited: set[int] = set()
    while position:
        if position in visited or len(visited) == _MOST_DIRECTORIES:
            raise ImpossibleHeaderError("its directories point to each other, or are too many")
        visited.add(position)
        entries = layout.directory(await read(position, position + counted))
        if entries > _MOST_ENTRIES:
            raise ImpossibleHeaderError(f"a directory has {entries} entries")
        first = position + counted
        data = await read(first, first + entries * entry_bytes + offset_bytes)
        for i in range(entries):
            _check_entry(layout, data[i * entry_bytes : (i + 1) * entry_bytes], entry_bytes, file_bytes)
        position = layout.offset(data[entries * entry_bytes :])


def _check_entry(layout: _Layout, data: bytes, entry_bytes: int, file_bytes: int | None) -> None:
    if len(data) < entry_bytes:
        raise ImpossibleHeaderError("it ends within its header")
    tag, kind, count, value = layout.entry(data)
    size = count * _TYPE_BYTES.get(kind, 1)
    limit = value + _LONGEST_TAG_BYTES if file_bytes is None else file_bytes
    if size > (8 if layout.is_big else 4) and value + size > limit:
        raise ImpossibleHeaderError(f"tag {tag} has {count} values, which are more than its file holds")
