"""Results of a partition as GeoParquet 1.1 tables: Major TOM's embedding columns first, then ours, then the user's.

https://geoparquet.org/releases/v1.1.0/ · https://huggingface.co/Major-TOM
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely
from odc.geo.geobox import GeoBox

from rs_embed.embedding import LOW_VALID_FRAC, Embedding, EmbeddingFailure
from rs_embed.errors import NoImageryError
from rs_embed.export.request import ExportRequest
from rs_embed.grid import epsg_of, transformer
from rs_embed.inspection import PatchSummary

SPATIAL_BLOCK_M = 10_000
SOURCE_DATA = "https://documentation.dataspace.copernicus.eu/Data/SentinelMissions/Sentinel2.html"
"""What descriptions of a dataset link to as its source."""
_TIME = pa.timestamp("ms", tz="UTC")
_BOX = pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
_COVERING = {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}

_MAJOR_TOM = (
    ("unique_id", pa.string()),
    ("embedding", None),
    ("timestamp", _TIME),
    ("product_id", pa.string()),
    ("grid_cell", pa.string()),
    ("grid_row_u", pa.int64()),
    ("grid_col_r", pa.int64()),
    ("geometry", pa.binary()),
    ("centre_lat", pa.float64()),
    ("centre_lon", pa.float64()),
    ("utm_footprint", pa.string()),
    ("utm_crs", pa.string()),
    ("pixel_bbox", pa.list_(pa.int32())),
)
_OURS = (
    ("id", pa.string()),
    ("input_row", pa.int64()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("warnings", pa.list_(pa.string())),
    ("datetime_start", _TIME),
    ("datetime_end", _TIME),
    ("embedding_projected", None),
    ("norm", pa.float32()),
    ("band_means", pa.list_(pa.float32())),
    ("spatial_block", pa.string()),
    ("backend", pa.string()),
    ("collection", pa.string()),
    ("scene_ids", pa.list_(pa.string())),
    ("dn_offsets", pa.list_(pa.float32())),
    ("n_scenes", pa.int32()),
    ("cloud", pa.float32()),
    ("valid_frac", pa.float32()),
    ("clear_frac", pa.float32()),
    ("n_clear", pa.float32()),
    ("composite", pa.string()),
    ("model", pa.string()),
    ("checkpoint", pa.string()),
    ("weights_sha256", pa.string()),
    ("activation", pa.string()),
    ("preprocess", pa.string()),
    ("precision", pa.string()),
    ("pooling", pa.string()),
    ("request_id", pa.string()),
    ("bbox", _BOX),
)
_THUMBNAILS = pa.schema([("unique_id", pa.string()), ("id", pa.string()), ("thumbnail", pa.binary())])
OUR_COLUMNS = tuple(name for name, _ in (*_MAJOR_TOM, *_OURS))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRow:
    """A planned row and what became of it."""

    input_row: int
    id: str
    unique_id: str
    request_id: str | None
    start: str | None
    end: str | None
    geobox: GeoBox | None
    """None for a bad row."""
    lonlat: tuple[float, float] | None
    result: Embedding | EmbeddingFailure
    projected: npt.NDArray[np.float32] | None = None
    summary: PatchSummary | None = None

    @property
    def status(self) -> str:
        """`ok`, `partial` (under 80 % of the pixels observed), `no_imagery` or `failed`."""
        if isinstance(self.result, Embedding):
            return "ok" if self.result.meta["valid_frac"] >= LOW_VALID_FRAC else "partial"
        return "no_imagery" if isinstance(self.result.error, NoImageryError) else "failed"


def tables(
    rows: Sequence[ExportedRow], user: pa.Table, request: ExportRequest, dims: tuple[int, int]
) -> dict[str, pa.Table]:
    """The partition's tables by kind.

    Args:
        rows: in the order of their partition.
        user: the user's columns, of as many rows.
        request: what the dataset was asked for.
        dims: lengths of `embedding` and of `embedding_projected`.
    """
    good = [i for i, row in enumerate(rows) if isinstance(row.result, Embedding)]
    bad = [i for i, row in enumerate(rows) if not isinstance(row.result, Embedding)]
    found = {}
    for kind, members in (("embeddings", good), ("failures", bad)):
        some = [rows[i] for i in members]
        table = pa.table(_columns(some, request, dims))
        found[kind] = _with_geo(_with_user(table, user.take(pa.array(members, pa.int64()))), request, dims)
    if request.thumbnails:
        seen = [
            (r.unique_id, r.id, r.summary.thumbnail)
            for r in rows
            if r.summary and r.summary.thumbnail and isinstance(r.result, Embedding)
        ]
        found["thumbnails"] = pa.Table.from_pylist(
            [dict(zip(_THUMBNAILS.names, row, strict=True)) for row in seen], schema=_THUMBNAILS
        )
    return found


def _with_user(table: pa.Table, user: pa.Table) -> pa.Table:
    """The user's columns keep their names, but for one of ours, which becomes `user_<name>`."""
    for name in user.column_names:
        own = name.removeprefix("user_")
        table = table.append_column(name if own in OUR_COLUMNS else own, user[name])
    return table


