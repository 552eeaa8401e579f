"""The sha256 of a weights file, computed in a background thread.

A digest of 605 MB takes a third of a second. A request starts it before it imports torch, which takes longer.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path

from rs_embed.errors import CheckpointError
from rs_embed.files import FileMemo

_BLOCK_BYTES = 1 << 24
"""Large blocks: after each of them the thread waits for the interpreter lock, which an import holds for long."""

_digests: FileMemo[Future[str]] = FileMemo(keep=4)


def digest_of(file: Path) -> Future[str]:
    """Start the sha256 of a file, or return the one that was started for the file as it is now.

    The result is hexadecimal; it raises CheckpointError if the file cannot be read. A digest that failed is started
    again, because a network drive may have been away for a moment.
    """
    digest = _digests.get(file, lambda: _start(file))
    if digest.done() and digest.exception() is not None:
        _digests.made.clear()
        digest = _digests.get(file, lambda: _start(file))
    return digest


def _start(file: Path) -> Future[str]:
    digest: Future[str] = Future()

    def run() -> None:
        try:
            digest.set_result(_sha256(file))
        except OSError as error:
            digest.set_exception(CheckpointError(f"{file} cannot be read: {error.strerror or error}"))
        except BaseException as error:  # noqa: BLE001  (raised by result())
            digest.set_exception(error)

    # a daemon thread, so that a program that ends does not wait for it
    threading.Thread(target=run, name="rs-embed-digest", daemon=True).start()
    return digest


def _sha256(file: Path) -> str:
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256", _bufsize=_BLOCK_BYTES).hexdigest()
