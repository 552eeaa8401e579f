"""Conversion of STAC items of any catalog to scenes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from affine import Affine
from shapely import geometry, make_valid
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from rs_embed import lonlat, outlines
from rs_embed.errors import ProviderError
from rs_embed.providers.raster import BlockGrid
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import NATIVE_M, StatedScale, canonical_band

Locate = Callable[[str], str | None]  # an asset's href to the file or address to read, None where it cannot be read
ODD_ITEM = (ProviderError, KeyError, ValueError, TypeError, AttributeError, OverflowError)
"""Errors of an item without a time, a position or the shape of an item; it is left out."""
_PICTURES = ("visual", "tci", "overview", "preview", "thumbnail", "rendered")  # how keys of pictures begin
_EIGHT_BITS = ("uint8", "int8")
_RESOLUTION = re.compile(r"_(10|20|60)m$", re.IGNORECASE)


def scene_of_item(item: Mapping[str, Any], locate: Locate) -> Scene:
    """Return the scene that an item describes, with its `fault` if none of its bands can be read.

    A wrong value costs itself alone; an item without a time or a position is a ProviderError.
    """
    properties, collection = _object(item, "properties"), item.get("collection")
    assets = {key: a for key, a in _object(item, "assets").items() if isinstance(a, Mapping) and a.get("href")}
    files = _band_files(assets, properties, locate)
    acquired = datetime.fromisoformat(str(properties.get("datetime") or properties["start_datetime"]))
    footprint = _footprint(item)
    return Scene(
        id=str(item["id"]),
        acquired=acquired.astimezone(UTC) if acquired.tzinfo else acquired.replace(tzinfo=UTC),
        bounds=_bounds(item, footprint),
        footprint=footprint,
        files=files,
        cloud_pct=_number(properties.get("eo:cloud_cover")),
        collection=collection if isinstance(collection, str) else None,
        properties=properties,
        names=tuple(str(properties[k]) for k in ("s2:product_uri", "title") if k in properties),
        fault=None if files else _fault(assets),
    )


def _object(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name)
    if not isinstance(value, Mapping):
        raise ProviderError(f"the item {item.get('id')} has no object {name!r}, but {value!r:.40}")
    return value


def _band_files(assets: Mapping[str, Any], properties: Mapping[str, Any], locate: Locate) -> dict[str, BandFile]:
    """Return the file of each band: of several the one at the band's own resolution, else the finest.

    Between equals, an asset whose key is a band's name precedes one that lists the band.
    """
    ranked: dict[str, list[tuple[tuple[bool, float, bool], BandFile]]] = defaultdict(list)
    for key, asset in assets.items():
        paths = tuple(path for path in map(locate, _hrefs(asset)) if path is not None)
        if not paths or key.lower().startswith(_PICTURES):
            continue
        grid, size_bytes, of_key = _grid(asset, properties), asset.get("file:size"), canonical_band(key)
        for index, band in enumerate([of_key] if of_key else _listed_bands(asset)):
            facts = _facts(asset, index)
            if band is not None and (band == "SCL" or facts.data_type not in _EIGHT_BITS):
                file = BandFile(paths[0], index + 1, facts.stated, grid, size_bytes, paths[1:], facts.nodata)
                resolution_m = facts.resolution_m(key)
                is_native = resolution_m in (None, NATIVE_M.get(band, 20))
                ranked[band].append(((not is_native, resolution_m or 0.0, of_key is None), file))
    return {band: min(files, key=lambda file: file[0])[1] for band, files in ranked.items()}


def _listed_bands(asset: Mapping[str, Any]) -> list[str | None]:
    """Return the bands that an asset lists, by STAC 1.0 or 1.1, in their order in the file."""
    listed = _records(asset.get("eo:bands")) or _records(asset.get("bands"))
    return [canonical_band(str(band.get("name", ""))) for band in listed]


def _records(value: object) -> list[Mapping[str, Any]]:
    """Return the objects of a list; anything else in its place is an empty one."""
    return [record if isinstance(record, Mapping) else {} for record in value] if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts of one band of an asset, the most specific first: `bands[]`, `raster:bands[]`, then the asset itself."""

    band: Mapping[str, Any]
    raster_band: Mapping[str, Any]
    asset: Mapping[str, Any]

    def first(self, name: str) -> object:
        """Return a value by its name in STAC 1.1 (`"raster:scale"`), or in `raster:bands` of STAC 1.0 (`"scale"`)."""
        values = (self.band.get(name), self.raster_band.get(name.removeprefix("raster:")), self.asset.get(name))
        return next((value for value in values if value is not None), None)

    @property
    def stated(self) -> StatedScale | None:
        """Scale and offset as they are stated."""
        scale, offset = self.first("raster:scale"), self.first("raster:offset")
        return None if scale is None and offset is None else StatedScale("item", scale, offset)

    @property
    def nodata(self) -> float | None:
        """Value of an empty pixel; None for 0, which is one in any case."""
        return _number(self.first("nodata")) or None

    @property
    def data_type(self) -> object:
        """Type of the stored values, such as `"uint16"`."""
        return self.first("data_type")

    def resolution_m(self, key: str) -> float | None:
        """Return the size of a pixel, by the asset's key (`B04_60m`) or the item; None where neither states it."""
        match = _RESOLUTION.search(key)
        transform = self.asset.get("proj:transform")
        of_grid = transform[0] if isinstance(transform, list) and transform else None
        candidates = (match and match[1], self.first("raster:spatial_resolution"), of_grid, self.first("gsd"))
        return next((size for value in candidates if (size := _number(value)) is not None and size >= 1), None)


def _facts(asset: Mapping[str, Any], index: int) -> _Facts:
    band, raster_band = (
        records[index] if index < len(records := _records(asset.get(name))) else {}
        for name in ("bands", "raster:bands")
    )
    return _Facts(band, raster_band, asset)


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
    alternates = asset.get("alternate")
    places = (asset, *(alternates.values() if isinstance(alternates, Mapping) else ()))
    return [str(place["href"]) for place in places if isinstance(place, Mapping) and place.get("href")]


def _fault(assets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return why no band can be read, with the address of one as an example, without its query."""
    bands = [asset for key, asset in assets.items() if canonical_band(key.partition("_")[0])]
    example = next(iter(bands), None) or next(iter(assets.values()), None)
    return "no asset" if example is None else str(example["href"]).partition("?")[0]


def _number(value: object) -> float | None:
    """Return a finite number; None for null, `"N/A"` and the like."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _footprint(item: Mapping[str, Any]) -> BaseGeometry | None:
    """Return an item's outline; None where it has none, or one that is not a valid geometry."""
    try:
        footprint = outlines.split(make_valid(geometry.shape(item["geometry"])))
    except (AttributeError, KeyError, TypeError, ValueError, ShapelyError):
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
