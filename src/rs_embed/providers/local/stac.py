"""STAC items on this machine: those that a static catalog links to, or those that lie in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

from rs_embed.errors import ProviderError
from rs_embed.files import read_json
from rs_embed.providers.local.names import level_of
from rs_embed.providers.local.tree import RASTER_SUFFIXES, SERIES_SUFFIX, FileTree, Found
from rs_embed.providers.scenes import Scene
from rs_embed.providers.stac.items import ODD_ITEM, scene_of_item
from rs_embed.sentinel2 import L1C_COLLECTION, is_l1c, parse_product_name

CATALOG_NAMES = ("catalog.json", "collection.json")
_JSON_LIMIT_BYTES = 256 << 20
_L2A = re.compile(r"(sentinel-?|^)s?-?2.*l2a", re.IGNORECASE)
_STATES_PLATFORM = ("platform", "constellation", "mission", "instruments")
_SENTINEL_2 = re.compile(r"sentinel[-_ ]?2|^s2[a-d]?$|^msi$", re.IGNORECASE)


def find_items(tree: FileTree, found: Found) -> None:
    """Add the scenes of all items in a folder's JSON files."""
    for name in () if tree.is_zip else tree.with_suffix(".json", ".geojson"):
        try:
            document = _read_json(tree.root / name)
        except ProviderError as error:
            found.unread.append(str(error))
            continue
        for item in _features(document):
            if _add_scene(item, tree.root / name, found):
                found.described_folders.add(PurePosixPath(name).parent.as_posix())


def find_linked_items(start: Path, found: Found) -> None:
    """Add the scenes of the items that a catalog, a collection or an item file leads to."""
    waiting, seen = [start], {start}
    while waiting:
        path = waiting.pop()
        try:
            document = _read_json(path)
        except ProviderError as error:
            if path == start:
                raise
            found.unread.append(str(error))
            continue
        if not isinstance(document, dict):
            found.unread.append(f"{path.name} is not a STAC catalog, collection or item")
            continue
        for item in _features(document):
            _add_scene(item, path, found)
        linked = [target for target in _links(document, path.parent) if target not in seen and target.is_file()]
        seen.update(linked)
        waiting.extend(reversed(linked))


def _links(document: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    links = document.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("rel") in ("child", "item"):
            target = _local_path(str(link.get("href", "")), folder)
            if target is not None:
                yield target


def _add_scene(item: Mapping[str, Any], path: Path, found: Found) -> bool:
    try:
        scene = _scene(item, path.parent)
    except ODD_ITEM as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else error
        found.left_out.append(f"{path.name}: {fault}")
        return False
    found.scenes.append(scene)
    found.known.update(file.path for file in scene.files.values())
    return True


def _scene(item: Mapping[str, Any], folder: Path) -> Scene:
    scene = scene_of_item(item, partial(_raster_path, folder=folder))
    if scene.fault is not None:
        raise ProviderError(f"no asset is a Sentinel-2 band that can be read ({scene.fault})")
    properties = scene.properties
    platform = _platform(properties)
    if platform is not None and not _SENTINEL_2.search(platform):
        raise ProviderError(f"the item {scene.id} is of {platform}, and not of Sentinel-2")
    stated = str(properties.get("s2:product_type") or properties.get("product:type") or "").upper()
    level = level_of((stated, *scene.product_names))
    if is_l1c(scene.collection) or level == "L1C" or stated == "S2MSI1C":
        return scene if is_l1c(scene.collection) else replace(scene, collection=L1C_COLLECTION)
    is_product = stated == "S2MSI2A" or any(map(parse_product_name, scene.product_names))
    if scene.collection is None or _L2A.search(scene.collection) or is_product or _has_own_fields(properties):
        return scene
    raise ProviderError(
        f"the item {scene.id} is of the collection {scene.collection!r}, and nothing in it says Sentinel-2 L2A: set "
        "its property s2:product_type to 'S2MSI2A' if it is"
    )


def _has_own_fields(properties: Mapping[str, Any]) -> bool:
    """Tell if an item has fields of STAC's Sentinel-2 extension."""
    return any(key.startswith("s2:") for key in properties)


def _platform(properties: Mapping[str, Any]) -> str | None:
    """Return the first statement of an item on its platform or instrument."""
    for key in _STATES_PLATFORM:
        value = properties.get(key)
        text = value[0] if isinstance(value, list) and value else value
        if isinstance(text, str) and text:
            return text
    return None


def _features(document: object) -> list[Mapping[str, Any]]:
    """Return the STAC items of a JSON document: the item itself, or those of a feature collection."""
    candidates = [document]
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        features = document.get("features")
        candidates = features if isinstance(features, list) else []
    return [f for f in candidates if isinstance(f, dict) and f.get("type") == "Feature" and "stac_version" in f]


def _read_json(path: Path) -> object:
    """Read a JSON file, with or without a byte order mark."""
    try:
        return read_json(path, _JSON_LIMIT_BYTES, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ProviderError(f"{path.name} is not readable as JSON: {error}") from error


def _raster_path(href: str, folder: Path) -> str | None:
    """Return the path of a raster that exists: GDAL would take others for addresses of its own."""
    path = _local_path(href, folder)
    is_raster = path is not None and path.suffix.lower() in (*RASTER_SUFFIXES, SERIES_SUFFIX) and path.is_file()
    return str(path) if is_raster else None


def _local_path(href: str, folder: Path) -> Path | None:
    """Return the file of an href; None when it is not on this machine."""
    parsed = urlparse(href)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if parsed.scheme or href.startswith("/vsi"):
        return None
    return Path(href) if Path(href).is_absolute() else (folder / href).resolve()
