"""Checks of a dataset that somebody else may have written: no path leaves its folder, and damage is one error."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from rs_embed.errors import RSEmbedError

RESTORE = "copy the dataset again, or restore the file from a copy"
MAKE_AGAIN = "copy it again, or delete it and run the same export again"


def inside(root: Path, path: Path) -> Path:
    """Return a path in a folder; an RSEmbedError refuses a link that leads out of it."""
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise RSEmbedError(
            f"{path} is a link that leads out of the dataset: put a copy of what it points at in its place (a download "
            "from the hub does so with local_dir=)"
        )
    return path


def regular_file(root: Path, file: Path) -> Path:
    """Return a file in a folder; an RSEmbedError refuses a link out of it, and what is no regular file."""
    if not inside(root, file).is_file():
        raise RSEmbedError(f"{file} is no regular file: delete it")
    return file


@contextmanager
def reading(file: Path, remedy: str = MAKE_AGAIN) -> Iterator[None]:
    """Turn what readers of JSON and Parquet raise for a damaged file into an RSEmbedError that names the file."""
    try:
        yield
    except RSEmbedError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise RSEmbedError(f"{file} is damaged ({reason:.200}): {remedy}") from error


def check_counts(values: object, *names: str) -> None:
    """Raise a ValueError unless these values, all by default, are whole numbers of at least 0."""
    if not isinstance(values, Mapping):
        raise ValueError(f"counts are an object, got {values!r:.40}")
    for name in names or values:
        if isinstance(values[name], bool) or not isinstance(values[name], int) or values[name] < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {values[name]!r:.40}")
