"""Rasters whose bands are told by file names (`…_B04.tif`) or by the descriptions of their bands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from rs_embed.errors import ProviderError
from rs_embed.providers.local.names import acquisition_time, is_no_reflectance, level_of, other_mission
from rs_embed.providers.local.tree import RASTER_SUFFIXES, FileTree, Found, first_header, folders_of
from rs_embed.providers.raster import RasterHeader, read_header
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import L1C_COLLECTION, RGB_BANDS, band_in_text, canonical_band

_BAND = re.compile(r"(?:^|[_.\- ])(B\d{1,2}A?|SCL)(?=[_.\- ]|$)", re.IGNORECASE)
_RESOLUTION = re.compile(r"_(10|20|60)m$", re.IGNORECASE)
_RESOLUTION_FOLDER = re.compile(r"R(10|20|60)m$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _NamedRaster:
    """One raster, and the band, scene and resolution in its name."""

    path: str
    name: str
    band: str | None  # band of the file; None where it holds several
    scene: str
    resolution: int  # metres; 0 where the name states none


def find_named(tree: FileTree, found: Found) -> None:
    """Add a scene for each group of rasters that have a name in common but for the band."""
    groups: dict[str, list[_NamedRaster]] = defaultdict(list)
    for name in () if tree.is_zip else tree.with_suffix(*RASTER_SUFFIXES):
        if tree.raster_path(name) in found.known or not found.described_folders.isdisjoint(folders_of(name)):
            continue
        if not is_no_reflectance(PurePosixPath(name).stem):
            named = _read_name(tree, name)
            groups[named.scene].append(named)
    for key, files in groups.items():
        try:
            found.scenes.append(_scene(key, files, tree, found))
        except ProviderError as error:
            found.left_out.append(str(error))


def _read_name(tree: FileTree, name: str) -> _NamedRaster:
    path = PurePosixPath(name)
    folder = path.parent.parent if _RESOLUTION_FOLDER.match(path.parent.name) else path.parent
    resolution = _RESOLUTION.search(path.stem)
    stem = _RESOLUTION.sub("", path.stem)
    match = _BAND.search(stem)
    band = canonical_band(match[1]) if match else None
    key = stem if match is None else (stem[: match.start()] + stem[match.end() :]).strip("_.- ")
    scene = "/".join(part for part in (*folder.parts, key) if part) or tree.root.name
    return _NamedRaster(tree.raster_path(name), name, band, scene, int(resolution[1]) if resolution else 0)


def _scene(key: str, files: Sequence[_NamedRaster], tree: FileTree, found: Found) -> Scene:
    names = (key, tree.root.name, str(tree.root))
    mission = other_mission(f"{tree.root.name}/{files[0].name}")
    if mission is not None:
        raise ProviderError(f"{files[0].name} is of {mission}, and not of Sentinel-2")
    acquired = acquisition_time(names)
    if acquired is None:
        raise ProviderError(f"{files[0].name} has no date: name it as Sentinel-2 does, or with YYYY-MM-DD")
    header, bands = _read_bands(files, found)
    return Scene(
        id=key,
        acquired=acquired,
        bounds=header.bounds_lonlat,
        files=bands,
        collection=L1C_COLLECTION if level_of(names) == "L1C" else None,
        names=names,
    )


def _read_bands(files: Sequence[_NamedRaster], found: Found) -> tuple[RasterHeader, dict[str, BandFile]]:
    """Return the bands of a group, those with a file of their own first; a file that tells none is left out."""
    single = [f for f in sorted(files, key=lambda f: f.resolution, reverse=True) if f.band is not None]
    bands = {str(f.band): BandFile(f.path) for f in single}  # the finest resolution is written last, and stays
    headers = [first_header(list(bands.values()))] if bands else []
    faults: list[ProviderError] = []
    for stack in (f for f in files if f.band is None):
        try:
            headers.append(read_header(stack.path))
            bands = _bands_of_stack(stack, headers[-1]) | bands
        except ProviderError as error:
            faults.append(error)
    if not bands:
        raise faults[0]
    found.left_out.extend(map(str, faults))
    return headers[0], bands


def _bands_of_stack(file: _NamedRaster, header: RasterHeader) -> dict[str, BandFile]:
    """Return the bands of a file by their descriptions; without them nothing tells which band is which."""
    names = [band_in_text(d) if d else None for d in header.descriptions]
    if not any(names):
        count = f"{len(names)} band{'s' if len(names) > 1 else ''}"
        raise ProviderError(
            f"{file.name} has {count} without Sentinel-2 names: set the descriptions of its bands (with rasterio: "
            f"dataset.descriptions = {RGB_BANDS} in the file's order), or name them in a STAC item beside it"
        )
    bands: dict[str, BandFile] = {}
    for index, name in enumerate(names, start=1):
        if name is not None and (name == "SCL" or header.dtypes[index - 1] not in ("uint8", "int8")):
            bands.setdefault(name, BandFile(file.path, index))
    if not bands:
        raise ProviderError(f"{file.name} has 8 bits a pixel: it is a picture, and no reflectance")
    return bands
