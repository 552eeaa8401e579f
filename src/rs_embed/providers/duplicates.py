"""One scene may be listed twice: reprocessed, or in two collections."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rs_embed.providers.archive import Scene
from rs_embed.sentinel2 import processing_baseline

_TILE = re.compile(r"(?<![A-Z0-9])T?(\d{2}[A-Z]{3})(?![A-Z0-9])")


def unique(scenes: Iterable[Scene], collections: Sequence[str]) -> list[Scene]:
    """One scene for each tile and second: the newest processing baseline, then the first collection."""
    best: dict[tuple[str, str], Scene] = {}

    def rank(scene: Scene) -> tuple[str, int]:
        baseline = processing_baseline(scene.properties, (scene.id, *scene.names)) or ""
        place = collections.index(scene.collection) if scene.collection in collections else len(collections)
        return baseline, -place

    for scene in scenes:
        key = _tile(scene), scene.acquired.isoformat(timespec="seconds")
        if key not in best or rank(scene) > rank(best[key]):
            best[key] = scene
    return list(best.values())


def _tile(scene: Scene) -> str:
    told = scene.properties.get("grid:code") or scene.properties.get("s2:mgrs_tile") or scene.id
    match = _TILE.search(str(told).upper().replace("MGRS-", "").replace("_", " "))
    return match[1] if match else scene.id
