"""Results of a partition as GeoParquet 1.1 tables: Major TOM's embedding columns first, then ours, then the user's.

https://geoparquet.org/releases/v1.1.0/ · https://huggingface.co/Major-TOM
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely
from odc.geo.geobox import GeoBox

from rs_embed.embedding import Embedding, EmbeddingFailure
from rs_embed.errors import NoImageryError
from rs_embed.export.partitions import parse_place
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.grid import epsg_of, transformer
from rs_embed.inspection import LOW_FRAC
from rs_embed.lonlat import enclose
from rs_embed.outlines import split
from rs_embed.pipeline import Outcome

SPATIAL_BLOCK_M = 10_000
SOURCE_DATA = "https://documentation.dataspace.copernicus.eu/Data/SentinelMissions/Sentinel2.html"
_TIME = pa.timestamp("ms", tz="UTC")
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_BOX = pa.struct([(name, pa.float64()) for name in _EDGES])
_COVERING = {name: ["bbox", name] for name in _EDGES}

_THUMBNAILS = pa.schema([("unique_id", pa.string()), ("id", pa.string()), ("thumbnail", pa.binary())])


@dataclass(frozen=True, slots=True)
class ExportedRow:
    """A planned row and its result."""

    planned: Mapping[str, Any]
    geobox: GeoBox | None  # None for a bad row
    outcome: Outcome[int]

    @property
    def result(self) -> Embedding | EmbeddingFailure:
        """The vector, or the reason why there is none."""
        return self.outcome.result

    @property
    def status(self) -> str:
        """Status of the row: `ok`, `partial` (scenes lost, or few pixels observed), `no_imagery` or `failed`."""
        if isinstance(self.result, Embedding):
            is_partial = self.result.lacks_scenes or self.result.meta["valid_frac"] < LOW_FRAC
            return "partial" if is_partial else "ok"
        return "no_imagery" if isinstance(self.result.error, NoImageryError) else "failed"


_ValueOf = Callable[[ExportedRow], Any]


def _planned(key: str) -> _ValueOf:
    return lambda row: row.planned[key]


def _centre(axis: int) -> _ValueOf:
    return lambda row: parse_place(row.planned["place"]).centre[axis] if row.planned["place"] else None


def _meta(key: str) -> _ValueOf:
    return lambda row: row.result.meta[key] if isinstance(row.result, Embedding) else None


def _scenes(key: str) -> _ValueOf:
    """Return a function that takes one value of each scene, newest first; None for a failure."""
    return lambda row: [s[key] for s in row.result.meta["scenes"] or ()] if isinstance(row.result, Embedding) else None


def _newest(row: ExportedRow) -> datetime | None:
    times = _scenes("datetime")(row)
    return max(map(datetime.fromisoformat, times)) if times else None


def _mean_cloud(row: ExportedRow) -> float | None:
    known = [cloud for cloud in _scenes("cloud_pct")(row) or () if cloud is not None]
    return float(np.mean(known)) if known else None


def _day(key: str) -> _ValueOf:
    """Return a function that takes a day of the plan as a time."""
    return lambda row: datetime.fromisoformat(day).replace(tzinfo=UTC) if (day := row.planned[key]) else None


def _in_bulk(row: ExportedRow) -> None:
    """Mark a column that is computed for all rows at once, or is not used."""


_TEXT, _TEXTS, _FLOAT, _FLOATS = pa.string(), pa.list_(pa.string()), pa.float32(), pa.list_(pa.float32())
_COLUMNS: tuple[tuple[str, pa.DataType, _ValueOf], ...] = (
    # Major TOM's
    ("unique_id", _TEXT, _planned("unique_id")),
    ("embedding", None, _in_bulk),
    ("timestamp", _TIME, _newest),
    ("product_id", _TEXT, lambda row: (_scenes("id")(row) or [None])[0]),
    ("grid_cell", _TEXT, _in_bulk),  # this and the next two are cells of a grid that our places are not on
    ("grid_row_u", pa.int64(), _in_bulk),
    ("grid_col_r", pa.int64(), _in_bulk),
    ("geometry", pa.binary(), _in_bulk),
    ("centre_lat", pa.float64(), _centre(1)),
    ("centre_lon", pa.float64(), _centre(0)),
    ("utm_footprint", _TEXT, _in_bulk),
    ("utm_crs", _TEXT, _in_bulk),
    ("pixel_bbox", pa.list_(pa.int32()), _in_bulk),
    # ours
    ("id", _TEXT, _planned("id")),
    ("input_row", pa.int64(), _planned("input_row")),
    ("status", _TEXT, attrgetter("status")),
    ("error", _TEXT, lambda row: str(row.result.error) if isinstance(row.result, EmbeddingFailure) else None),
    ("warnings", _TEXTS, _meta("warnings")),
    ("datetime_start", _TIME, _day("start")),
    ("datetime_end", _TIME, _day("end")),
    ("embedding_projected", None, _in_bulk),
    ("norm", _FLOAT, _in_bulk),
    ("band_means", _FLOATS, lambda row: row.outcome.summary.band_means if row.outcome.summary else None),
    ("spatial_block", _TEXT, _in_bulk),
    ("backend", _TEXT, _meta("backend")),
    ("collection", _TEXT, _meta("source")),
    ("scene_ids", _TEXTS, _scenes("id")),
    ("dn_offsets", _FLOATS, _scenes("dn_offset")),
    ("n_scenes", pa.int32(), _meta("n_scenes")),
    (
        "dropped_scenes",
        pa.list_(pa.struct([(name, _TEXT) for name in ("id", "reason", "kind")])),
        _meta("dropped_scenes"),
    ),
    ("cloud", _FLOAT, _mean_cloud),
    *((name, _FLOAT, _meta(name)) for name in ("valid_frac", "clear_frac", "n_clear", "shown_clear_frac")),
    ("composite", _TEXT, _meta("composite")),
    ("model", _TEXT, _meta("model")),
    ("checkpoint", _TEXT, _meta("ckpt")),
    *((name, _TEXT, _meta(name)) for name in ("weights_sha256", "activation", "preprocess", "precision", "pooling")),
    ("request_id", _TEXT, _planned("request_id")),
    ("bbox", _BOX, _in_bulk),
)
_OUR_NAMES = {name for name, _, _ in _COLUMNS}


def partition_tables(
    rows: Sequence[ExportedRow], user: pa.Table, request: ExportRequest, lengths: VectorLengths
) -> dict[str, pa.Table]:
    """Return the tables by kind, "thumbnails" only where wanted; `user` has the user's columns for the same rows."""
    tables = {}
    embedded = [isinstance(row.result, Embedding) for row in rows]
    for kind, wanted in (("embeddings", True), ("failures", False)):
        members = [i for i, good in enumerate(embedded) if good is wanted]
        table = pa.table(_columns([rows[i] for i in members], request, lengths))
        tables[kind] = _add_footer(_add_user(table, user.take(pa.array(members, pa.int64()))), request, lengths)
    if request.thumbnails:
        pictures = ((row.planned, row.outcome.summary) for row, good in zip(rows, embedded, strict=True) if good)
        found = [{**planned, "thumbnail": summary.thumbnail} for planned, summary in pictures if summary]
        tables["thumbnails"] = pa.Table.from_pylist([p for p in found if p["thumbnail"]], schema=_THUMBNAILS)
    return tables


