"""Selection of the scenes of a place by time range, footprint and cloud cover, and the errors where none is left."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, compress

from pyproj import Geod
from shapely import union_all
from shapely.geometry.base import BaseGeometry

from rs_embed import lonlat, outlines
from rs_embed.errors import NoImageryError, ProviderError, UnusableImageryError
from rs_embed.grid import lonlat_bounds, lonlat_text
from rs_embed.patch import DroppedScene, listed
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.scenes import NO_BAND, Scene
from rs_embed.sentinel2 import is_l1c

_MAX_UNCOVERED = 0.1  # share of a product that another one may leave open and still be a double of it
_TILE = re.compile(r"(?<![A-Z0-9])T?(\d{2}[A-Z]{3})(?![A-Z0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Scenes selected for one request."""

    request: PatchRequest
    listed: Sequence[Scene]  # all scenes that the source knows around the place
    scenes: tuple[Scene, ...]  # scenes to read, newest first
    before_clouds: int  # number of readable scenes that meet the place in the time range, before the cloud filter
    unusable: tuple[DroppedScene, ...] = ()  # scenes that meet the place in the time range, without the bands to read
    other_level: tuple[Scene, ...] = ()  # such scenes of the level, L1C or L2A, that is not asked for
    warnings: tuple[str, ...] = ()

    @property
    def covered(self) -> float:
        """Share of the place that lies under the footprints of the scenes, 0 to 1."""
        place = outlines.polygon(lonlat_bounds(self.request.geobox))
        footprints = [scene.outline for scene in self.scenes]
        if any(footprint.contains(place) for footprint in footprints):
            return 1.0
        return float(union_all(footprints).intersection(place).area / place.area)

    def check(self, provider: str) -> None:
        """Refuse a selection without a scene, and a cloud mask without the scene classification that it needs."""
        if not self.scenes:
            raise self.no_scene_error(provider)
        for scene in self.scenes if self.request.sensor.cloud_mask == "scl" else ():
            if "SCL" not in scene.files:
                raise ProviderError(
                    f"scene {scene.id} has no band SCL (it has {', '.join(scene.files)}); ask without cloud_mask"
                )

    def no_scene_error(self, provider: str) -> ProviderError:
        """Return the error of a place without a scene; it names the nearest scene that is listed."""
        lon, lat = lonlat.middle(lonlat_bounds(self.request.geobox))
        temporal = self.request.temporal
        if self.unusable and not self.before_clouds:
            reason = self.unusable[0].reason.removeprefix(NO_BAND)
            return ProviderError(
                f"{provider}: {len(self.unusable)} item(s) found at {lonlat_text(lon, lat)} in {temporal.start} to "
                f"{temporal.end}, and none has a readable band: {reason}; use a catalog whose files "
                "have https addresses (backend 'cdse' reads those of Copernicus Data Space with your keys)"
            )
        found = (
            f"{provider}: {self.before_clouds} scene(s) before the cloud filter and 0 after it at "
            f"{lonlat_text(lon, lat)} in {temporal.start} to {temporal.end}"
        )
        if self.before_clouds:
            return NoImageryError(f"{found}: raise cloudy_pct (now {self.request.sensor.cloudy_pct:g})")
        if self.other_level:
            asked, other = ("L1C", "L2A") if is_l1c(self.request.sensor.product) else ("L2A", "L1C")
            return NoImageryError(
                f"{found}: {len(self.other_level)} scene(s) there are Sentinel-2 {other} ({self.other_level[0].id}), "
                f"none is {asked}: take {asked} products, or SensorSpec(collection='sentinel-2-{other.lower()}')"
            )
        if not self.listed:
            return NoImageryError(f"{found}: widen the time range or move the place")
        nearest = min(self.listed, key=lambda s: (_distance_km(s, lon, lat), s.id))
        day, away_km = nearest.acquired.date().isoformat(), _distance_km(nearest, lon, lat)
        if away_km == 0:
            return NoImageryError(f"{found}; the place was seen on {day} ({nearest.id}): widen the time range")
        return NoImageryError(
            f"{found}; the nearest scene is {nearest.id} of {day} at {lonlat_text(*lonlat.middle(nearest.bounds))}, "
            f"{away_km:,.0f} km away: move the place or the time range"
        )

    def no_pixel_error(self, provider: str, dropped: Sequence[DroppedScene]) -> ProviderError:
        """Return the error of a place without pixels: a `NoImageryError` only where every scene was read."""
        temporal = self.request.temporal
        found = (
            f"{provider}: {self.before_clouds} scene(s) meet the place in {temporal.start} to {temporal.end}, "
            f"{len(self.scenes)} after the cloud filter"
        )
        unread = [scene for scene in dropped if scene.kind != "no_data"]
        if not unread:
            return NoImageryError(
                f"{found}, and none has a valid pixel there ({listed(dropped) or 'all pixels are masked'})"
            )
        if any(scene.kind == "fault" for scene in unread):
            return ProviderError(f"{found}; {len(unread)} could not be read ({listed(unread)}): ask again later")
        return UnusableImageryError(
            f"{found}; {len(unread)} cannot be used ({listed(unread)}): leave them out of the source"
        )


