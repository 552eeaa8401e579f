"""Scenes: what a source knows of one Sentinel-2 product before any pixel is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from shapely.geometry.base import BaseGeometry

from rs_embed import lonlat, outlines
from rs_embed.patch import SceneRecord
from rs_embed.providers.raster import BlockGrid
from rs_embed.sentinel2 import Radiometry, StatedScale, processing_baseline, radiometry
from rs_embed.specs import TemporalSpec

N = TypeVar("N", int, float)
Rectangle = tuple[N, N, N, N]  # two opposite corners, the lesser coordinates first


def enclose(rectangles: Sequence[Rectangle[N]]) -> Rectangle[N]:
    """Return the smallest rectangle around others."""
    left, top, right, bottom = zip(*rectangles, strict=True)
    return min(left), min(top), max(right), max(bottom)


NO_BAND = "no band can be read: "  # how the reason begins why a scene without any band is left out


@dataclass(frozen=True, slots=True)
class BandFile:
    """The file that holds one band of a scene."""

    path: str
    index: int = 1  # band of the file, from 1
    stated: StatedScale | None = None  # scale and offset by the STAC item or the product's metadata
    grid: BlockGrid | None = None  # the file's pixel grid, where a STAC item states it; its block size is then a guess
    size_bytes: int | None = None
    alternates: tuple[str, ...] = ()  # further addresses of the file, for when the first one cannot be read
    nodata: float | None = None  # stored value of an empty pixel, beside the one that the file declares


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One Sentinel-2 product of a source."""

    id: str
    acquired: datetime  # time of sensing, UTC
    bounds: lonlat.Box
    files: Mapping[str, BandFile]  # Earth Engine's band name (`"B4"`, `"SCL"`) to its file
    footprint: BaseGeometry | None = None  # outline of its data, in degrees; None where only its bounds are known
    cloud_pct: float | None = None
    collection: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # further names that may contain the product's name
    warnings: tuple[str, ...] = ()
    fault: str | None = None  # why none of its bands can be read; `files` is then empty

    @property
    def outline(self) -> BaseGeometry:
        """Outline of its data, or its bounds where no outline is known, in degrees."""
        return outlines.polygon(self.bounds) if self.footprint is None else self.footprint

    @property
    def product_names(self) -> tuple[str, ...]:
        """All names that may contain the product's name, its id first."""
        return self.id, *self.names

    @property
    def processing_baseline(self) -> str | None:
        """Processing baseline as `"05.10"`; None where neither the properties nor the names state it."""
        return processing_baseline(self.properties, self.product_names)

    def why_unusable(self, bands: Sequence[str]) -> str | None:
        """Return the reason why some bands cannot be read; None for a scene whose bands can, or are not files."""
        missing = [band for band in bands if self.files and band not in self.files]
        if missing:
            return f"it has no band {missing[0]} (it has {', '.join(self.files)})"
        return None if self.fault is None else f"{NO_BAND}{self.fault}"

    def meets(self, place: lonlat.Box, temporal: TemporalSpec) -> bool:
        """Tell if the scene was acquired in a time range and its footprint meets a place."""
        return (
            temporal.start <= self.acquired.astimezone(UTC).date().isoformat() < temporal.end
            and bool(lonlat.meets(place, *self.bounds))
            and (self.footprint is None or bool(self.footprint.intersects(outlines.polygon(place))))
        )

    def radiometry(self, band: str, scale: float, offset: float, largest_float: float | None = None) -> Radiometry:
        """Return the rule that turns a band's stored values into DN, from its file's tags and largest float."""
        return radiometry(
            collection=self.collection,
            properties=self.properties,
            stated=self.files[band].stated,
            names=self.product_names,
            file_scale=scale,
            file_offset=offset,
            largest_float=largest_float,
            acquired=self.acquired,
        )

    def record(self, rules: Mapping[str, Radiometry]) -> SceneRecord:
        """Return the scene's provenance, for the metadata of a patch, with the rule of each band."""
        offset, reason = _common_offset(rules)
        return SceneRecord(
            id=self.id,
            datetime=self.acquired.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            cloud_pct=self.cloud_pct,
            processing_baseline=self.processing_baseline,
            dn_offset=offset,
            dn_offset_reason=reason,
        )


def _common_offset(rules: Mapping[str, Radiometry]) -> tuple[float | None, str]:
    """Return the offset that all bands share, else None, and the reason, which then states each band's."""
    first, *others = rules.values()
    if all((rule.offset, rule.gain) == (first.offset, first.gain) for rule in others):
        return first.offset, first.reason
    offsets = {band: "unknown" if rule.offset is None else f"{rule.offset:g}" for band, rule in rules.items()}
    reasons = "; ".join(f"{band}: {offsets[band]} ({rule.reason})" for band, rule in rules.items())
    return first.offset if len({rule.offset for rule in rules.values()}) == 1 else None, f"by band: {reasons}"
