"""Files: written whole or not at all, and what was made of one, remembered while it stays the same."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside this one to write to, with the same ending; it takes this one's place when nothing was raised."""
    part = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class FileMemo(Generic[T]):
    """What was made of the last few files, each once; a file that changed is another file."""

    def __init__(self, keep: int = 2) -> None:
        self._keep = keep
        self.made: OrderedDict[tuple[str, int, int, str], T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, make: Callable[[], T], kind: str = "") -> T:
        """What was made of a file as it is now, or what `make` makes; `kind` tells several things of one file apart."""
        status = file.stat()
        key = (str(file.resolve()), status.st_mtime_ns, status.st_size, kind)
        with self._lock:
            if key not in self.made:
                self.made[key] = make()
            self.made.move_to_end(key)
            while len(self.made) > self._keep:
                self.made.popitem(last=False)
            return self.made[key]