def _columns(rows: Sequence[ExportedRow], request: ExportRequest, dims: tuple[int, int]) -> dict[str, pa.Array]:
    geometry = _geometry(rows)
    vectors = _vectors(rows, request, dims)
    found: dict[str, pa.Array] = {}
    for name, kind in (*_MAJOR_TOM, *_OURS):
        if name in vectors:
            found[name] = vectors[name]
        elif name in geometry:
            found[name] = pa.array(geometry[name], kind)
        else:
            take = _VALUES.get(name) or _from_meta(name)
            found[name] = pa.array([take(row) for row in rows], kind)
    return found


def _vectors(rows: Sequence[ExportedRow], request: ExportRequest, dims: tuple[int, int]) -> dict[str, pa.Array]:
    """Fixed-size lists; null for a failure, whose table is not for stacking."""
    raw = [np.asarray(r.result.data) if isinstance(r.result, Embedding) else None for r in rows]
    norms = [None if v is None else float(np.linalg.norm(v)) for v in raw]
    unit = [None if v is None or n is None else v / max(n, 1e-12) for v, n in zip(raw, norms, strict=True)]
    return {
        "embedding": _fixed(unit if request.normalise else raw, dims[0], request.dtype),
        "embedding_projected": _fixed([r.projected for r in rows], dims[1], "float16"),
        "norm": pa.array(norms, pa.float32()),
    }


def _fixed(vectors: Sequence[npt.NDArray[Any] | None], dim: int, dtype: str) -> pa.Array:
    kind = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)
    if not vectors or any(v is None for v in vectors):
        return pa.nulls(len(vectors), kind)
    flat = np.stack([v for v in vectors if v is not None]).astype(dtype).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)


def _geometry(rows: Sequence[ExportedRow]) -> dict[str, list[Any]]:
    """Footprints: in longitude and latitude, in UTM, and what follows from them; all of a zone at once."""
    names = ("geometry", "bbox", "utm_footprint", "utm_crs", "spatial_block", "pixel_bbox")
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    boxes = {i: row.geobox for i, row in enumerate(rows) if row.geobox is not None}
    zones = {i: epsg_of(geobox) for i, geobox in boxes.items()}
    for epsg in sorted(set(zones.values())):
        members = [i for i, zone in zones.items() if zone == epsg]
        for name, values in _footprints([boxes[i] for i in members], epsg).items():
            for i, value in zip(members, values, strict=True):
                found[name][i] = value
    return found


