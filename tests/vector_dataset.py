"""A dataset of given vectors, as an export would have left it, without one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from rs_embed import OutputSpec, SensorSpec
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import read_places
from rs_embed.export.partitions import plan_table
from rs_embed.export.request import ExportRequest
from rs_embed.specs import PointBuffer, TemporalSpec

_DAYS = ("datetime_start", datetime(2022, 6, 1, tzinfo=UTC)), ("datetime_end", datetime(2022, 7, 1, tzinfo=UTC))


def write_vectors(folder: Path, vectors: np.ndarray, ids: Sequence[str] | None = None) -> Path:
    """Rows of 640 m side by side along a parallel."""
    request = ExportRequest(
        model="remoteclip_s2rgb",
        sensor=SensorSpec(),
        output=OutputSpec.pooled(),
        backend="fake",
        input_prep="resize",
        checkpoint=None,
        precision="fp32",
        weights_sha256="0" * 64,
        dtype="float32",
        normalise=False,
        thumbnails=False,
        grid=False,
        columns=(),
    )
    target = DatasetFolder(folder)
    if not target.exists:
        places = read_places([PointBuffer(0, 0, 320)], ReadOptions())
        june = TemporalSpec.range("2022-06-01", "2022-07-01")
        target.add_plan(request, [plan_table(places, np.array([0]), [june], request)], 1, {})
    number = len(list((folder / "embeddings").glob("*.parquet")))
    names = list(ids) if ids is not None else [f"v{number}-{i}" for i in range(len(vectors))]
    lon = np.linspace(0, 10, len(vectors))
    boxes = [{"xmin": x - 0.003, "ymin": 47.997, "xmax": x + 0.003, "ymax": 48.003} for x in lon]
    flat = pa.array(vectors.astype(np.float16).ravel())
    table = pa.table(
        {
            "unique_id": [f"{number}-{name}" for name in names],
            "id": names,
            "centre_lon": lon,
            "centre_lat": np.full(len(vectors), 48.0),
            "bbox": boxes,
            "geometry": shapely.to_wkb(shapely.box(lon - 0.003, 47.997, lon + 0.003, 48.003)),
            **{name: pa.array([day] * len(vectors), pa.timestamp("ms", tz="UTC")) for name, day in _DAYS},
            "status": ["ok"] * len(vectors),
            "scene_ids": [["S2A_FAKE"]] * len(vectors),
            "embedding_projected": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
    )
    path = target.part("embeddings", number)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    return folder
