"""Columns of the rows that a search shows, and which rows can be shown: datasets and indexes may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from rs_embed.cautions import kinds_of

PLACE_COLUMNS = ["id", "centre_lon", "centre_lat"]
"""Columns that all time ranges of one place share: ids are unique within one input only."""
TIME_COLUMNS = ["datetime_start", "datetime_end"]
DATASET_COLUMNS = ["unique_id", *PLACE_COLUMNS, "bbox", "geometry", *TIME_COLUMNS, "status", "scene_ids"]
STORED_COLUMNS = [*DATASET_COLUMNS, "warnings", "unlike_training", "part"]
"""Columns of the index's rows: `warnings` has their kinds, `part` is the dataset's file that a row came from."""
BOUNDS = ("xmin", "ymin", "xmax", "ymax")

_PLAIN = re.compile(r"[^./\\\0][^/\\\0]*\.parquet")
_SQUARE = shapely.to_wkb(shapely.box(0, 0, 1, 1))
_HEAD = 13
"""Bytes of an outline before its coordinates: byte order, type, number of rings, number of points."""
_YEARS_1_TO_9999 = np.array(["0001-01-01", "9999-12-31"], "M8[ms]").astype(np.int64)


def check_table(table: pa.Table, names: Sequence[str]) -> None:
    """Raise a ValueError unless a table has columns with the types of ours, and texts that are UTF-8."""
    for name in names:
        if name not in table.column_names:
            raise ValueError(f"it has no column {name}")
        if len(table) and not _FITS[name](table.schema.field(name).type):
            raise ValueError(f"its column {name} holds {table.schema.field(name).type}")
    table.validate(full=True)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string())


def _is_box(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and all(
        kind.get_field_index(edge) >= 0 and kind.field(edge).type == pa.float64() for edge in BOUNDS
    )


_FITS: Mapping[str, Callable[[pa.DataType], bool]] = {
    **dict.fromkeys(("unique_id", "id", "status", "part"), _is_text),
    **dict.fromkeys(("centre_lon", "centre_lat"), lambda kind: kind == pa.float64()),
    **dict.fromkeys(TIME_COLUMNS, lambda kind: kind == pa.timestamp("ms", tz="UTC")),
    "bbox": _is_box,
    "geometry": lambda kind: kind == pa.binary(),
    "unlike_training": pa.types.is_boolean,
    **dict.fromkeys(("scene_ids", "warnings"), lambda kind: pa.types.is_list(kind) and _is_text(kind.value_type)),
}


def warning_kinds(table: pa.Table) -> pa.Array:
    """Return the kinds of the rows' warnings; none where the dataset states none, or something else."""
    kind = pa.list_(pa.string())
    if "warnings" not in table.column_names or not _FITS["warnings"](table.schema.field("warnings").type):
        return pa.array([[]] * len(table), kind)
    return pa.array([kinds_of(text or "" for text in row or ()) for row in table["warnings"].to_pylist()], kind)


def usable_rows(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows (n,) can be shown: nothing is missing, coordinates are finite, and the outline is a polygon."""
    keep = np.ones(len(table), bool)
    for name in DATASET_COLUMNS:
        keep &= pc.is_valid(table[name]).to_numpy()
    for values in (table["centre_lon"], table["centre_lat"], *(pc.struct_field(table["bbox"], e) for e in BOUNDS)):
        keep &= np.isfinite(values.to_numpy())
    keep &= np.abs(table["centre_lon"].to_numpy()) <= 180
    keep &= np.abs(table["centre_lat"].to_numpy()) <= 90
    first, last = _YEARS_1_TO_9999
    for name in TIME_COLUMNS:
        moments = pc.fill_null(table[name].cast(pa.int64()), int(first)).to_numpy()
        keep &= (first <= moments) & (moments <= last)
    keep[keep] = _are_outlines(table["geometry"].filter(pa.array(keep)).combine_chunks())
    return keep


def _are_outlines(geometry: pa.BinaryArray) -> npt.NDArray[np.bool_]:
    """Return which geometries are polygons of four corners or more; squares, which almost all are, are not parsed."""
    same_size = pc.equal(pc.binary_length(geometry), len(_SQUARE))
    square = pc.and_(same_size, pc.equal(pc.binary_slice(geometry, 0, _HEAD), _SQUARE[:_HEAD]))
    good: npt.NDArray[np.bool_] = square.to_numpy(zero_copy_only=False).copy()
    joined = np.frombuffer(b"".join(geometry.filter(square).to_numpy(zero_copy_only=False)), np.uint8)
    corners = joined.reshape(-1, len(_SQUARE))[:, _HEAD:].copy().view(np.float64)
    others = np.flatnonzero(~good)
    good[good] = np.isfinite(corners).all(axis=1)
    outlines = shapely.from_wkb(geometry.take(pa.array(others)).to_numpy(zero_copy_only=False), on_invalid="ignore")
    polygons = np.isin(shapely.get_type_id(outlines), (3, 6))
    good[others] = polygons & (shapely.get_num_coordinates(outlines) > 4) & np.isfinite(shapely.bounds(outlines)).all(1)
    return good


def are_part_names(parts: pa.ChunkedArray) -> bool:
    """Return True if all values are plain names of files, which cannot lead to another folder."""
    names = pc.unique(parts).to_pylist()
    return all(isinstance(name, str) and _PLAIN.fullmatch(name) for name in names)