def _footprints(geoboxes: Sequence[GeoBox], epsg: int) -> dict[str, Sequence[Any]]:
    bounds = np.array([geobox.boundingbox.bbox for geobox in geoboxes])  # (n, left bottom right top)
    rings = shapely.box(*bounds.T)
    corners = shapely.get_coordinates(rings)
    lonlat = np.column_stack(transformer(epsg, 4326).transform(corners[:, 0], corners[:, 1])).reshape(-1, 5, 2)
    low, high = lonlat.min(axis=1).tolist(), lonlat.max(axis=1).tolist()
    cells = ((bounds[:, :2] + bounds[:, 2:]) / 2 // SPATIAL_BLOCK_M).astype(int).tolist()
    return {
        "geometry": shapely.to_wkb(shapely.polygons(lonlat)).tolist(),
        "bbox": [{"xmin": a[0], "ymin": a[1], "xmax": b[0], "ymax": b[1]} for a, b in zip(low, high, strict=True)],
        "utm_footprint": shapely.to_wkt(rings, rounding_precision=-1).tolist(),
        "utm_crs": [f"EPSG:{epsg}"] * len(geoboxes),
        "spatial_block": [f"{epsg}_{x}_{y}" for x, y in cells],
        "pixel_bbox": [[0, 0, geobox.shape[1], geobox.shape[0]] for geobox in geoboxes],
    }


def _from_meta(name: str) -> Callable[[ExportedRow], Any]:
    key = {"checkpoint": "ckpt", "collection": "source"}.get(name, name)
    return lambda row: row.result.meta[key] if isinstance(row.result, Embedding) else None


def _scenes(row: ExportedRow, key: str) -> list[Any] | None:
    """One fact of each scene, newest first as they were read."""
    return [s[key] for s in row.result.meta["scenes"] or ()] if isinstance(row.result, Embedding) else None


def _newest(row: ExportedRow) -> datetime | None:
    times = _scenes(row, "datetime")
    return max(datetime.fromisoformat(t) for t in times) if times else None


def _mean_cloud(row: ExportedRow) -> float | None:
    known = [c for c in _scenes(row, "cloud_pct") or () if c is not None]
    return float(np.mean(known)) if known else None


def _day(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)


def _error(row: ExportedRow) -> str | None:
    return str(row.result.error) if isinstance(row.result, EmbeddingFailure) else None


_VALUES: Mapping[str, Callable[[ExportedRow], Any]] = {
    "unique_id": lambda row: row.unique_id,
    "timestamp": _newest,
    "product_id": lambda row: (_scenes(row, "id") or [None])[0],
    "grid_cell": lambda row: None,  # Major TOM's own cells, which these places are not
    "grid_row_u": lambda row: None,
    "grid_col_r": lambda row: None,
    "centre_lat": lambda row: row.lonlat[1] if row.lonlat else None,
    "centre_lon": lambda row: row.lonlat[0] if row.lonlat else None,
    "id": lambda row: row.id,
    "input_row": lambda row: row.input_row,
    "status": lambda row: row.status,
    "error": _error,
    "datetime_start": lambda row: _day(row.start),
    "datetime_end": lambda row: _day(row.end),
    "band_means": lambda row: row.summary.band_means if row.summary else None,
    "scene_ids": lambda row: _scenes(row, "id"),
    "dn_offsets": lambda row: _scenes(row, "dn_offset"),
    "cloud": _mean_cloud,
    "request_id": lambda row: row.request_id,
}


def _with_geo(table: pa.Table, request: ExportRequest, dims: tuple[int, int]) -> pa.Table:
    """The footer: GeoParquet's `geo`, and what the vectors are by the names of the STAC Embeddings extension."""
    boxes = [b for b in table["bbox"].to_pylist() if b is not None]
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "covering": {"bbox": _COVERING}}
    if boxes:
        low, high = (
            [f(b[n] for b in boxes) for n in names] for f, names in ((min, ("xmin", "ymin")), (max, ("xmax", "ymax")))
        )
        column["bbox"] = [*low, *high]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    footer = {"geo": json.dumps(geo), **{k: json.dumps(v) for k, v in emb_facts(request, dims[0]).items()}}
    return table.replace_schema_metadata(footer)


def emb_facts(request: ExportRequest, dim: int) -> dict[str, Any]:
    """What the vectors are (STAC Embeddings extension v0.0.1)."""
    return {
        "emb:type": "chip",
        "emb:dimensions": dim,
        "data_type": request.dtype,
        "gsd": request.sensor.scale_m,
        "emb:runtime_parameters": {
            "request_sha256": request.sha256(),
            "model": request.model,
            "precision": request.precision,
        },
    }
