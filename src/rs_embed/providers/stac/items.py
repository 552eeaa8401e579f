"""STAC items to scenes, whatever catalog wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from affine import Affine
from shapely.geometry import shape

from rs_embed.errors import ProviderError
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import canonical_band

Locate = Callable[[str], str | None]
"""An asset's href to the file or address to read, None for what cannot be read."""

_TRUE_COLOUR = ("visual", "tci")


def scene_of_item(item: Mapping[str, Any], locate: Locate) -> Scene:
    """One item as a scene.

    Raises:
        ProviderError: when no asset is a band that can be read, or the item does not say where it lies.
    """
    properties: Mapping[str, Any] = item["properties"]
    files = _band_files(item["assets"], properties, locate)
    if not files:
        raise ProviderError("no asset is a Sentinel-2 band that can be read")
    cloud = properties.get("eo:cloud_cover")
    footprint = shape(item["geometry"]) if item.get("geometry") else None
    return Scene(
        id=str(item["id"]),
        acquired=_parse_datetime(str(properties.get("datetime") or properties["start_datetime"])),
        bounds=_bounds(item, footprint),
        footprint=footprint,
        files=files,
        cloud_pct=None if cloud is None else float(cloud),
        collection=item.get("collection"),
        properties=properties,
        names=tuple(str(properties[k]) for k in ("s2:product_uri", "title") if k in properties),
    )


def _band_files(assets: Mapping[str, Any], properties: Mapping[str, Any], locate: Locate) -> dict[str, BandFile]:
    """Band name to file; an asset whose key is a band's name comes before one that only describes it."""
    by_key: dict[str, BandFile] = {}
    described: dict[str, BandFile] = {}
    for key, asset in assets.items():
        path = locate(str(asset["href"]))
        if path is None or key in _TRUE_COLOUR:
            continue
        raster = tuple(asset.get("raster:bands", ()))
        facts = _grid(asset, properties), asset.get("file:size")
        own = canonical_band(key)
        if own is not None:
            by_key[own] = BandFile(path, 1, raster[:1], *facts)
            continue
        for index, band in enumerate(_described_bands(asset), start=1):
            if band is not None:
                described.setdefault(band, BandFile(path, index, raster[index - 1 : index], *facts))
    return described | by_key


def _grid(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> BlockGrid | None:
    """Where an asset's pixels lie, by the projection extension of before (`proj:epsg`) or after 2.0 (`proj:code`)."""
    facts = {
        key: asset.get(f"proj:{key}", properties.get(f"proj:{key}")) for key in ("shape", "transform", "epsg", "code")
    }
    epsg = facts["epsg"] or str(facts["code"] or "").upper().removeprefix("EPSG:")
    try:
        (height, width), transform = facts["shape"], Affine(*facts["transform"][:6])
        return BlockGrid(transform=transform, epsg=int(epsg), height=int(height), width=int(width))
    except (TypeError, ValueError):
        return None


def _described_bands(asset: Mapping[str, Any]) -> Iterator[str | None]:
    for band in asset.get("eo:bands") or asset.get("bands") or ():
        yield canonical_band(str(band.get("name", "")))


def _bounds(item: Mapping[str, Any], footprint: Any) -> tuple[float, float, float, float]:
    bbox = item.get("bbox")
    if bbox is not None:
        west, south, east, north = bbox if len(bbox) == 4 else (bbox[0], bbox[1], bbox[3], bbox[4])
        return float(west), float(south), float(east), float(north)
    if footprint is None:
        raise ProviderError(f"the item {item['id']} has neither bbox nor geometry")
    west, south, east, north = footprint.bounds
    return west, south, east, north


def _parse_datetime(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
