"""`plan_export`: the cost of an export, estimated before it runs, without reading a pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from rs_embed.arguments import check_sensor
from rs_embed.embedders.cards import find_card
from rs_embed.errors import SpecError, naming_missing
from rs_embed.export.formats import ReadOptions
from rs_embed.export.limits import PLACES_A_S, Limits
from rs_embed.export.partitions import PARTITION_SIZE
from rs_embed.export.rows import Rows, RowsWanted
from rs_embed.html import Fact, result_html
from rs_embed.providers.base import FetchPlan, PatchRequest, Provider
from rs_embed.providers.gee.expressions import bytes_per_pixel
from rs_embed.providers.registry import resolve
from rs_embed.specs import (
    DEFAULT_OUTPUT,
    Every,
    OutputSpec,
    SensorSpec,
    TemporalSpec,
)

_SAMPLE = 10_000
"""Number of places above which a plan asks for a part of them: a catalog's footprints take a millisecond each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Estimate of the bytes that an export reads and writes."""

    rows: int
    """Number of places to embed, in each of their time ranges; of a large region, about so many."""
    fetch: FetchPlan
    """Plan of what was asked for: all rows, or a sample of neighbours."""
    bad_rows: tuple[str, ...]
    write_bytes: int
    grid_bytes: int
    """Bytes of token grids, 0 where they are not wanted."""
    mbit_s: float
    alternatives: tuple[tuple[str, FetchPlan], ...]
    """Cheaper requests, each with its name and its plan."""

    @property
    def share(self) -> float:
        """Number of rows for each one that was asked for; counts of the plans are multiplied by it."""
        return self.rows / max(self.fetch.places, 1)

    def all(self, count: str, plan: FetchPlan | None = None) -> int:
        """Return a count of a plan for all rows.

        Args:
            count: "places", "scenes", "blocks", "requests" or "read_bytes".
            plan: one of the `alternatives`; what was asked for when None.
        """
        return round(self.share * float(getattr(plan or self.fetch, count)))

    @property
    def minutes(self) -> float:
        """Duration at `mbit_s`, but at least that of the model on two cores."""
        return max(self.minutes_of(self.fetch), self.rows / PLACES_A_S / 60)

    def minutes_of(self, plan: FetchPlan) -> float:
        """Return the minutes that the bytes of a plan take at `mbit_s`.

        Args:
            plan: `fetch`, or one of the `alternatives`.
        """
        return self.share * plan.read_bytes * 8 / (self.mbit_s * 1e6) / 60

    @property
    def partly_covered(self) -> int:
        """Number of places that the scenes' footprints cover in part."""
        return round(self.share * sum(0 < share < 0.99 for share in self.fetch.covered))

    def __repr__(self) -> str:
        bad = f", {len(self.bad_rows)} bad row(s)" if self.bad_rows else ""
        return f"ExportPlan({self.rows:,} places, {self._read_text}, {self.minutes:.1f} minutes{bad})"

    @property
    def _read_text(self) -> str:
        return f"{self.all('read_bytes') / 1e6:,.1f} MB of {self.all('scenes'):,} scene(s)"

    def _repr_html_(self) -> str:
        without, partly = round(self.share * len(self.fetch.places_without_scene)), self.partly_covered
        facts: list[Fact] = [
            ("places", f"{self.rows:,}"),
            ("to read", self._read_text),
            ("requests", f"{requests:,}" if (requests := self.all("requests")) else None),
            ("duration", f"{self.minutes:,.1f} minutes at {self.mbit_s:g} Mbit/s, at least as long as the model takes"),
            ("to write", f"{(self.write_bytes + self.grid_bytes) / 1e6:,.1f} MB"),
        ]
        facts += [(f"with {name}", f"{self.all('read_bytes', plan) / 1e6:,.1f} MB") for name, plan in self.alternatives]
        remarks = [f"{without:,} place(s) without a scene"] if without else []
        remarks += [f"{partly:,} place(s) are covered in part"] if partly else []
        return result_html("Plan of an export", facts, remarks=[*remarks, *self.bad_rows[:5]])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            **self._facts(self.fetch),
            "places": self.rows,
            "places_asked": self.fetch.places,
            "minutes": round(self.minutes, 1),
            "bad_rows": list(self.bad_rows),
            "write_bytes": self.write_bytes,
            "grid_bytes": self.grid_bytes,
            "places_partly_covered": self.partly_covered,
            "places_without_scene": list(self.fetch.places_without_scene),
            "alternatives": {name: self._facts(plan) for name, plan in self.alternatives},
        }

    def _facts(self, plan: FetchPlan) -> dict[str, Any]:
        facts = {name: self.all(name, plan) for name in ("places", "scenes", "blocks", "requests", "read_bytes")}
        return facts | {"fetch_minutes": round(self.minutes_of(plan), 1)}


@naming_missing()
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
        places: places or a region; of more than 10,000 rows, a sample is asked for and multiplied.
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

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, list_samples, plan_export
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
        >>> plan = plan_export([place], temporal=month, backend="sample")
        >>> plan.fetch.places, plan.fetch.scenes
        (1, 1)
    """
    if mbit_s <= 0:
        raise SpecError(f"the rate must be greater than 0 Mbit/s, got {mbit_s:g}")
    sensor = check_sensor(sensor)
    card, provider = find_card(model), resolve(backend)
    limits = Limits(card=card, scale_m=sensor.scale_m, output=output, allow_small=True)
    wanted = RowsWanted(source=places, chip_m=chip_m, read=read or ReadOptions(), temporal=temporal, every=every)
    found = wanted.find(limits, sample=_SAMPLE)
    numbers = _neighbours(len(found.schedule))
    requests = found.patch_requests(sensor, numbers)
    return ExportPlan(
        rows=found.total,
        fetch=provider.plan(requests),
        bad_rows=found.bad_rows,
        write_bytes=found.total * limits.row_bytes,
        grid_bytes=found.total * 4 * card.token_dim * (card.image_px // card.patch_px) ** 2 if grid else 0,
        mbit_s=mbit_s,
        alternatives=tuple(_alternatives(found, numbers, requests, sensor, provider)),
    )


def _neighbours(rows: int) -> list[int]:
    """Return the numbers of all rows, or of many runs of neighbours: what is read for them is shared."""
    runs = range(0, rows, PARTITION_SIZE)
    chosen = runs[:: max(1, -(-rows // _SAMPLE))]
    return [i for start in chosen for i in range(start, min(start + PARTITION_SIZE, rows))]


def _alternatives(
    rows: Rows, numbers: Sequence[int], requests: Sequence[PatchRequest], sensor: SensorSpec, provider: Provider
) -> Iterator[tuple[str, FetchPlan]]:
    few = replace(sensor, max_scenes=3)
    yield "max_scenes=3", provider.plan([replace(request, sensor=few) for request in requests])
    if not rows.places.boxes:
        half = replace(rows, places=replace(rows.places, half_m=rows.places.half_m / 2))
        yield "half the chip", provider.plan(half.patch_requests(sensor, numbers))
    if provider.name != "gee":
        pixels, n = sum(prod(request.geobox.shape) for request in requests), len(requests)
        read_bytes = pixels * bytes_per_pixel(1, sensor)
        composites = FetchPlan(scenes_of=(1,) * n, covered=(1.0,) * n, read_bytes=read_bytes, requests=n)
        yield 'backend="gee", which composites on its side', composites
