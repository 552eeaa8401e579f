"""A set of scenes that is already at hand: choose, read, harmonise, composite. `local` and `sample` are such sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Geod
from shapely import box, union_all
from shapely.geometry.base import BaseGeometry

from rs_embed import settings
from rs_embed.composite import SceneImage, clear_statistics, median, mosaic
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import lonlat_bounds
from rs_embed.patch import DroppedScene, Patch, SceneRecord
from rs_embed.providers.base import FetchPlan, PatchRequest, fetch_in_threads
from rs_embed.providers.raster import BlockGrid, read_onto
from rs_embed.sentinel2 import Radiometry, processing_baseline, radiometry
from rs_embed.specs import SensorSpec, TemporalSpec

NOTHING_SEEN = "no valid pixel in the place"
"""Why a scene that was read well gives nothing."""


@dataclass(frozen=True, slots=True)
class BandFile:
    """Where one band of a scene is stored."""

    path: str
    index: int = 1
    """Band of the file, from 1."""
    raster_bands: tuple[Mapping[str, Any], ...] = ()
    """The asset's `raster:bands`, where a STAC item has it."""
    grid: BlockGrid | None = None
    """Where its pixels lie, where a STAC item tells; its blocks are then a guess."""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One scene of an archive."""

    id: str
    acquired: datetime
    """Time of sensing, UTC."""
    bounds: tuple[float, float, float, float]
    """(west, south, east, north), degrees."""
    files: Mapping[str, BandFile]
    """Earth Engine's band name (`"B4"`, `"SCL"`) to its file."""
    footprint: BaseGeometry | None = None
    """Where it has data, degrees; None where only its bounds are known."""
    cloud_pct: float | None = None
    collection: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """Names that may hold the product's name."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Archive:
    """A provider over scenes that are already known."""

    name: str
    source: str
    scenes: tuple[Scene, ...]

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as they are read, `FETCH_WORKERS` places at a time."""
        return fetch_in_threads(requests, partial(_fetch_one, self), settings.fetch_workers())

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes and bytes from footprints and dates alone."""
        chosen = [choose(self.scenes, request).chosen for request in requests]
        pixels = [r.geobox.shape[0] * r.geobox.shape[1] for r in requests]
        read = [_read_bytes(scenes, r) * n for scenes, r, n in zip(chosen, requests, pixels, strict=True)]
        return FetchPlan(scenes_of=tuple(map(len, chosen)), covered=coverage(chosen, requests), read_bytes=sum(read))


def _read_bytes(scenes: Sequence[Scene], request: PatchRequest) -> int:
    """Bytes a pixel of the place: two for each band of each scene, one for its classification."""
    return sum(2 * len(request.sensor.bands) + ("SCL" in scene.files) for scene in scenes)


def coverage(chosen: Sequence[Sequence[Scene]], requests: Sequence[PatchRequest]) -> tuple[float, ...]:
    """The share of each place that lies under the footprints of its scenes."""
    return tuple(_covered(scenes, r) for scenes, r in zip(chosen, requests, strict=True))


def _covered(scenes: Sequence[Scene], request: PatchRequest) -> float:
    place = box(*lonlat_bounds(request.geobox))
    footprints = [box(*s.bounds) if s.footprint is None else s.footprint for s in scenes]
    if any(footprint.contains(place) for footprint in footprints):
        return 1.0
    return float(union_all(footprints).intersection(place).area / place.area)


@dataclass(frozen=True, slots=True)
class Choice:
    """Scenes for one request, newest first, and how many the filters left."""

    chosen: tuple[Scene, ...]
    met: int
    """Scenes that meet the place in the time range, before the cloud filter."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadScene:
    """A scene that was read for a place."""

    scene: Scene
    image: SceneImage
    rule: Radiometry
    doubt: str | None = None
    """What its pixels say against the rule."""


def choose(scenes: Sequence[Scene], request: PatchRequest) -> Choice:
    """Scenes that meet the place in the time range, by cloud cover, the least cloudy `max_scenes` of them."""
    sensor, place = request.sensor, lonlat_bounds(request.geobox)
    met = [s for s in scenes if _in_range(s.acquired, request.temporal) and _meets(s, place)]
    kept = [s for s in met if s.cloud_pct is None or s.cloud_pct <= sensor.cloudy_pct]
    warnings = []
    if sensor.cloudy_pct < 100 and any(s.cloud_pct is None for s in kept):
        warnings.append(
            f"cloudy_pct={sensor.cloudy_pct:g} could not be applied to {sum(s.cloud_pct is None for s in kept)} "
            "scene(s): the source gives no cloud cover"
        )
    if sensor.max_scenes is not None:
        kept = sorted(kept, key=_least_cloudy)[: sensor.max_scenes]
    kept.sort(key=lambda s: (s.acquired, s.id), reverse=True)
    return Choice(tuple(kept), len(met), tuple(warnings))