def _add_user(table: pa.Table, user: pa.Table) -> pa.Table:
    """Append the user's columns by their own names; one with a name of ours becomes `user_<name>`."""
    for name in user.column_names:
        short = name.removeprefix("user_")
        table = table.append_column(name if short in _OUR_NAMES else short, user[name])
    return table


def _columns(rows: Sequence[ExportedRow], request: ExportRequest, lengths: VectorLengths) -> dict[str, pa.Array]:
    bulk = _geometry(rows) | _vectors(rows, request, lengths)
    return {
        name: bulk[name] if kind is None else pa.array(bulk[name] if name in bulk else map(value_of, rows), kind)
        for name, kind, value_of in _COLUMNS
    }


def _vectors(rows: Sequence[ExportedRow], request: ExportRequest, lengths: VectorLengths) -> dict[str, Any]:
    """Return the vectors as fixed-size lists, null for a failure, and their norms."""
    raw = [np.asarray(r.result.data) if isinstance(r.result, Embedding) else None for r in rows]
    norms = [None if v is None else float(np.linalg.norm(v)) for v in raw]
    unit = [None if v is None or n is None else v / max(n, 1e-12) for v, n in zip(raw, norms, strict=True)]
    return {
        "embedding": _fixed(unit if request.normalise else raw, lengths.embedding, request.dtype),
        "embedding_projected": _fixed([r.outcome.projected for r in rows], lengths.projected, "float16"),
        "norm": norms,
    }


