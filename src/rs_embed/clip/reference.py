"""From a checkpoint's reference to a file on this machine; an existing path wins over a hub repo of the same name."""

from __future__ import annotations

from pathlib import Path

from rs_embed.clip.checkpoint import find_file
from rs_embed.errors import missing_core


def resolve(reference: str) -> Path:
    """The weights file that a reference names, downloaded where it is not on this machine yet.

    Raises:
        CheckpointError: when it cannot be had, with how to get it.
    """
    text = reference.removeprefix("hf:").strip()
    local = _local_file(text)
    if local is not None:
        return local
    try:
        from rs_embed.clip.hub import fetch  # its client takes a tenth of a second to import
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    return fetch(text)


def _local_file(text: str) -> Path | None:
    """The file on this machine that a reference names, or None where it can only be a repo."""
    if not text:
        return None  # Path("") would be the working folder
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return find_file(path)
    folder, colon, name = text.rpartition(":")
    if colon and Path(folder).expanduser().is_dir():
        return find_file(Path(folder).expanduser(), name)
    return None
