"""Planning of partitions: each place in each of its time ranges, neighbours together, always in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rs_embed.errors import SpecError
from rs_embed.export.inputs import InputPlaces
from rs_embed.export.request import ExportRequest
from rs_embed.grid import transformer, utm_epsg
from rs_embed.specs import BBox, Place, PointBuffer, TemporalSpec

PARTITION_SIZE = 256
Every = Literal["month", "quarter", "year"]
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_CELL_M = 1280.0
_CURVE_BITS = 14
_SCHEMA = pa.schema(
    [
        ("input_row", pa.int64()),
        ("id", pa.string()),
        ("unique_id", pa.string()),
        ("request_id", pa.string()),
        ("place", pa.list_(pa.float64())),
        ("start", pa.string()),
        ("end", pa.string()),
        ("error", pa.string()),
    ]
)
PLAN_COLUMNS = _SCHEMA.names
"""Columns of a plan; the user's follow, with the prefix `user_`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """One place in one time range; a bad row has an error instead of them."""

    input_row: int
    id: str
    place: Place | None
    temporal: TemporalSpec | None
    error: str | None


def windows(temporal: TemporalSpec, every: Every | None) -> list[TemporalSpec]:
    """Cut a time range at the first days of months, quarters or years; `every=None` leaves it whole."""
    if every is None:
        return [temporal]
    if every not in _MONTHS:
        raise SpecError(f"every must be {', '.join(_MONTHS)}, got {every!r}")
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


def expand(places: InputPlaces, temporal: TemporalSpec | None, every: Every | None) -> Iterator[PlannedRow]:
    """Yield each row in each of its time ranges; a row's start and end override the common ones."""
    ranges_of: dict[tuple[str | None, str | None], list[TemporalSpec]] = {}
    for row in places.rows:
        error = row.error
        if error is None:
            key = row.start or (temporal.start if temporal else None), row.end or (temporal.end if temporal else None)
            if key not in ranges_of:
                ranges_of[key] = _ranges(*key, every)
            for window in ranges_of[key]:
                yield PlannedRow(input_row=row.number, id=row.id, place=row.place, temporal=window, error=None)
            error = (
                None if ranges_of[key] else "it has no time range: give --start and --end, or columns of these names"
            )
        if error is not None:
            reason = f"{row.where}: {error}"
            yield PlannedRow(input_row=row.number, id=row.id, place=row.place, temporal=None, error=reason)


def _ranges(start: str | None, end: str | None, every: Every | None) -> list[TemporalSpec]:
    return windows(TemporalSpec.range(start, end), every) if start and end else []


def plan_rows(places: InputPlaces, rows: Sequence[PlannedRow], request: ExportRequest, known: set[str]) -> pa.Table:
    """Return the plan of the rows whose `unique_id` is not `known`, in the order of their partitions."""
    request_ids = [request.for_place(r.place, r.temporal).id() if r.place and r.temporal else None for r in rows]
    unique_ids = [_unique_id(i, row) for i, row in zip(request_ids, rows, strict=True)]
    new = np.array([i for i, unique in enumerate(unique_ids) if unique not in known], dtype=np.int64)
    order = new[_spatial_order([rows[i] for i in new], [unique_ids[i] for i in new])]
    columns = {
        "input_row": [rows[i].input_row for i in order],
        "id": [rows[i].id for i in order],
        "unique_id": [unique_ids[i] for i in order],
        "request_id": [request_ids[i] for i in order],
        "place": [_numbers(rows[i].place) for i in order],
        "start": [t.start if (t := rows[i].temporal) else None for i in order],
        "end": [t.end if (t := rows[i].temporal) else None for i in order],
        "error": [rows[i].error for i in order],
    }
    table = pa.table(columns, schema=_SCHEMA)
    user = places.columns.take(pa.array(columns["input_row"], pa.int64()))
    for name in user.column_names:
        table = table.append_column(f"user_{name}", user[name])
    return table


def parse_place(numbers: Sequence[float]) -> Place:
    """Return the place that a plan stores as three or four numbers."""
    if len(numbers) == 3:
        lon, lat, buffer_m = numbers
        return PointBuffer(lon, lat, buffer_m)
    west, south, east, north = numbers
    return BBox(west, south, east, north)


def _numbers(place: Place | None) -> list[float] | None:
    if place is None:
        return None
    if isinstance(place, PointBuffer):
        return [place.lon, place.lat, place.buffer_m]
    return [place.minlon, place.minlat, place.maxlon, place.maxlat]


def _unique_id(request_id: str | None, row: PlannedRow) -> str:
    """Return a digest of the request and the row's id; for a bad row, of its id and number."""
    text = f"{request_id}\n{row.id}" if request_id else f"bad\n{row.id}\n{row.input_row}"
    return hashlib.sha256(text.encode()).hexdigest()


def _spatial_order(rows: Sequence[PlannedRow], unique_ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the order by time range, zone and a Hilbert curve over cells of 1,280 m: neighbours share blocks."""
    zones = [utm_epsg(*row.place.centre) if row.place else 0 for row in rows]
    starts = [(row.temporal.start, row.temporal.end) if row.temporal else ("", "") for row in rows]
    curve = np.zeros(len(rows), np.int64)
    for zone in set(zones) - {0}:
        members = [i for i, z in enumerate(zones) if z == zone]
        lonlat = np.array([rows[i].place.centre for i in members])  # type: ignore[union-attr]
        x, y = transformer(4326, zone).transform(lonlat[:, 0], lonlat[:, 1])
        curve[members] = hilbert((x // _CELL_M).astype(np.int64), (y // _CELL_M).astype(np.int64))
    order = sorted(range(len(rows)), key=lambda i: (starts[i], zones[i], int(curve[i]), unique_ids[i]))
    return np.array(order, dtype=np.intp)


def hilbert(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the distance of cells (x, y) along a Hilbert curve, x and y in 0…2**14 - 1.

    Algorithm: https://en.wikipedia.org/wiki/Hilbert_curve.
    """
    x, y = (np.clip(v, 0, 2**_CURVE_BITS - 1) for v in (x, y))
    distance = np.zeros_like(x)
    side = 2 ** (_CURVE_BITS - 1)
    while side > 0:
        right, up = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ up)
        flip = ~up & right
        x, y = (
            np.where(flip, side - 1 - (x & (side - 1)), x & (side - 1)),
            np.where(flip, side - 1 - (y & (side - 1)), y & (side - 1)),
        )
        x, y = np.where(up, x, y), np.where(up, y, x)
        side //= 2
    return distance
