"""`plan_export`: the cost of an export, estimated before it runs, without reading a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from shapely.geometry.base import BaseGeometry

from rs_embed.embedders.cards import find_card
from rs_embed.errors import SpecError
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import InputPlaces, InputRow, read_places
from rs_embed.export.partitions import expand
from rs_embed.export.regions import region_places
from rs_embed.grid import place_geobox
from rs_embed.html import Fact, result_html
from rs_embed.outlines import polygon
from rs_embed.providers.base import FetchPlan, PatchRequest, Provider
from rs_embed.providers.gee.expressions import bytes_per_pixel
from rs_embed.providers.registry import resolve
from rs_embed.specs import (
    DEFAULT_OUTPUT,
    DEFAULT_SENSOR,
    BBox,
    Every,
    OutputSpec,
    PointBuffer,
    SensorSpec,
    TemporalSpec,
)

_ROW_BYTES = 2_500  # a row in its files, without vectors and thumbnail
_THUMBNAIL_BYTES = 16_000
_PLACES_A_S = 20.0  # ViT-B/32 on two cores; the network is mostly slower


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Estimate of the bytes that an export reads and writes."""

    fetch: FetchPlan
    bad_rows: tuple[str, ...]
    write_bytes: int
    grid_bytes: int
    """Bytes of token grids, 0 where they are not wanted."""
    mbit_s: float
    alternatives: tuple[tuple[str, FetchPlan], ...]
    """Cheaper requests, each with its name and its plan."""

    @property
    def minutes(self) -> float:
        """Duration at `mbit_s`, but at least that of the model on two cores."""
        return max(minutes_of(self.fetch, self.mbit_s), self.fetch.places / _PLACES_A_S / 60)

    @property
    def partly_covered(self) -> int:
        """Number of places that the scenes' footprints cover in part."""
        return sum(0 < share < 0.99 for share in self.fetch.covered)

    def __repr__(self) -> str:
        bad = f", {len(self.bad_rows)} bad row(s)" if self.bad_rows else ""
        return f"ExportPlan({self.fetch.places:,} places, {self._read_text}, {self.minutes:.1f} minutes{bad})"

    @property
    def _read_text(self) -> str:
        return f"{self.fetch.read_bytes / 1e6:,.1f} MB of {self.fetch.scenes:,} scene(s)"

    def _repr_html_(self) -> str:
        without, partly = len(self.fetch.places_without_scene), self.partly_covered
        facts: list[Fact] = [
            ("places", f"{self.fetch.places:,}"),
            ("to read", f"{self._read_text} in {self.fetch.requests:,} request(s)"),
            ("duration", f"{self.minutes:,.1f} minutes at {self.mbit_s:g} Mbit/s, at least as long as the model takes"),
            ("to write", f"{(self.write_bytes + self.grid_bytes) / 1e6:,.1f} MB"),
        ]
        facts += [(f"with {name}", f"{plan.read_bytes / 1e6:,.1f} MB") for name, plan in self.alternatives]
        remarks = [f"{without:,} place(s) without a scene"] if without else []
        remarks += [f"{partly:,} place(s) are covered in part"] if partly else []
        return result_html("Plan of an export", facts, remarks=[*remarks, *self.bad_rows[:5]])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            **_fetch_to_dict(self.fetch, self.mbit_s),
            "minutes": round(self.minutes, 1),
            "bad_rows": list(self.bad_rows),
            "write_bytes": self.write_bytes,
            "grid_bytes": self.grid_bytes,
            "places_partly_covered": self.partly_covered,
            "places_without_scene": list(self.fetch.places_without_scene),
            "alternatives": {name: _fetch_to_dict(plan, self.mbit_s) for name, plan in self.alternatives},
        }


def minutes_of(plan: FetchPlan, mbit_s: float) -> float:
    """Return the minutes that the bytes of a plan take at a rate of `mbit_s` megabits a second."""
    return plan.read_bytes * 8 / (mbit_s * 1e6) / 60


def _fetch_to_dict(plan: FetchPlan, mbit_s: float) -> dict[str, Any]:
    facts = {name: getattr(plan, name) for name in ("places", "scenes", "blocks", "requests", "read_bytes")}
    return facts | {"fetch_minutes": round(minutes_of(plan, mbit_s), 1)}


def plan_export(
    places: object,
    *,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    model: str = "remoteclip_s2rgb",
    output: OutputSpec = DEFAULT_OUTPUT,
    backend: str | Provider = "auto",
    chip_m: float | None = None,
    every: Every | None = None,
    read: ReadOptions | None = None,
    grid: bool = False,
    mbit_s: float = 200.0,
) -> ExportPlan:
    """Estimate the bytes that `export_embeddings` would read and write, from the backend's listings alone.

    Args:
        places: places or a region.
        temporal: time range of rows without one.
        sensor: imagery to fetch.
        model: a name of `list_models()`.
        output: the vector to write.
        backend: source of the imagery.
        chip_m: side of the square on each point or centroid.
        every: "month", "quarter" or "year".
        read: names of a file's columns.
        grid: include token grids.
        mbit_s: the network's rate, megabits a second.

    Raises:
        SpecError: for an input that cannot be read, or a rate that is not positive.
        ProviderError: for a backend that does not answer.
    """
    if mbit_s <= 0:
        raise SpecError(f"the rate must be greater than 0 Mbit/s, got {mbit_s:g}")
    sensor = sensor or DEFAULT_SENSOR
    card, provider = find_card(model), resolve(backend)
    rows = list(expand(find_places(places, chip_m, read), temporal, every))
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


def _alternatives(rows: list[InputRow], sensor: SensorSpec, provider: Provider) -> Iterator[tuple[str, FetchPlan]]:
    yield "max_scenes=3", provider.plan(patch_requests(rows, replace(sensor, max_scenes=3)))
    points = [(row, row.place) for row in rows if isinstance(row.place, PointBuffer)]
    if len(points) == len(rows):
        small = [replace(row, place=replace(point, buffer_m=point.buffer_m / 2)) for row, point in points]
        yield "half the chip", provider.plan(patch_requests(small, sensor))
    if provider.name != "gee":
        requests = patch_requests(rows, sensor)
        pixels, n = sum(prod(request.geobox.shape) for request in requests), len(requests)
        read_bytes = pixels * bytes_per_pixel(1, sensor)
        composites = FetchPlan(scenes_of=(1,) * n, covered=(1.0,) * n, read_bytes=read_bytes, requests=n)
        yield 'backend="gee", which composites on its side', composites


def find_places(places: object, chip_m: float | None, read: ReadOptions | None) -> InputPlaces:
    """Return the places of a file, a frame or a list, or the chips of a region."""
    if isinstance(places, BBox):
        places = polygon(places.bounds)
    if isinstance(places, BaseGeometry):
        if chip_m is None:
            raise SpecError("a region needs the size of its chips: chip_m (--chip M)")
        if chip_m <= 0:
            raise SpecError(f"a chip's side must be greater than 0 metres, got {chip_m:g}")
        return region_places(places, chip_m)
    options = read or ReadOptions()
    return read_places(places, options if chip_m is None else replace(options, chip_m=chip_m))


def patch_requests(rows: Sequence[InputRow], sensor: SensorSpec) -> list[PatchRequest]:
    """Return the requests to a provider for the rows that are places."""
    good = ((row.place, row.temporal) for row in rows if row.error is None)
    return [PatchRequest(place_geobox(place, sensor.scale_m), time, sensor) for place, time in good if place and time]
