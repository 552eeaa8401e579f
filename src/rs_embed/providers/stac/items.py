"""Conversion of STAC items of any catalog to scenes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from affine import Affine
from shapely import GEOSException, geometry, make_valid
from shapely.geometry.base import BaseGeometry

from rs_embed import lonlat, outlines
from rs_embed.errors import ProviderError
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import canonical_band

Locate = Callable[[str], str | None]  # an asset's href to the file or address to read, None where it cannot be read
_TRUE_COLOUR = ("visual", "tci")


def scene_of_item(item: Mapping[str, Any], locate: Locate) -> Scene:
    """Return the scene that an item describes, with its `fault` if none of its bands can be read.

    A wrong value costs itself alone; an item without a time or a position is a ProviderError.
    """
    properties: Mapping[str, Any] = item["properties"]
    assets = {key: asset for key, asset in item["assets"].items() if asset and asset.get("href")}
    files = _band_files(assets, properties, locate)
    acquired = datetime.fromisoformat(str(properties.get("datetime") or properties["start_datetime"]))
    footprint = _footprint(item)
    return Scene(
        id=str(item["id"]),
        acquired=acquired if acquired.tzinfo else acquired.replace(tzinfo=UTC),
        bounds=_bounds(item, footprint),
        footprint=footprint,
        files=files,
        cloud_pct=_number(properties.get("eo:cloud_cover")),
        collection=item.get("collection"),
        properties=properties,
        names=tuple(str(properties[k]) for k in ("s2:product_uri", "title") if k in properties),
        fault=None if files else _fault(assets),
    )


def _band_files(assets: Mapping[str, Any], properties: Mapping[str, Any], locate: Locate) -> dict[str, BandFile]:
    """Return the file of each band; an asset whose key is a band's name precedes one that lists the band."""
    by_key: dict[str, BandFile] = {}
    listed: dict[str, BandFile] = {}
    for key, asset in assets.items():
        paths = tuple(path for path in map(locate, _hrefs(asset)) if path is not None)
        if not paths or key in _TRUE_COLOUR:
            continue
        raster_bands = tuple(asset.get("raster:bands") or ())
        grid, size_bytes = _grid(asset, properties), asset.get("file:size")
        band = canonical_band(key)
        if band is not None:
            by_key[band] = BandFile(paths[0], 1, raster_bands[:1], grid, size_bytes, paths[1:])
            continue
        for index, description in enumerate(asset.get("eo:bands") or asset.get("bands") or (), start=1):
            band = canonical_band(str(description.get("name", "")))
            if band is not None:
                described = raster_bands[index - 1 : index]
                listed.setdefault(band, BandFile(paths[0], index, described, grid, size_bytes, paths[1:]))
    return listed | by_key


def _grid(asset: Mapping[str, Any], properties: Mapping[str, Any]) -> BlockGrid | None:
    """Return an asset's pixel grid by the projection extension, before 2.0 (`proj:epsg`) or after (`proj:code`)."""
    shape, transform, epsg, code = (
        asset.get(f"proj:{key}", properties.get(f"proj:{key}")) for key in ("shape", "transform", "epsg", "code")
    )
    try:
        height, width = map(int, shape)
        number = int(epsg or str(code or "").upper().removeprefix("EPSG:"))
        return BlockGrid(transform=Affine(*transform[:6]), crs=number, height=height, width=width)
    except (TypeError, ValueError):
        return None


def _hrefs(asset: Mapping[str, Any]) -> list[str]:
    """Return where a file lies: the asset's href, then those of the alternate-assets extension."""
    alternates = asset.get("alternate") or {}
    return [str(place["href"]) for place in (asset, *alternates.values()) if place.get("href")]


def _fault(assets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why no band can be read, with the address of one as an example, without its query."""
    bands = [asset for key, asset in assets.items() if canonical_band(key.partition("_")[0])]
    example = next(iter(bands), None) or next(iter(assets.values()), None)
    return "no asset" if example is None else str(example["href"]).partition("?")[0]


def _number(value: object) -> float | None:
    """Return a finite number; None for null, `"N/A"` and the like."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _footprint(item: Mapping[str, Any]) -> BaseGeometry | None:
    """Return an item's outline; None where it has none, or one that is not a valid geometry."""
    try:
        footprint = outlines.split(make_valid(geometry.shape(item["geometry"])))
    except (AttributeError, KeyError, TypeError, ValueError, GEOSException):
        return None
    return None if footprint.is_empty else footprint


def _bounds(item: Mapping[str, Any], footprint: BaseGeometry | None) -> lonlat.Box:
    """Return an item's box, from its outline where it has one: many boxes of items across 180° span the globe."""
    if footprint is not None:
        return outlines.box_of(footprint)
    bbox = [number for value in item.get("bbox") or () if (number := _number(value)) is not None]
    if len(bbox) not in (4, 6):
        raise ProviderError(f"the item {item['id']} has neither bbox nor geometry")
    west, south, east, north = bbox if len(bbox) == 4 else (bbox[0], bbox[1], bbox[3], bbox[4])
    return west, south, east, north
