"""The rows of a dataset before they are planned: each place in each of its time ranges, neighbours together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from rs_embed.arrays import BoolArray, CoordinateArray, IndexArray
from rs_embed.errors import SpecError
from rs_embed.export.inputs import InputPlaces
from rs_embed.grid import transformer, utm_epsgs
from rs_embed.specs import Every, TemporalSpec

_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_CELL_M = 1280.0
_CURVE_BITS = 14
_NO_TIME = "it has no time range: give --start and --end, or columns of these names"
_BLOCK = 1 << 20  # places that are transformed at once: 10 million would take a second copy of their coordinates


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rows in the order of their partitions: by time range, zone and a Hilbert curve, so that neighbours share blocks.

    The order is the same in every process.
    """

    windows: Sequence[TemporalSpec]
    window_of: npt.NDArray[np.int32]  # number of each row's time range
    place_of: IndexArray  # number of each row's place
    faults: Mapping[int, str]  # places without a row, and why

    def __len__(self) -> int:
        return len(self.place_of)


def windows(temporal: TemporalSpec, every: Every | None) -> list[TemporalSpec]:
    """Cut a time range at the first days of months, quarters or years; `every=None` leaves it whole."""
    if every is None:
        return [temporal]
    start, end, parts = date.fromisoformat(temporal.start), date.fromisoformat(temporal.end), []
    while start < end:
        stop = min(_next_first(start, _MONTHS[every]), end)
        parts.append(TemporalSpec.range(start, stop))
        start = stop
    return parts


def _next_first(day: date, months: int) -> date:
    """Return the first day of the month, quarter or year after a day."""
    first = day.replace(day=1, month=(day.month - 1) // months * months + 1)
    return (first + timedelta(days=31 * months)).replace(day=1)


def schedule(
    places: InputPlaces,
    temporal: TemporalSpec | None,
    every: Every | None,
    unfit: Mapping[int, str] | None = None,
) -> Schedule:
    """Return each place in each of its time ranges; a row's own start and end override the common ones.

    Args:
        places: the input.
        temporal: time range of rows without their own.
        every: period to cut time ranges into.
        unfit: places that the run cannot embed for another reason.

    Raises:
        SpecError: where no row is left, with the reason of the first one: such an input is a mistake as a whole.
    """
    if every is not None and every not in _MONTHS:
        raise SpecError(f"every must be {', '.join(_MONTHS)}, got {every!r}")
    faults = {**(unfit or {}), **places.faults}
    good = np.ones(len(places), bool)
    good[list(faults)] = False
    ranges_in, without = _cut_ranges(places, temporal, every)
    lost = good if len(without) == len(places.ranges) else good & _is_in(places, list(without))
    if not (good & ~lost).any():
        raise SpecError(_why_none(places, faults, without))
    for i in np.flatnonzero(lost).tolist():
        faults[i] = without[0 if places.range_of is None else int(places.range_of[i])]
    order = _spatial_order(places, np.flatnonzero(good & ~lost))
    wanted = sorted(ranges_in, key=lambda window: (window.start, window.end))
    members = list(_members(places, order, [ranges_in[window] for window in wanted]))
    sizes = [len(rows) for rows in members]
    return Schedule(wanted, np.repeat(np.arange(len(wanted), dtype=np.int32), sizes), np.concatenate(members), faults)


def _members(places: InputPlaces, order: IndexArray, codes_of: Sequence[Sequence[int]]) -> Iterator[IndexArray]:
    """Yield the places of each window in spatial order; `codes_of` has the numbers of the time ranges it is in."""
    codes = np.zeros(len(order), np.int64) if places.range_of is None else places.range_of[order]
    by_code = np.argsort(codes, kind="stable")
    first = np.searchsorted(codes[by_code], np.arange(len(places.ranges) + 1))
    for numbers in codes_of:
        positions = np.concatenate([by_code[first[code] : first[code + 1]] for code in numbers])
        yield order[np.sort(positions)]


def _cut_ranges(
    places: InputPlaces, temporal: TemporalSpec | None, every: Every | None
) -> tuple[dict[TemporalSpec, list[int]], dict[int, str]]:
    """Return each window with the numbers of the input's time ranges that it lies in, and why others have none."""
    common = (temporal.start, temporal.end) if temporal else (None, None)
    found: dict[TemporalSpec, list[int]] = defaultdict(list)
    without: dict[int, str] = {}
    for code, (start, end) in enumerate(places.ranges):
        first, last = start or common[0], end or common[1]
        try:
            if first is None or last is None:
                raise SpecError(_NO_TIME)
            for window in windows(TemporalSpec.range(first, last), every):
                found[window].append(code)
        except SpecError as error:  # also of a row's own day with the common other one
            without[code] = str(error)
    return found, without


def _is_in(places: InputPlaces, codes: list[int]) -> BoolArray:
    return np.isin(np.zeros(len(places), int) if places.range_of is None else places.range_of, codes)


def _why_none(places: InputPlaces, faults: Mapping[int, str], without: Mapping[int, str]) -> str:
    """Return the error of an input without a row that can be embedded."""
    if not len(places):
        return "there is no place to embed: the input has no row"
    first = min(faults, default=-1)
    reason = f"{places.where(first)}: {faults[first]}" if first >= 0 else next(iter(without.values()))
    far = [v for v in (places.lon[first], places.lat[first]) if first >= 0 and np.isfinite(v) and abs(v) > 360]
    hint = "; coordinates in metres need the name of their CRS: --crs EPSG:…" if far else ""
    return f"none of the {len(places):,} row(s) of the input can be embedded, {reason}{hint}"


def _spatial_order(places: InputPlaces, rows: IndexArray) -> IndexArray:
    """Return rows by zone and along a Hilbert curve over cells of 1,280 m."""
    zones, curve = np.empty(len(rows), np.int32), np.empty(len(rows), np.uint32)
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        lon, lat = places.lon[rows[block]], places.lat[rows[block]]
        zones[block] = utm_epsgs(lon, lat)
        curve[block] = _along_curve(lon, lat, zones[block])
    return rows[np.lexsort((curve, zones))]


def _along_curve(lon: CoordinateArray, lat: CoordinateArray, zones: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    curve = np.zeros(len(lon), np.int64)
    for zone in np.unique(zones).tolist():
        members = zones == zone
        x, y = transformer(4326, zone).transform(lon[members], lat[members])
        curve[members] = hilbert((x // _CELL_M).astype(np.int64), (y // _CELL_M).astype(np.int64))
    return curve


def hilbert(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the distance of cells, x and y in 0…2**14 - 1, along https://en.wikipedia.org/wiki/Hilbert_curve."""
    x, y = (np.clip(v, 0, 2**_CURVE_BITS - 1) for v in (x, y))
    distance = np.zeros_like(x)
    side = 2 ** (_CURVE_BITS - 1)
    while side > 0:
        right, up = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ up)
        flip = ~up & right
        x, y = x & (side - 1), y & (side - 1)
        x, y = (np.where(flip, side - 1 - v, v) for v in (x, y))
        x, y = np.where(up, x, y), np.where(up, y, x)
        side //= 2
    return distance