def select_scenes(listed: Sequence[Scene], request: PatchRequest) -> Selection:
    """Select scenes by time range, footprint and cloud cover, and of these the least cloudy `max_scenes`."""
    sensor, place = request.sensor, lonlat_bounds(request.geobox)
    asked, others = by_level(listed, sensor.product)
    found = [s for s in asked if s.meets(place, request.temporal)]
    reasons = [s.why_unusable(sensor.bands) for s in found]  # by position: two collections may share an id
    meeting = [s for s, reason in zip(found, reasons, strict=True) if reason is None]
    kept = [s for s in meeting if s.cloud_pct is None or s.cloud_pct <= sensor.cloudy_pct]
    unknown = sum(s.cloud_pct is None for s in kept)
    warnings: tuple[str, ...] = ()
    if sensor.cloudy_pct < 100 and unknown:
        warnings = (
            f"cloudy_pct={sensor.cloudy_pct:g} could not be applied to {unknown} scene(s): the source gives no cloud "
            "cover",
        )
    if sensor.max_scenes is not None:
        kept = sorted(kept, key=_least_cloudy)[: sensor.max_scenes]
    kept.sort(key=lambda s: (s.acquired, s.id), reverse=True)
    return Selection(
        request=request,
        listed=asked,
        scenes=tuple(kept),
        before_clouds=len(meeting),
        unusable=tuple(DroppedScene(s.id, r, "refused") for s, r in zip(found, reasons, strict=True) if r is not None),
        other_level=tuple(s for s in others if s.meets(place, request.temporal)),
        warnings=warnings,
    )


def by_level(scenes: Sequence[Scene], product: str) -> tuple[list[Scene], list[Scene]]:
    """Return the scenes of a product's processing level, and those of the other one."""
    of_level = [is_l1c(s.collection) == is_l1c(product) for s in scenes]
    return list(compress(scenes, of_level)), [s for s, same in zip(scenes, of_level, strict=True) if not same]


def drop_duplicates(scenes: Iterable[Scene], collections: Sequence[str]) -> list[Scene]:
    """Keep of each tile and second the newest baseline, then the first collection: reprocessing lists a scene again.

    Products that complete each other stay: an overpass of one tile may come as two, from two receiving stations.
    """
    acquisitions: dict[tuple[str, str], list[Scene]] = defaultdict(list)
    for scene in scenes:
        acquisitions[_tile(scene), scene.acquired.isoformat(timespec="seconds")].append(scene)

    def rank(scene: Scene) -> tuple[bool, str, int]:
        position = collections.index(scene.collection) if scene.collection in collections else len(collections)
        return scene.fault is None, scene.processing_baseline or "", -position

    return list(chain.from_iterable(_distinct(sorted(same, key=rank, reverse=True)) for same in acquisitions.values()))


def _distinct(ranked: Sequence[Scene]) -> list[Scene]:
    """Return those of one acquisition's products, best first, that show ground which no better one shows."""
    kept: list[Scene] = []
    for scene in ranked:
        rivals = [other for other in kept if not _may_be_parts(scene, other)]
        # Collections draw the outline of one product differently: one inside of the other is enough there.
        inside = [other.outline for other in rivals if other.collection != scene.collection]
        if scene.footprint is None:
            is_double = bool(rivals)
        else:
            is_double = _is_covered(scene.outline, [other.outline for other in rivals])
        if not is_double and not any(_is_covered(o, [scene.outline]) for o in inside):
            kept.append(scene)
    return kept


def _may_be_parts(scene: Scene, other: Scene) -> bool:
    """Tell if two products may be parts of one overpass where no outline tells: of one baseline, under two names."""
    return (
        (scene.footprint is None or other.footprint is None)
        and scene.id != other.id
        and (scene.collection, scene.processing_baseline) == (other.collection, other.processing_baseline)
    )


def _is_covered(outline: BaseGeometry, others: Sequence[BaseGeometry]) -> bool:
    return bool(others) and outline.difference(union_all(others)).area <= _MAX_UNCOVERED * outline.area


def _least_cloudy(scene: Scene) -> tuple[float, float, str]:
    cloud = 101.0 if scene.cloud_pct is None else scene.cloud_pct
    return cloud, -scene.acquired.timestamp(), scene.id


def _tile(scene: Scene) -> str:
    stated = scene.properties.get("grid:code") or scene.properties.get("s2:mgrs_tile") or scene.id
    match = _TILE.search(str(stated).upper().replace("MGRS-", "").replace("_", " "))
    return match[1] if match else scene.id


def _distance_km(scene: Scene, lon: float, lat: float) -> float:
    """Return the great-circle distance to the middle of a scene, 0 inside its bounds."""
    if lonlat.contains(scene.bounds, lon, lat):
        return 0.0
    return float(Geod(ellps="WGS84").inv(lon, lat, *lonlat.middle(scene.bounds))[2]) / 1000
