"""The sha256 of a large file, computed beside other work: 605 MB take a third of a second.

A request begins it before it imports torch, which keeps one processor busy for longer than that.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path

from rs_embed.errors import CheckpointError
from rs_embed.files import FileMemo


class FileDigest:
    """Begins when it is made; `str()` waits for it.

    Raises:
        CheckpointError: from `str()`, where the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._found: Future[str] = Future()
        # a daemon: a program that ends, or a wrong file that is refused, does not wait for it
        threading.Thread(target=self._run, args=(self._found,), name="rs-embed-digest", daemon=True).start()

    def _run(self, found: Future[str]) -> None:
        try:
            found.set_result(_sha256(self._file))
        except OSError as error:
            found.set_exception(CheckpointError(f"{self._file} cannot be read: {error.strerror or error}"))
        except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
            found.set_exception(error)

    def __str__(self) -> str:
        if self._found.done() and self._found.exception() is not None:
            self._begin()  # what failed once may have been a network drive's hiccup
        return self._found.result()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Another process gets the digest itself."""
        return str, (str(self),)


def _sha256(file: Path) -> str:
    """In large blocks: between two of them this thread waits its turn behind one that imports."""
    found, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            found.update(memoryview(block)[:count])
    return found.hexdigest()


_BLOCK_BYTES = 1 << 24
_begun: FileMemo[FileDigest] = FileMemo(keep=4)


def digest_of(file: Path) -> FileDigest:
    """The digest of a file as it is now, begun where it was not yet; the last ones are remembered."""
    return _begun.get(file, lambda: FileDigest(file))
