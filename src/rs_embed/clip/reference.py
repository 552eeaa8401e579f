"""From a checkpoint's reference to a file on this machine; an existing path wins over a hub repo of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rs_embed.errors import CheckpointError, missing_core

PREFERRED = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def resolve(reference: str) -> Path:
    """The weights file that a reference names, downloaded where it is not on this machine yet.

    Raises:
        CheckpointError: when it cannot be had, with how to get it.
    """
    if (local := local_file(reference)) is not None:
        return local
    try:
        from rs_embed.clip.hub import fetch  # its client takes a tenth of a second to import
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    return fetch(_bare(reference))


def local_file(reference: str) -> Path | None:
    """The file on this machine that a reference names, or None where it can only be a repo."""
    text = _bare(reference)
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


def _bare(reference: str) -> str:
    return reference.removeprefix("hf:").strip()


def choose_file(names: Iterable[str], where: str) -> str:
    """The weights file among the names of a folder or repo.

    Raises:
        CheckpointError: when there is none, several that could be meant, or only parts of one.
    """
    top = [name for name in names if "/" not in name and name.endswith(_SUFFIXES)]
    for name in PREFERRED:
        if name in top:
            return name
    if len(top) == 1:
        return top[0]
    if any("-of-0" in name for name in top):
        raise CheckpointError(f"{where} holds weights cut into parts ({min(top)}, …): join them into one file first")
    if top:
        raise CheckpointError(f"{where} holds {', '.join(sorted(top))}: name one of them, as {where}:{min(top)}")
    raise CheckpointError(f"{where} holds no weights ({PREFERRED[0]}, or one file ending in {', '.join(_SUFFIXES)})")


def find_file(folder: Path, name: str | None = None) -> Path:
    """The weights file of a folder; `name` chooses one of several and cannot lead out of it.

    Raises:
        CheckpointError: when there is none.
    """
    if name is None:
        return folder / choose_file((path.name for path in folder.iterdir()), str(folder))
    file = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not file.is_file():
        raise CheckpointError(f"{folder} holds no file {name!r}")
    return file
