"""Files: written whole or not at all, read within limits, and what was made of one, remembered while it is the same."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from rs_embed.errors import RSEmbedError

T = TypeVar("T")


@contextmanager
def atomic_write(path: Path, *, scratch: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path with the same ending; the file written there replaces `path` when the block ends.

    A block that raises leaves `path` as it was, and no temporary file. `scratch` is a folder on the same disk for the
    temporary file; `durable` flushes the file to the disk, so that it survives a power cut.
    """
    part = temporary_beside(path, scratch)
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


def read_json(file: Path, limit_bytes: int = 8 << 20, encoding: str = "utf-8") -> Any:
    """Read a JSON file that somebody else may have written. In memory it may take thirty times its size.

    Raises:
        OSError: for a file that is missing or cannot be read.
        ValueError: for one that is no regular file, too large, no UTF-8, no JSON, or nested too deep.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise ValueError("it is no regular file")
    if status.st_size > limit_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes, at most {limit_bytes:,} are read")
    try:
        return json.loads(file.read_text(encoding=encoding))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def temporary_beside(path: Path, scratch: Path | None = None) -> Path:
    """Return a path that no other process uses, with the same ending, in the same or another folder.

    It is random, because two containers that share a folder may well have equal process numbers.
    """
    return (scratch or path.parent) / f".{uuid.uuid4().hex[:12]}.part.{path.name}"


def make_folder(path: Path) -> Path:
    """Make a folder and its parents unless they exist, and return it; a refusal of the system is our error."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def remove(path: Path) -> None:
    """Remove a file if there is one; a refusal of the system is our error."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> RSEmbedError:
    """Return our error for a file or folder that the system refuses to write, with the remedy."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "make room" if full else "check the folder and its permissions"
    return RSEmbedError(f"{path} cannot be written ({error.strerror or error}): {remedy}, then run the same again")


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk and no longer in a buffer of the system."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileMemo(Generic[T]):
    """Memo of results keyed by path and state of a file and of those that belong to it; the last few are kept."""

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self.made: OrderedDict[tuple[object, ...], T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, make: Callable[[], T], kind: str = "", beside: Sequence[str] = ()) -> T:
        """Return the result for the file as it is now, from the memo or from `make`; `kind` tells results apart.

        `beside` names files in the same folder that the result depends on too, whether or not they exist.
        """
        key = (str(file.resolve()), _state(file.stat()), *map(_state_of, map(file.with_name, beside)), kind)
        with self._lock:
            if key not in self.made:
                self.made[key] = make()
            self.made.move_to_end(key)
            while len(self.made) > self._keep:
                self.made.popitem(last=False)
            return self.made[key]


def _state_of(file: Path) -> tuple[int, ...] | None:
    """Return the state of a file; None for one that is missing."""
    try:
        return _state(file.stat())
    except OSError:
        return None


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return numbers that differ once a file was replaced, also by one of the same size and modification time."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
