"""Rows to partitions: each place in each of its time ranges, neighbours together, in the same order every time."""

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
OURS = ("input_row", "id", "unique_id", "request_id", "place", "start", "end", "error")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """One place in one time range."""

    input_row: int
    id: str
    place: Place | None
    temporal: TemporalSpec | None
    error: str | None


def windows(temporal: TemporalSpec, every: Every | None) -> list[TemporalSpec]:
    """A time range cut at the first days of months, quarters or years; as it is when `every` is None."""
    if every is None:
        return [temporal]
    if every not in _MONTHS:
        raise SpecError(f"every must be {', '.join(_MONTHS)}, got {every!r}")
    start, end, found = date.fromisoformat(temporal.start), date.fromisoformat(temporal.end), []
    while start < end:
        stop = min(_next_first(start, _MONTHS[every]), end)
        found.append(TemporalSpec.range(start, stop))
        start = stop
    return found


def _next_first(day: date, months: int) -> date:
    """The first day of the month, quarter or year after a day."""
    first = day.replace(day=1, month=(day.month - 1) // months * months + 1)
    return (first + timedelta(days=31 * months)).replace(day=1)


def expand(places: InputPlaces, temporal: TemporalSpec | None, every: Every | None) -> Iterator[PlannedRow]:
    """Each row in each of its time ranges; its own start and end come before the common ones."""
    known: dict[tuple[str | None, str | None], list[TemporalSpec]] = {}
    for row in places.rows:
        error = row.error
        if error is None:
            key = row.start or (temporal.start if temporal else None), row.end or (temporal.end if temporal else None)
            if key not in known:
                known[key] = _ranges(*key, every)
            for found in known[key]:
                yield PlannedRow(input_row=row.number, id=row.id, place=row.place, temporal=found, error=None)
            error = None if known[key] else "it has no time range: give --start and --end, or columns of these names"
        if error is not None:
            told = f"{row.where}: {error}"
            yield PlannedRow(input_row=row.number, id=row.id, place=row.place, temporal=None, error=told)


def _ranges(start: str | None, end: str | None, every: Every | None) -> list[TemporalSpec]:
    return windows(TemporalSpec.range(start, end), every) if start and end else []


def plan_rows(places: InputPlaces, rows: Sequence[PlannedRow], request: ExportRequest, known: set[str]) -> pa.Table:
    """Rows that are not `known` yet, in the order of their partitions, with the user's columns."""
    request_ids = [request.of(r.place, r.temporal).id() if r.place and r.temporal else None for r in rows]
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
    own = places.columns.take(pa.array(columns["input_row"], pa.int64()))
    for name in own.column_names:
        table = table.append_column(f"user_{name}", own[name])
    return table


def place_of(numbers: Sequence[float]) -> Place:
    """The inverse of what a plan stores."""
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
    """Of what was asked and the row's id; a bad row is known by where it stands."""
    text = f"{request_id}\n{row.id}" if request_id else f"bad\n{row.id}\n{row.input_row}"
    return hashlib.sha256(text.encode()).hexdigest()


def _spatial_order(rows: Sequence[PlannedRow], unique_ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """By time range, then zone, then along a Hilbert curve over cells of 1,280 m, so that neighbours share blocks."""
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
    """Distance along a Hilbert curve of cells (x, y), both in 0…2**14 - 1 (https://en.wikipedia.org/wiki/Hilbert_curve)."""
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
