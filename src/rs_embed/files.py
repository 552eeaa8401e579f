"""Files: written whole or not at all, and what was made of one, remembered while it stays the same."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from rs_embed.errors import RSEmbedError

T = TypeVar("T")


@contextmanager
def atomic_write(path: Path, *, scratch: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path with the same ending; the file written there replaces `path` when the block ends.

    A block that raises leaves `path` as it was, and no temporary file. `scratch` is a folder on the same disk for the
    temporary file; `durable` flushes the file to the disk, so that it survives a power cut.
    """
    part = (scratch or path.parent) / f".{uuid.uuid4().hex[:12]}.part.{path.name}"
    try:
        yield part
        if durable:
            flush(part)
        os.replace(part, path)
        if durable:
            flush(path.parent)
    except OSError as error:
        if error.errno is None:  # a library's own error, not one of the system
            raise
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def cannot_write(path: Path, error: OSError) -> RSEmbedError:
    """Return our error for a file or folder that the system refuses to write, with the remedy."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if full else "check the folder and its permissions"
    return RSEmbedError(f"{path} cannot be written ({error.strerror}): {remedy}, then run the same again")


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk and no longer in a buffer of the system."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileMemo(Generic[T]):
    """Memo of results keyed by path, modification time and size of a file; the last few are kept."""

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self.made: OrderedDict[tuple[str, int, int, str], T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, make: Callable[[], T], kind: str = "") -> T:
        """Return the result for the file as it is now, from the memo or from `make`; `kind` tells results apart."""
        status = file.stat()
        key = (str(file.resolve()), status.st_mtime_ns, status.st_size, kind)
        with self._lock:
            if key not in self.made:
                self.made[key] = make()
            self.made.move_to_end(key)
            while len(self.made) > self._keep:
                self.made.popitem(last=False)
            return self.made[key]
