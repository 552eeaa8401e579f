"""The sha256 of a large file, computed beside other work: 605 MB take a third of a second.

A request begins it before it imports torch, which keeps one processor busy for longer than that.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

from rs_embed.errors import CheckpointError


class FileDigest:
    """Begins when it is made; `str()` waits for it.

    Raises:
        CheckpointError: from `str()`, where the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._found: Future[str] = Future()
        # a daemon: a program that ends, or a wrong file that is refused, does not wait for it
        threading.Thread(target=self._run, args=(file,), name="rs-embed-digest", daemon=True).start()

    def _run(self, file: Path) -> None:
        try:
            self._found.set_result(_sha256(file))
        except OSError as error:
            self._found.set_exception(CheckpointError(f"{file} cannot be read: {error.strerror or error}"))
        except BaseException as error:  # noqa: BLE001  (handed to whoever waits)
            self._found.set_exception(error)

    def __str__(self) -> str:
        return self._found.result()

    @property
    def failed(self) -> bool:
        """Whether the file could not be read."""
        return self._found.done() and self._found.exception() is not None

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
_KEPT = 4
_begun: OrderedDict[tuple[str, int, int], FileDigest] = OrderedDict()
_beginning = threading.Lock()


def digest_of(file: Path) -> FileDigest:
    """The digest of a file as it is now, begun where it was not yet; the last ones are remembered."""
    status = file.stat()
    key = str(file.resolve()), status.st_mtime_ns, status.st_size
    with _beginning:
        if key not in _begun or _begun[key].failed:
            _begun[key] = FileDigest(file)
        _begun.move_to_end(key)
        while len(_begun) > _KEPT:
            _begun.popitem(last=False)
        return _begun[key]
