"""Files over HTTP as streams that GDAL reads from."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass

from rs_embed.errors import FetchError


@dataclass(slots=True)
class Content:
    """Bytes of one file over HTTP, fetched as GDAL asks for them; what is read in sequence is read ahead."""

    fetch: Callable[[int, int], bytes]
    size: int
    pieces: deque[tuple[int, bytes]]  # start and bytes of what was fetched, the oldest first
    fault: str | None = None
    _ahead_bytes: int = 1 << 15

    def opener(self, name: str) -> Callable[..., io.RawIOBase]:
        """Return a function that opens the file by this name, and no file beside it."""

        def open_stream(path: str, mode: str = "rb") -> io.RawIOBase:
            if not path.endswith(name) or not mode.startswith("r"):
                raise FileNotFoundError(path)
            return _Stream(self)

        return open_stream

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes of the file; fewer when a request fails, whose error is kept in `fault`."""
        parts = []
        while start < min(stop, self.size) and self.fault is None:
            first, data = self._piece_at(start) or self._fetch_piece(start, stop)
            part = data[start - first : stop - first]
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def _piece_at(self, start: int) -> tuple[int, bytes] | None:
        return next((piece for piece in reversed(self.pieces) if piece[0] <= start < piece[0] + len(piece[1])), None)

    def _fetch_piece(self, start: int, stop: int) -> tuple[int, bytes]:
        in_sequence = bool(self.pieces) and sum((self.pieces[-1][0], len(self.pieces[-1][1]))) == start
        self._ahead_bytes = min(2 * self._ahead_bytes, 1 << 21) if in_sequence else 1 << 15
        data = b""
        try:
            data = self.fetch(start, min(max(stop, start + self._ahead_bytes), self.size))
        except (FetchError, RuntimeError, CancelledError) as error:  # the others when the sweep is closed
            self.fault = str(error) or type(error).__name__
        if not data and self.fault is None:
            self.fault = "the file is shorter than its server says"
        self.pieces.append((start, data))
        return start, data


class _Stream(io.RawIOBase):
    """One handle of GDAL to a file, with a position of its own."""

    def __init__(self, content: Content) -> None:
        self._content, self._position = content, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence, self._content.size)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        stop = self._content.size if size < 0 else self._position + size
        data = self._content.read(self._position, stop)
        self._position += len(data)
        return data
