"""Planning of partitions: each place in each of its time ranges, neighbours together, always in the same order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from datetime import date, timedelta
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rs_embed.errors import SpecError
from rs_embed.export.inputs import InputPlaces, InputRow
from rs_embed.export.request import ExportRequest
from rs_embed.grid import transformer, utm_epsg
from rs_embed.specs import BBox, Every, Place, PointBuffer, TemporalSpec

PARTITION_SIZE = 256
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_CELL_M = 1280.0
_CURVE_BITS = 14
_TEXT = pa.string()
_SCHEMA = pa.schema(
    {"input_row": pa.int64(), "id": _TEXT, "unique_id": _TEXT, "request_id": _TEXT}
    | {"place": pa.list_(pa.float64()), "start": _TEXT, "end": _TEXT, "error": _TEXT}
)
PLAN_COLUMNS = _SCHEMA.names  # the user's follow, with the prefix `user_`


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


def expand(places: InputPlaces, temporal: TemporalSpec | None, every: Every | None) -> Iterator[InputRow]:
    """Yield each row in each of its time ranges; a row's start and end override the common ones."""
    if every is not None and every not in _MONTHS:
        raise SpecError(f"every must be {', '.join(_MONTHS)}, got {every!r}")
    start, end = (temporal.start, temporal.end) if temporal else (None, None)
    cut = cache(lambda first, last: windows(TemporalSpec.range(first, last), every) if first and last else [])
    for row in places.rows:
        error, ranges = row.error, []
        try:
            ranges = cut(row.start or start, row.end or end) if error is None else []
        except SpecError as fault:  # of a row's own day with the common other one
            error = str(fault)
        for window in ranges:
            yield replace(row, start=window.start, end=window.end)
        if not ranges:
            error = error or "it has no time range: give --start and --end, or columns of these names"
            yield replace(row, start=None, end=None, error=f"{row.where}: {error}")


def plan_rows(places: InputPlaces, rows: Sequence[InputRow], request: ExportRequest, known: set[str]) -> pa.Table:
    """Return the plan of the rows whose `unique_id` is not `known`, in the order of their partitions."""
    planned = [(row, _plan_row(row, request)) for row in rows]
    new = [(row, values) for row, values in planned if values["unique_id"] not in known]
    table = pa.Table.from_pylist([values for _, values in new], schema=_SCHEMA)
    table = table.take(_spatial_order([row for row, _ in new], table["unique_id"].to_pylist()))
    user = places.columns.take(table["input_row"])
    for name in user.column_names:
        table = table.append_column(f"user_{name}", user[name])
    return table


def _plan_row(row: InputRow, request: ExportRequest) -> dict[str, Any]:
    temporal = row.temporal
    request_id = request.for_place(row.place, temporal).id() if row.place and temporal else None
    key = f"{request_id}\n{row.id}" if request_id else f"bad\n{row.id}\n{row.number}"
    return {
        "input_row": row.number,
        "id": row.id,
        "unique_id": hashlib.sha256(key.encode()).hexdigest(),
        "request_id": request_id,
        "place": _numbers(row.place) if row.place else None,
        "start": row.start,
        "end": row.end,
        "error": row.error,
    }


def parse_place(numbers: Sequence[Any]) -> Place:
    """Return the place that a plan stores as three or four numbers."""
    return PointBuffer(*numbers) if len(numbers) == 3 else BBox(*numbers)


def _numbers(place: Place) -> list[float]:
    *numbers, _crs = astuple(place)
    return numbers


def _spatial_order(rows: Sequence[InputRow], unique_ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the order by time range, zone and a Hilbert curve over cells of 1,280 m: neighbours share blocks."""
    zones = [utm_epsg(*row.place.centre) if row.place else 0 for row in rows]
    times = [(row.start or "", row.end or "") for row in rows]
    curve = np.zeros(len(rows), np.int64)
    for zone in set(zones) - {0}:
        members = [i for i, z in enumerate(zones) if z == zone]
        lonlat = np.array([rows[i].place.centre for i in members])  # type: ignore[union-attr]
        x, y = transformer(4326, zone).transform(lonlat[:, 0], lonlat[:, 1])
        curve[members] = hilbert((x // _CELL_M).astype(np.int64), (y // _CELL_M).astype(np.int64))
    order = sorted(range(len(rows)), key=lambda i: (*times[i], zones[i], int(curve[i]), unique_ids[i]))
    return np.array(order, dtype=np.intp)


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
