"""Plans of partitions: rows with their ids, made a block at a time, since a country has ten million."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rs_embed.export.inputs import InputPlaces
from rs_embed.export.plans import Keys, keys_of
from rs_embed.export.request import ExportRequest
from rs_embed.export.schedule import Schedule
from rs_embed.specs import BBox, Place, PointBuffer, TemporalSpec

PARTITION_SIZE = 256
_BLOCK = 1 << 16
_TEXT = pa.string()
_SCHEMA = pa.schema(
    {"input_row": pa.int64(), "id": _TEXT, "unique_id": _TEXT, "request_id": _TEXT}
    | {"place": pa.list_(pa.float64()), "start": _TEXT, "end": _TEXT}
)
PLAN_COLUMNS = _SCHEMA.names  # the user's follow, with the prefix `user_`


def plan_tables(
    places: InputPlaces,
    rows: Schedule,
    request: ExportRequest,
    known: Keys,
    report: Callable[[int], None] = lambda done: None,
) -> Iterator[pa.Table]:
    """Yield the plan of the rows whose `unique_id` is not `known`, in the order of their partitions.

    Args:
        places: the input.
        rows: its rows in their order.
        request: the request of the dataset.
        known: sorted `unique_id` of rows that are planned already.
        report: called with the number of rows looked at.
    """
    for start in range(0, max(len(rows), 1), _BLOCK):
        block = slice(start, start + _BLOCK)
        table = plan_table(places, rows.place_of[block], [rows.windows[k] for k in rows.window_of[block]], request)
        new = ~among(keys_of(table["unique_id"]), known)
        yield table if new.all() else table.filter(pa.array(new))
        report(min(start + _BLOCK, len(rows)))


def plan_table(
    places: InputPlaces, numbers: npt.NDArray[np.intp], times: Sequence[TemporalSpec], request: ExportRequest
) -> pa.Table:
    """Return the plan of some rows: places by their numbers, each in its time range."""
    request_ids = list(_request_ids(places, numbers.tolist(), times, request))
    input_row = pa.array(numbers, pa.int64())
    ids = places.ids.take(input_row)
    pairs = zip(request_ids, ids.to_pylist(), strict=True)
    unique_ids = [hashlib.sha256(f"{request_id}\n{name}".encode()).hexdigest() for request_id, name in pairs]
    values = {
        "input_row": input_row,
        "id": ids,
        "unique_id": unique_ids,
        "request_id": request_ids,
        "place": _numbers(places, numbers),
        "start": [time.start for time in times],
        "end": [time.end for time in times],
    }
    table = pa.table(values, schema=_SCHEMA)
    user = places.columns.take(input_row)
    for name in user.column_names:
        table = table.append_column(f"user_{name}", user[name])
    return table


def _numbers(places: InputPlaces, numbers: npt.NDArray[np.intp]) -> pa.Array:
    """Return places as lists of numbers, three for a square and four for a box."""
    columns = np.column_stack([column[numbers] for column in (places.lon, places.lat, places.half_m)])
    if places.boxes:
        pairs = zip(numbers.tolist(), columns.tolist(), strict=True)
        return pa.array([[*places.boxes[i].bounds] if i in places.boxes else square for i, square in pairs])
    offsets = pa.array(np.arange(0, columns.size + 1, 3, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(columns.ravel()))


def _request_ids(
    places: InputPlaces, numbers: Sequence[int], times: Sequence[TemporalSpec], request: ExportRequest
) -> Iterator[str]:
    """Yield `Request.id` of each row; the text around the place is digested once for a time range."""
    unit = PointBuffer(0, 0, 1)
    around: dict[TemporalSpec, tuple[Any, bytes]] = {}
    for time in dict.fromkeys(times):
        first, _, rest = request.for_place(unit, time).canonical().partition(_text_of(0.0, 0.0, 1.0))
        around[time] = hashlib.sha256(first.encode()), rest.encode()
    columns = (column[numbers].tolist() for column in (places.lon, places.lat, places.half_m))
    for number, time, lon, lat, half_m in zip(numbers, times, *columns, strict=True):
        if box := places.boxes.get(number):
            yield request.for_place(box, time).id()
        else:
            before, after = around[time]
            digest = before.copy()
            digest.update(_text_of(lon, lat, half_m).encode() + after)
            yield digest.hexdigest()


def _text_of(lon: float, lat: float, half_m: float) -> str:
    """Return a square as `Request.canonical` writes it."""
    return f'{{"buffer_m":{half_m!r},"crs":"EPSG:4326","lat":{lat!r},"lon":{lon!r},"type":"PointBuffer"}}'


def among(keys: Keys, known: Keys) -> npt.NDArray[np.bool_]:
    """Return which keys are among sorted ones."""
    if not len(known):
        return np.zeros(len(keys), bool)
    found: npt.NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found


def parse_place(numbers: Sequence[Any]) -> Place:
    """Return the place that a plan stores as three or four numbers."""
    return PointBuffer(*numbers) if len(numbers) == 3 else BBox(*numbers)
