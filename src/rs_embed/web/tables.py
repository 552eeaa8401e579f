"""Results as a table for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = ("rank", "near", "lat", "lon", "start", "end", "percentile", "probability", "score", "status", "id")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return hits as CSV in UTF-8, with the byte order mark by which spreadsheets know it."""
    stream = io.StringIO()
    table = csv.DictWriter(stream, [*_COLUMNS, "unique_id", "west", "south", "east", "north", "scene_ids"])
    table.writeheader()
    for row in rows:
        edges = dict(zip(("west", "south", "east", "north"), row["bounds"], strict=True))
        cells = {name: row[name] for name in (*_COLUMNS, "unique_id")} | edges
        cells["scene_ids"] = " ".join(row["scene_ids"])
        table.writerow({name: _cell(value) for name, value in cells.items()})
    return stream.getvalue().encode("utf-8-sig")


def _cell(value: Any) -> Any:
    """Keep a spreadsheet from taking a text for a formula: ids come with the dataset, from anyone."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
