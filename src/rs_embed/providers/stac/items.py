"""Conversion of STAC items of any catalog to scenes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from affine import Affine
from shapely import geometry

from rs_embed.errors import ProviderError
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.scenes import BandFile, Bounds, Scene
from rs_embed.sentinel2 import canonical_band

Locate = Callable[[str], str | None]  # an asset's href to the file or address to read, None where it cannot be read
_TRUE_COLOUR = ("visual", "tci")


def scene_of_item(item: Mapping[str, Any], locate: Locate) -> Scene:
    """Return the scene that an item describes; an item without a readable band or a position is a ProviderError."""
    properties: Mapping[str, Any] = item["properties"]
    files = _band_files(item["assets"], properties, locate)
    if not files:
        raise ProviderError("no asset is a Sentinel-2 band that can be read")
    acquired = datetime.fromisoformat(str(properties.get("datetime") or properties["start_datetime"]))
    cloud = properties.get("eo:cloud_cover")
    footprint = geometry.shape(item["geometry"]) if item.get("geometry") else None
    return Scene(
        id=str(item["id"]),
        acquired=acquired if acquired.tzinfo else acquired.replace(tzinfo=UTC),
        bounds=_bounds(item, footprint),
        footprint=footprint,
        files=files,
        cloud_pct=None if cloud is None else float(cloud),
        collection=item.get("collection"),
        properties=properties,
        names=tuple(str(properties[k]) for k in ("s2:product_uri", "title") if k in properties),
    )


def _band_files(assets: Mapping[str, Any], properties: Mapping[str, Any], locate: Locate) -> dict[str, BandFile]:
    """Return the file of each band; an asset whose key is a band's name precedes one that lists the band."""
    by_key: dict[str, BandFile] = {}
    listed: dict[str, BandFile] = {}
    for key, asset in assets.items():
        path = locate(str(asset["href"]))
        if path is None or key in _TRUE_COLOUR:
            continue
        raster_bands = tuple(asset.get("raster:bands", ()))
        grid, size_bytes = _grid(asset, properties), asset.get("file:size")
        band = canonical_band(key)
        if band is not None:
            by_key[band] = BandFile(path, 1, raster_bands[:1], grid, size_bytes)
            continue
        for index, description in enumerate(asset.get("eo:bands") or asset.get("bands") or (), start=1):
            band = canonical_band(str(description.get("name", "")))
            if band is not None:
                listed.setdefault(band, BandFile(path, index, raster_bands[index - 1 : index], grid, size_bytes))
    return listed | by_key


def _grid(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> BlockGrid | None:
    """Return an asset's pixel grid by the projection extension, before 2.0 (`proj:epsg`) or after (`proj:code`)."""
    shape, transform, epsg, code = (
        asset.get(f"proj:{key}", properties.get(f"proj:{key}")) for key in ("shape", "transform", "epsg", "code")
    )
    try:
        height, width = map(int, shape)
        number = int(epsg or str(code or "").upper().removeprefix("EPSG:"))
        return BlockGrid(transform=Affine(*transform[:6]), epsg=number, height=height, width=width)
    except (TypeError, ValueError):
        return None


def _bounds(item: Mapping[str, Any], footprint: Any) -> Bounds:
    bbox = item.get("bbox") or (None if footprint is None else footprint.bounds)
    if bbox is None:
        raise ProviderError(f"the item {item['id']} has neither bbox nor geometry")
    west, south, east, north = bbox if len(bbox) == 4 else (bbox[0], bbox[1], bbox[3], bbox[4])
    return float(west), float(south), float(east), float(north)