def _least_cloudy(scene: Scene) -> tuple[float, float, str]:
    cloud = 101.0 if scene.cloud_pct is None else scene.cloud_pct
    return cloud, -scene.acquired.timestamp(), scene.id


def _in_range(acquired: datetime, temporal: TemporalSpec) -> bool:
    day = acquired.astimezone(UTC).date().isoformat()
    return temporal.start <= day < temporal.end


def _meets(scene: Scene, place: tuple[float, float, float, float]) -> bool:
    a = scene.bounds
    if not (a[0] < place[2] and place[0] < a[2] and a[1] < place[3] and place[1] < a[3]):
        return False
    return scene.footprint is None or scene.footprint.intersects(box(*place))


def _fetch_one(archive: Archive, request: PatchRequest) -> Patch:
    choice = choose(archive.scenes, request)
    if not choice.chosen:
        raise NoImageryError(nothing_found(archive.name, archive.scenes, request, choice))
    require_scene_classes(choice, request.sensor)
    used: list[ReadScene] = []
    dropped: list[DroppedScene] = []
    images = _read_scenes(choice.chosen, request, used, dropped)
    return build_patch(archive.name, archive.source, request, choice, images, used, dropped)


def require_scene_classes(choice: Choice, sensor: SensorSpec) -> None:
    """Refuse the mask where a scene has nothing to mask with.

    Raises:
        ProviderError: naming the scene.
    """
    for scene in choice.chosen if sensor.cloud_mask == "scl" else ():
        if "SCL" not in scene.files:
            raise ProviderError(
                f"scene {scene.id} has no band SCL (it has {', '.join(scene.files)}); ask without cloud_mask"
            )


def build_patch(
    name: str,
    source: str,
    request: PatchRequest,
    choice: Choice,
    images: Iterator[SceneImage],
    used: Sequence[ReadScene],
    dropped: Sequence[DroppedScene],
) -> Patch:
    """Composite what was read; `used` and `dropped` are looked at once `images` has ended.

    Raises:
        NoImageryError: when no scene has a valid pixel.
    """
    dn = _composite(images, request.sensor)
    if dn is None or np.isnan(dn[0]).all():
        raise NoImageryError(nothing_valid(name, request, choice, dropped))
    seen = [masked_for(read.image, request.sensor) for read in used]
    clear_frac, n_clear = clear_statistics(seen, on_top=request.sensor.composite == "mosaic")
    return Patch(
        dn=dn,
        geobox=request.geobox,
        bands=request.sensor.bands,
        source=source,
        scenes=tuple(provenance(read.scene, read.rule) for read in used),
        dropped=tuple(dropped),
        clear_frac=clear_frac,
        n_clear=n_clear,
        warnings=(*choice.warnings, *_scene_warnings(used)),
    )


def nothing_valid(name: str, request: PatchRequest, choice: Choice, dropped: Sequence[DroppedScene]) -> str:
    """Why the scenes of a place give nothing."""
    reasons = "; ".join(f"{d.id}: {d.reason}" for d in dropped[:3])
    return (
        f"{name}: {choice.met} scene(s) meet the place in {_range(request.temporal)}, {len(choice.chosen)} "
        f"after the cloud filter, and none has a valid pixel there ({reasons or 'all pixels are masked'})"
    )


def _composite(images: Iterator[SceneImage], sensor: SensorSpec) -> npt.NDArray[np.float32] | None:
    """The sensor's composite, or None when no scene gave a pixel. A mosaic stops reading when it is full."""
    first = next(images, None)
    if first is None:
        return None
    rest = (masked_for(image, sensor) for image in _chain(first, images))
    return mosaic(rest) if sensor.composite == "mosaic" else median(list(rest))


def masked_for(image: SceneImage, sensor: SensorSpec) -> SceneImage:
    """A scene as the sensor's `cloud_mask` leaves it."""
    return image.masked() if sensor.cloud_mask == "scl" else image


def _chain(first: SceneImage, rest: Iterator[SceneImage]) -> Iterator[SceneImage]:
    yield first
    yield from rest


def _read_scenes(
    scenes: Sequence[Scene],
    request: PatchRequest,
    used: list[ReadScene],
    dropped: list[DroppedScene],
) -> Iterator[SceneImage]:
    """Images of the scenes that can be read and see the place; what became of each is noted in the two lists."""
    for scene in scenes:
        try:
            image, rule = read_scene(scene, request)
        except ProviderError as error:
            dropped.append(DroppedScene(scene.id, str(error)))
            continue
        if not image.valid.any():
            dropped.append(DroppedScene(scene.id, NOTHING_SEEN))
            continue
        used.append(ReadScene(scene, image, rule))
        yield image


