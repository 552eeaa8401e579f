"""Files below a folder or in a zip archive, listed once, and what is found among them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from rs_embed.errors import ProviderError
from rs_embed.providers.raster import RasterHeader, read_header
from rs_embed.providers.scenes import BandFile, Scene

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".img")
SERIES_SUFFIX = ".nc"
_STRAY_FOLDER = "__MACOSX"


@dataclass(frozen=True, slots=True)
class FileTree:
    """Files below a folder, or in a zip archive, by their path relative to it; stray and hidden ones are left out."""

    root: Path  # absolute, without links
    names: tuple[str, ...]  # relative, with forward slashes
    is_zip: bool = False

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a small file; one that is larger than the limit, or damaged, is a ProviderError."""
        try:
            if self.is_zip:
                with zipfile.ZipFile(self.root) as archive, archive.open(name) as file:
                    data = file.read(limit_bytes + 1)
            else:
                with (self.root / name).open("rb") as file:
                    data = file.read(limit_bytes + 1)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise ProviderError(f"{name} cannot be read: {error}") from error
        if len(data) > limit_bytes:
            raise ProviderError(f"{name} is larger than {limit_bytes >> 20} MB: it is no metadata of a scene")
        return data

    def raster_path(self, name: str) -> str:
        """Return the path under which GDAL opens a file."""
        return f"/vsizip/{{{self.root}}}/{name}" if self.is_zip else f"{self.root}/{name}"

    def with_suffix(self, *suffixes: str) -> Iterator[str]:
        """Yield the files with one of some endings, in lower case."""
        return (name for name in self.names if name.lower().endswith(suffixes))


@dataclass(slots=True)
class Found:
    """Scenes of a folder so far, the files that they account for, and why others are left out."""

    scenes: list[Scene] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # imagery that is no scene, with the reason
    unread: list[str] = field(default_factory=list)  # other files that cannot be read: they cost only themselves
    known: set[str] = field(default_factory=set)  # paths of files that need no other explanation
    described_folders: set[str] = field(default_factory=set)  # their items tell the bands: no file name does


def folders_of(name: str) -> Iterator[str]:
    """Yield the folders in which a file lies, from the outermost, `"."`, inwards."""
    yield "."
    yield from accumulate(name.split("/")[:-1], "{}/{}".format)


def open_tree(root: Path) -> FileTree:
    """List a folder, a zip archive, or a single file."""
    root = root.resolve()
    if root.is_dir():
        return FileTree(root, tuple(_walk(root)))
    if root.suffix.lower() == ".zip":
        return open_zip(root)
    return FileTree(root.parent, (root.name,))


def open_zip(path: Path) -> FileTree:
    """List an archive without unpacking it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise ProviderError(f"{path.name} is no zip archive that can be read: {error}") from error
    return FileTree(path, tuple(sorted(m for m in members if not any(map(_is_stray, m.split("/"))))), is_zip=True)


def first_header(files: Sequence[BandFile]) -> RasterHeader:
    """Return the header of the first file that opens: bands share an extent, and a broken one is told when it is read.

    The first error is raised when none opens.
    """
    faults: list[ProviderError] = []
    for file in files:
        try:
            return read_header(file.path)
        except ProviderError as error:
            faults.append(error)
    raise faults[0]


def _walk(root: Path) -> Iterable[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_stray(name))
        base = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if not _is_stray(name) and os.path.isfile(f"{folder}/{name}"):  # no pipe, no dangling link
                yield name if base == "." else f"{base}/{name}"


def _is_stray(name: str) -> bool:
    """Tell if a file or folder is a by-product: hidden (`._B04.tif` of macOS), or GDAL's `.aux.xml`."""
    return name.startswith(".") or name == _STRAY_FOLDER or name.lower().endswith(".aux.xml")
