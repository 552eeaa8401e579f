"""The weights file that a reference names: a path, which wins over a hub repo of the same name."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from rs_embed.errors import CheckpointError, missing_core

PREFERRED = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def resolve(reference: str) -> Path:
    """Return the weights file that a reference names, downloaded if it is not on this machine yet."""
    if (file := find_cached(reference)) is not None:
        return file
    hub = _import_hub()
    repo = _parse(hub, reference)
    names = hub.list_files(repo)
    name = choose_file(names, str(repo)) if repo.file is None else repo.file
    return Path(hub.download_weights(repo, name, names))


def find_cached(reference: str) -> Path | None:
    """Return the weights file that a reference names if it is on this machine: a path, or a repo fetched before."""
    if (local := local_file(reference)) is not None:
        return local
    hub = _import_hub()
    repo = _parse(hub, reference)
    if (snapshot := hub.snapshot(repo)) is not None:
        with suppress(CheckpointError):  # only other files of the repo are cached
            return find_file(snapshot, repo.file)
    return None


def _parse(hub: Any, reference: str) -> Any:
    """Parse a hub repo; a name that ends as weights do is a file that is not there."""
    text = _without_prefix(reference)
    if ":" not in text and text.endswith(_SUFFIXES):
        raise CheckpointError(
            f"checkpoint {text!r} is no file or folder that exists: check the path (a hub's file is owner/name:file)"
        )
    return hub.parse(text)


def _import_hub() -> Any:
    try:
        from rs_embed.clip import hub  # its client takes a tenth of a second to import
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    return hub


def local_file(reference: str) -> Path | None:
    """Return the file on this machine that a reference names, or None if it can only be a hub repo."""
    text = _without_prefix(reference)
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


def _without_prefix(reference: str) -> str:
    return reference.removeprefix("hf:").strip()


def choose_file(names: Iterable[str], where: str) -> str:
    """Return the weights file among the names of a folder or repo."""
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
    """Return the weights file of a folder; `name` chooses one of several and cannot point outside it."""
    if name is None:
        return folder / choose_file((path.name for path in folder.iterdir()), str(folder))
    file = folder / name
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not file.is_file():
        raise CheckpointError(f"{folder} holds no file {name!r}")
    return file
