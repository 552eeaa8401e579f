"""Choice of an export's rows: sizes are checked, and a region is counted, before anything is read or cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from rs_embed.arguments import check_temporal
from rs_embed.errors import SpecError
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import InputPlaces, read_places
from rs_embed.export.limits import Limits
from rs_embed.export.regions import as_region, count_chips, region_places
from rs_embed.export.schedule import Schedule, schedule, windows
from rs_embed.grid import place_geobox
from rs_embed.providers.base import PatchRequest
from rs_embed.specs import Every, SensorSpec, TemporalSpec

CutListener = Callable[[int, int], None]
"""Callback for the number of chips looked at, and of all that may lie in a region."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Input of an export: its places, and its rows in their order."""

    places: InputPlaces
    schedule: Schedule
    total: int  # number of rows, also of the chips that were not cut

    def patch_requests(self, sensor: SensorSpec, numbers: Iterable[int]) -> list[PatchRequest]:
        """Return the requests to a provider for some rows, by their numbers."""
        placed = ((self.schedule.place_of[i], self.schedule.window_of[i]) for i in numbers)
        return [
            PatchRequest(
                place_geobox(self.places.place(int(place)), sensor.scale_m), self.schedule.windows[window], sensor
            )
            for place, window in placed
        ]

    @property
    def bad_rows(self) -> tuple[str, ...]:
        """Lines of the input that cannot be asked for, each with its reason."""
        return tuple(f"{self.places.where(i)}: {fault}" for i, fault in sorted(self.schedule.faults.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsWanted:
    """Choice of an export's rows."""

    source: object
    """Places, or a region to cut."""
    chip_m: float | None
    read: ReadOptions
    temporal: TemporalSpec | None
    every: Every | None

    def find(self, limits: Limits, *, sample: int | None = None, report: CutListener | None = None) -> Rows:
        """Return the rows; sizes are checked and a region is counted before anything is read or cut.

        With `sample`, their number is not limited, and a large region is cut in part: about so many chips, neighbours
        together.
        """
        region, side_m = as_region(self.source), self.read.chip_m if self.chip_m is None else self.chip_m
        check_temporal(self.temporal)
        read = replace(self.read, chip_m=side_m)  # checks it
        most, total = self.read.max_places if sample is None else None, None
        if region is not None and side_m is None:
            raise SpecError("a region needs the size of its chips: chip_m (--chip M)")
        if side_m is not None:
            limits.check_side(side_m)
        if region is None or side_m is None:
            places = read_places(self.source, read)
        else:
            chips = count_chips(region, side_m) * (len(windows(self.temporal, self.every)) if self.temporal else 1)
            limits.check_count(chips, most, f"chips of {side_m:g} m from this region make about")
            every_nth = 1 if sample is None else max(1, chips // sample)
            total = chips if every_nth > 1 else None
            places = region_places(region, side_m, every_nth=every_nth, report=report)
        rows = schedule(places, self.temporal, self.every, limits.find_unfit(places))
        limits.check_count(len(rows), most, "the input has")
        return Rows(places, rows, total or len(rows))
