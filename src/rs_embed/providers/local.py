"""Provider of the rasters in a folder, or of a static STAC catalog."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from rs_embed.errors import ProviderError
from rs_embed.providers.archive import ArchiveProvider
from rs_embed.providers.raster import RasterHeader, read_header
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.sentinel2 import RGB_BANDS, canonical_band, parse_product_name

_log = logging.getLogger("rs_embed")

_RASTERS = {".tif", ".tiff", ".jp2", ".vrt", ".img", ".nc"}
_BAND = re.compile(r"(?:^|[_.\- ])(B\d{1,2}A?|SCL)(?=[_.\- ]|$)", re.IGNORECASE)
_RESOLUTION = re.compile(r"_(10|20|60)m$", re.IGNORECASE)
_DATE = re.compile(r"(?<!\d)(20\d{2})-?(\d{2})-?(\d{2})(?!\d)")
_RESOLUTION_FOLDER = re.compile(r"R(10|20|60)m$", re.IGNORECASE)


class LocalProvider(ArchiveProvider):
    """Provider over files on this machine, the backend `"local:<path>"`; the folder is searched once, at the start.

    Scenes come from the STAC items of a folder, if it has any. Otherwise rasters are grouped by name: one file a band
    (`…_B04.tif`, also in the R10m folders of a SAFE product), or a file with all bands, which their descriptions name.
    Dates come from product names, or from a date in the name of the file or folder.

    Args:
        path: a folder of rasters, a folder with STAC items, or the `catalog.json` of a static STAC catalog.

    Raises:
        ProviderError: when there is no usable scene; the error says what was found instead.
    """

    def __init__(self, path: str | Path) -> None:
        root = Path(path).expanduser()
        if not root.exists():
            raise ProviderError(f"local:{path}: no such folder or STAC file")
        scenes, problems = _stac_scenes(root)
        if not scenes and root.is_dir():
            scenes, problems = _named_scenes(root, problems)
        if not scenes:
            found = "; ".join(problems[:3]) or f"no raster ({', '.join(sorted(_RASTERS))}) and no STAC item"
            raise ProviderError(f"local:{path} has no usable Sentinel-2 scene: {found}")
        for problem in problems:
            _log.warning("local:%s: left out: %s", path, problem)
        super().__init__("local", f"local:{root.name}", sorted(scenes, key=lambda s: s.id))
        self.path = root

    def __repr__(self) -> str:
        return f"LocalProvider({str(self.path)!r})"


def _stac_scenes(root: Path) -> tuple[list[Scene], list[str]]:
    scenes, problems = [], []
    for path, item in _stac_items(root):
        try:
            scene = scene_of_item(item, partial(_raster_path, folder=path.parent))
            if scene.fault is not None:
                raise ProviderError(f"no asset is a Sentinel-2 band that can be read ({scene.fault})")
            scenes.append(scene)
        except (ProviderError, KeyError, ValueError, TypeError) as error:
            problems.append(f"{path.name}: {error}")
    return scenes, problems


def _stac_items(root: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the items that a catalog links to, or all item files below a folder."""
    start = next((p for n in ("catalog.json", "collection.json") if (p := root / n).is_file()), root)
    if start.is_file():
        yield from _linked_items(start, seen=set())
    else:
        for path in sorted(root.rglob("*.json")) + sorted(root.rglob("*.geojson")):
            yield from ((path, item) for item in _features(_read_json(path)))