def _fixed(vectors: Sequence[npt.NDArray[Any] | None], dim: int, dtype: str) -> pa.Array:
    kind = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)
    if not vectors or any(v is None for v in vectors):
        return pa.nulls(len(vectors), kind)
    flat = np.stack([v for v in vectors if v is not None]).astype(dtype).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)


def _geometry(rows: Sequence[ExportedRow]) -> dict[str, list[Any]]:
    """Return the columns that follow from the footprints; all places of a zone are transformed at once."""
    names = ("geometry", "bbox", "utm_footprint", "utm_crs", "spatial_block", "pixel_bbox")
    columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    boxes = {i: row.geobox for i, row in enumerate(rows) if row.geobox is not None}
    zones = {i: epsg_of(geobox) for i, geobox in boxes.items()}
    for epsg in sorted(set(zones.values())):
        members = [i for i, zone in zones.items() if zone == epsg]
        for name, values in _footprints([boxes[i] for i in members], epsg).items():
            for i, value in zip(members, values, strict=True):
                columns[name][i] = value
    return columns


def _footprints(geoboxes: Sequence[GeoBox], epsg: int) -> dict[str, Sequence[Any]]:
    bounds = np.array([geobox.boundingbox.bbox for geobox in geoboxes])  # (n, left bottom right top)
    rings = shapely.box(*bounds.T)
    corners = shapely.get_coordinates(rings)
    lonlat = np.column_stack(transformer(epsg, 4326).transform(corners[:, 0], corners[:, 1])).reshape(-1, 5, 2)
    lon = lonlat[..., 0]
    lon[(np.ptp(lon, axis=1) > 180)[:, None] & (lon < 0)] += 360  # on both sides of 180°
    edges = np.column_stack((lonlat.min(axis=1), lonlat.max(axis=1)))
    edges[:, 2] -= np.where(edges[:, 2] > 180, 360, 0)  # west > east then
    cells = ((bounds[:, :2] + bounds[:, 2:]) / 2 // SPATIAL_BLOCK_M).astype(int).tolist()
    return {
        "geometry": shapely.to_wkb(list(map(split, shapely.polygons(lonlat)))).tolist(),
        "bbox": [dict(zip(_EDGES, values, strict=True)) for values in edges.tolist()],
        "utm_footprint": shapely.to_wkt(rings, rounding_precision=-1).tolist(),
        "utm_crs": [f"EPSG:{epsg}"] * len(geoboxes),
        "spatial_block": [f"{epsg}_{x}_{y}" for x, y in cells],
        "pixel_bbox": [[0, 0, geobox.shape[1], geobox.shape[0]] for geobox in geoboxes],
    }


def _add_footer(table: pa.Table, request: ExportRequest, lengths: VectorLengths) -> pa.Table:
    """Set the file's metadata: GeoParquet's `geo`, and the fields of the STAC Embeddings extension."""
    boxes = [tuple(box.values()) for box in table["bbox"].to_pylist() if box is not None]
    kinds = ["Polygon", "MultiPolygon"] if any(west > east for west, _, east, _ in boxes) else ["Polygon"]
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": kinds, "covering": {"bbox": _COVERING}}
    if boxes:
        column["bbox"] = enclose(boxes)
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    fields = {"geo": geo, **embedding_fields(request, lengths.embedding), **run_fields(request)}
    return table.replace_schema_metadata({name: json.dumps(value) for name, value in fields.items()})


def embedding_fields(request: ExportRequest, dim: int) -> dict[str, Any]:
    """Return the fields of the STAC Embeddings extension v0.0.1 that describe the vectors of a collection."""
    return {
        "emb:type": "chip",
        "emb:dimensions": dim,
        "data_type": request.dtype,
        "gsd": request.sensor.scale_m,
    }


def run_fields(request: ExportRequest) -> dict[str, Any]:
    """Return the fields of the STAC Embeddings extension v0.0.1 that tell how an item's vectors were made."""
    composite = request.sensor.composite
    fields: dict[str, Any] = {
        "emb:runtime_parameters": {
            "request_sha256": request.sha256(),
            "model": request.model,
            "weights_sha256": request.weights_sha256,
            "precision": request.precision,
        },
        "emb:preprocessing": {"format": "text", "expression": f"{composite} composite, {request.input_prep}"},
    }
    if request.normalise:
        fields["emb:postprocessing"] = {"format": "text", "expression": "divided by the length of the vector"}
    return fields
