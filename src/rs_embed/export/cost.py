"""`plan_export`: what an export would cost, from the catalog alone, before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from rs_embed.embedders.cards import find_card
from rs_embed.errors import SpecError
from rs_embed.export.inputs import InputPlaces, ReadOptions, read_places, region_places
from rs_embed.export.partitions import Every, PlannedRow, expand
from rs_embed.grid import place_geobox
from rs_embed.providers.base import FetchPlan, PatchRequest, Provider
from rs_embed.providers.gee.expressions import bytes_per_pixel
from rs_embed.providers.registry import resolve
from rs_embed.specs import BBox, OutputSpec, PointBuffer, SensorSpec, TemporalSpec

_POOLED = OutputSpec.pooled()
_ROW_BYTES = 2_500
"""Of a row in its files, but for its vectors: scenes, texts and a thumbnail of 96 px have most of it."""
_THUMBNAIL_BYTES = 16_000
_PLACES_A_S = 20.0
"""What ViT-B/32 does on two cores; the network is mostly slower than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What an export would read and write."""

    fetch: FetchPlan
    bad_rows: tuple[str, ...]
    write_bytes: int
    grid_bytes: int
    """Of token grids, where they were asked for."""
    mbit_s: float
    alternatives: tuple[tuple[str, FetchPlan], ...]
    """What else one could ask for, and what that would read."""

    @property
    def minutes(self) -> float:
        """At `mbit_s`, and not less than what the model takes on two cores."""
        return max(minutes_of(self.fetch, self.mbit_s), self.fetch.places / _PLACES_A_S / 60)

    @property
    def partly_covered(self) -> int:
        """Places that lie under footprints in part."""
        return sum(0 < share < 0.99 for share in self.fetch.covered)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **plan_facts(self.fetch, self.mbit_s),
            "minutes": round(self.minutes, 1),
            "bad_rows": list(self.bad_rows),
            "write_bytes": self.write_bytes,
            "grid_bytes": self.grid_bytes,
            "places_partly_covered": self.partly_covered,
            "places_without_scene": list(self.fetch.places_without_scene),
            "alternatives": {name: plan_facts(plan, self.mbit_s) for name, plan in self.alternatives},
        }


def minutes_of(plan: FetchPlan, mbit_s: float) -> float:
    """How long its bytes take."""
    return plan.read_bytes * 8 / (mbit_s * 1e6) / 60


def plan_facts(plan: FetchPlan, mbit_s: float) -> dict[str, Any]:
    """A fetch plan as JSON."""
    return {
        "places": plan.places,
        "scenes": plan.scenes,
        "blocks": plan.blocks,
        "requests": plan.requests,
        "read_bytes": plan.read_bytes,
        "fetch_minutes": round(minutes_of(plan, mbit_s), 1),
    }


def plan_export(
    places: object,
    *,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    model: str = "remoteclip_s2rgb",
    output: OutputSpec = _POOLED,
    backend: str | Provider = "auto",
    chip_m: float | None = None,
    every: Every | None = None,
    read: ReadOptions | None = None,
    grid: bool = False,
    mbit_s: float = 200.0,
) -> ExportPlan:
    """What `export_embeddings` would read and write, from the catalog alone: no pixel is read.

    Args:
        places: as there.
        temporal: as there.
        sensor: as there.
        model: as there.
        output: as there.
        backend: as there.
        chip_m: as there.
        every: as there.
        read: as there.
        grid: as there.
        mbit_s: the network's rate, megabits a second.

    Raises:
        SpecError: as there, or for a rate that is not positive.
        ProviderError: when the catalog cannot be asked.
    """
    if mbit_s <= 0:
        raise SpecError(f"the rate must be greater than 0 Mbit/s, got {mbit_s:g}")
    sensor = SensorSpec() if sensor is None else sensor
    card, provider = find_card(model), resolve(backend)
    found = find_places(places, chip_m, read)
    rows = list(expand(found, temporal, every))
    requests = patch_requests(rows, sensor)
    dim = card.projection_dim if output.pooling == "projected" else card.token_dim
    row_bytes = _ROW_BYTES + _THUMBNAIL_BYTES + 4 * dim + 2 * card.projection_dim
    return ExportPlan(
        fetch=provider.plan(requests),
        bad_rows=tuple(row.error for row in rows if row.error is not None),
        write_bytes=len(requests) * row_bytes,
        grid_bytes=len(requests) * 4 * card.token_dim * (card.image_px // card.patch_px) ** 2 if grid else 0,
        mbit_s=mbit_s,
        alternatives=tuple(_alternatives(rows, sensor, provider)),
    )


def _alternatives(rows: list[PlannedRow], sensor: SensorSpec, provider: Provider) -> list[tuple[str, FetchPlan]]:
    few = patch_requests(rows, replace(sensor, max_scenes=3))
    small = [
        replace(r, place=replace(r.place, buffer_m=r.place.buffer_m / 2))
        for r in rows
        if isinstance(r.place, PointBuffer)
    ]
    found = [("max_scenes=3", provider.plan(few))]
    if len(small) == len(rows):
        found.append(("half the chip", provider.plan(patch_requests(small, sensor))))
    if provider.name == "gee":
        return found
    requests = patch_requests(rows, sensor)
    pixels = sum(r.geobox.shape[0] * r.geobox.shape[1] for r in requests)
    composites = FetchPlan(
        scenes_of=tuple(1 for _ in requests),
        covered=tuple(1.0 for _ in requests),
        read_bytes=pixels * bytes_per_pixel(1, sensor),
        requests=len(requests),
    )
    return [*found, ('backend="gee", which composites on its side', composites)]


def find_places(places: object, chip_m: float | None, read: ReadOptions | None) -> InputPlaces:
    """Places of whatever was given: a region is cut into chips.

    Raises:
        SpecError: for what is none, or a region without a chip size.
    """
    if isinstance(places, BBox):
        places = box(places.minlon, places.minlat, places.maxlon, places.maxlat)
    if isinstance(places, BaseGeometry):
        if chip_m is None:
            raise SpecError("a region needs the size of its chips: chip_m (--chip M)")
        if chip_m <= 0:
            raise SpecError(f"a chip's side must be greater than 0 metres, got {chip_m:g}")
        return region_places(places, chip_m)
    options = read or ReadOptions()
    return read_places(places, options if chip_m is None else replace(options, chip_m=chip_m))


def patch_requests(rows: Sequence[PlannedRow], sensor: SensorSpec) -> list[PatchRequest]:
    """What the rows that are places ask a provider for."""
    good = ((r.place, r.temporal) for r in rows if r.error is None)
    return [
        PatchRequest(place_geobox(p, sensor.scale_m), t, sensor) for p, t in good if p is not None and t is not None
    ]