def read_scene(scene: Scene, request: PatchRequest) -> tuple[SceneImage, Radiometry]:
    """One scene on the request's grid, harmonised.

    Raises:
        ProviderError: for a band that the scene lacks, or a file that cannot be read.
    """
    sensor = request.sensor
    for band in sensor.bands:
        if band not in scene.files:
            raise ProviderError(f"scene {scene.id} has no band {band} (it has {', '.join(scene.files)})")
    bands = [read_onto(f.path, [f.index], request.geobox) for f in (scene.files[b] for b in sensor.bands)]
    rule = scene_radiometry(scene, scene.files[sensor.bands[0]], bands[0].scale, bands[0].offset)
    valid = np.logical_and.reduce([b.valid for b in bands])
    values = np.concatenate([b.values for b in bands])
    return SceneImage(harmonise(values, rule), valid, _read_scl(scene, request)), rule


def _read_scl(scene: Scene, request: PatchRequest) -> npt.NDArray[np.uint8] | None:
    """The scene classification, read whenever there is one: a composite must show how clear it is."""
    file = scene.files.get("SCL")
    if file is None:
        return None
    pixels = read_onto(file.path, [file.index], request.geobox)
    return np.where(pixels.valid, pixels.values[0], 0).astype(np.uint8)


def scene_radiometry(scene: Scene, file: BandFile, scale: float, offset: float) -> Radiometry:
    """How this scene's stored values become DN; `scale` and `offset` are the file's own tags."""
    return radiometry(
        collection=scene.collection,
        properties=scene.properties,
        raster_bands=file.raster_bands,
        names=(scene.id, *scene.names),
        file_scale=scale,
        file_offset=offset,
        acquired=scene.acquired,
    )


def harmonise(values: npt.NDArray[np.generic], rule: Radiometry) -> npt.NDArray[np.float32]:
    """Stored values to DN; valid pixels stay at 1 or more where an offset is taken off, never wrapped."""
    dn = values.astype(np.float32)
    if rule.gain != 1.0:
        dn *= np.float32(rule.gain)
    if rule.offset:
        dn += np.float32(rule.offset)
        np.maximum(dn, 1.0, out=dn)
    return dn


def provenance(scene: Scene, rule: Radiometry) -> SceneRecord:
    """What metadata tell of a scene."""
    return SceneRecord(
        id=scene.id,
        datetime=scene.acquired.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        cloud_pct=scene.cloud_pct,
        processing_baseline=processing_baseline(scene.properties, (scene.id, *scene.names)),
        dn_offset=rule.offset,
        dn_offset_reason=rule.reason,
    )


def _scene_warnings(used: Sequence[ReadScene]) -> Iterator[str]:
    for read in used:
        yield from read.scene.warnings
        if read.doubt is not None:
            yield (
                f"doubtful DN offset: scene {read.scene.id}: {read.doubt}; let the pixels decide with "
                "backend='<catalog>?offset=pixels', or leave the scene out"
            )
        if read.rule.offset is None:
            yield (
                f"the DN offset of scene {read.scene.id} is unknown ({read.rule.reason}); its pixels are used as "
                "they are"
            )


def nothing_found(name: str, scenes: Sequence[Scene], request: PatchRequest, choice: Choice) -> str:
    """Why a place has no scene, with the nearest of the scenes that are known."""
    lon, lat = _middle(lonlat_bounds(request.geobox))
    counts = f"{name}: {choice.met} scene(s) before the cloud filter and 0 after it at {lonlat_text(lon, lat)}"
    if choice.met:
        return f"{counts} in {_range(request.temporal)}: raise cloudy_pct (now {request.sensor.cloudy_pct:g})"
    if not scenes:
        return f"{counts} in {_range(request.temporal)}: widen the time range or move the place"
    nearest = min(scenes, key=lambda s: (_distance_km(s, lon, lat), s.id))
    day, away_km = nearest.acquired.date().isoformat(), _distance_km(nearest, lon, lat)
    if away_km == 0:
        return (
            f"{counts} in {_range(request.temporal)}; the place was seen on {day} ({nearest.id}): widen the time range"
        )
    return (
        f"{counts} in {_range(request.temporal)}; the nearest scene is {nearest.id} of {day} at "
        f"{lonlat_text(*_middle(nearest.bounds))}, {away_km:,.0f} km away: move the place or the time range"
    )


def lonlat_text(lon: float, lat: float) -> str:
    """`48.2223°N 13.7209°E`, which nobody can read the wrong way round."""
    return f"{abs(lat):.4f}°{'N' if lat >= 0 else 'S'} {abs(lon):.4f}°{'E' if lon >= 0 else 'W'}"


def _middle(bounds: tuple[float, float, float, float]) -> tuple[float, float]:
    return (bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2


def _distance_km(scene: Scene, lon: float, lat: float) -> float:
    """Great-circle distance to a scene's middle, 0 inside its bounds."""
    west, south, east, north = scene.bounds
    if west <= lon <= east and south <= lat <= north:
        return 0.0
    return float(Geod(ellps="WGS84").inv(lon, lat, *_middle(scene.bounds))[2]) / 1000


def _range(temporal: TemporalSpec) -> str:
    return f"{temporal.start} to {temporal.end}"