def _linked_items(path: Path, seen: set[Path]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if path in seen:
        return
    seen.add(path)
    document = _read_json(path)
    if not isinstance(document, dict):
        raise ProviderError(f"{path} is not a STAC catalog, collection or item")
    yield from ((path, item) for item in _features(document))
    for link in document.get("links", []):
        if link.get("rel") in ("child", "item"):
            target = _local_path(str(link.get("href", "")), path.parent)
            if target is not None and target.is_file():
                yield from _linked_items(target, seen)


def _features(document: object) -> list[Mapping[str, Any]]:
    """Return the STAC items of a JSON document: the item itself, or those of a feature collection."""
    candidates = [document]
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        candidates = document.get("features", [])
    return [f for f in candidates if isinstance(f, dict) and f.get("type") == "Feature" and "stac_version" in f]


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ProviderError(f"{path} is not readable as JSON: {error}") from error


def _raster_path(href: str, folder: Path) -> str | None:
    path = _local_path(href, folder)
    return str(path) if path is not None and path.suffix.lower() in _RASTERS else None


def _local_path(href: str, folder: Path) -> Path | None:
    """Return the file of an href; None when it is not on this machine."""
    parsed = urlparse(href)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if parsed.scheme or href.startswith("/vsi"):
        return None
    return Path(href) if Path(href).is_absolute() else (folder / href).resolve()


@dataclass(frozen=True, slots=True)
class _NamedRaster:
    """One raster, and the band, scene and resolution in its name."""

    path: Path
    band: str | None  # band of the file; None where it holds several
    scene: str
    resolution: int  # metres; 0 where the name states none


def _named_scenes(root: Path, problems: list[str]) -> tuple[list[Scene], list[str]]:
    groups: dict[str, list[_NamedRaster]] = defaultdict(list)
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in _RASTERS and p.is_file()):
        named = _read_name(path, root)
        groups[named.scene].append(named)
    scenes = []
    for key, files in groups.items():
        try:
            scenes.append(_scene_of_files(key, files, root))
        except ProviderError as error:
            problems.append(str(error))
    return scenes, problems


def _read_name(path: Path, root: Path) -> _NamedRaster:
    folder = path.parent.parent if _RESOLUTION_FOLDER.match(path.parent.name) else path.parent
    resolution = _RESOLUTION.search(path.stem)
    stem = _RESOLUTION.sub("", path.stem)
    match = _BAND.search(stem)
    band = canonical_band(match[1]) if match else None
    key = stem if match is None else (stem[: match.start()] + stem[match.end() :]).strip("_.- ")
    prefix = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else ""
    name = "/".join(part for part in (prefix if prefix != "." else "", key) if part) or root.name
    return _NamedRaster(path, band, name, int(resolution[1]) if resolution else 0)


def _scene_of_files(key: str, files: Sequence[_NamedRaster], root: Path) -> Scene:
    names = (key, root.name, str(root))
    acquired = _acquired(names)
    if acquired is None:
        raise ProviderError(f"{files[0].path.name} has no date: name it as Sentinel-2 does, or with YYYY-MM-DD")
    single = [f for f in sorted(files, key=lambda f: f.resolution, reverse=True) if f.band is not None]
    bands = {str(f.band): BandFile(str(f.path)) for f in single}  # the finest resolution is written last, and stays
    header = read_header(str(files[0].path))
    bands, warnings = (bands, ()) if bands else _bands_of_stack(files[0].path, header)
    return Scene(id=key, acquired=acquired, bounds=header.bounds_lonlat, files=bands, names=names, warnings=warnings)


def _bands_of_stack(path: Path, header: RasterHeader) -> tuple[dict[str, BandFile], tuple[str, ...]]:
    """Return the bands of a file by their descriptions, with warnings; three without are taken as B4, B3, B2."""
    names: Sequence[str | None] = [canonical_band(d) if d else None for d in header.descriptions]
    warnings: tuple[str, ...] = ()
    if not any(names):
        if len(names) != len(RGB_BANDS):
            raise ProviderError(
                f"{path.name} has {len(names)} band(s) without Sentinel-2 names: set their descriptions"
            )
        names = RGB_BANDS
        warnings = (f"the bands of {path.name} have no names: taken as {', '.join(RGB_BANDS)} in this order",)
    return {n: BandFile(str(path), i) for i, n in enumerate(names, start=1) if n}, warnings


def _acquired(names: Sequence[str]) -> datetime | None:
    for name in names:
        product = parse_product_name(name)
        if product is not None:
            return product.acquired
    for name in names:
        for match in reversed(list(_DATE.finditer(name))):
            try:
                return datetime.strptime("".join(match.groups()), "%Y%m%d").replace(tzinfo=UTC)
            except ValueError:
                continue  # eight digits, but not a date
    return None
