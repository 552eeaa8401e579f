"""Description of a dataset beside its files: a README, licence notes, and a STAC collection and item."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import resources
from string import Template
from typing import Any

import pyarrow.parquet as pq
import shapely

from rs_embed.embedders.cards import find_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.progress import Progress
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.tables import SOURCE_DATA, embedding_fields
from rs_embed.lonlat import WORLD, Box, enclose
from rs_embed.outlines import polygon

_TEMPLATES = resources.files("rs_embed") / "export" / "templates"
_NORMALISED = "`embedding` has length 1; multiplied by `norm` it is the model's own output.\n"


def write_card(folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths) -> None:
    """Write README.md, LICENSE.txt, collection.json and model.json for the present content of the folder."""
    values = _values(folder, request, lengths)
    for name in ("README.md", "LICENSE.txt", "collection.json", "model.json"):
        text = Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)
        if name == "collection.json":
            text = json.dumps(json.loads(text) | embedding_fields(request, lengths.embedding), indent=1) + "\n"
        folder.write_text(folder.path / name, text)


def _values(folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths) -> dict[str, Any]:
    """Return the values of the templates' placeholders."""
    first, last = folder.time_range()
    progress = Progress(total=0)
    for counts in folder.done().values():
        progress.count_partition(counts)
    bounds, sensor, card = _bounds(folder), request.sensor, find_card(request.model)
    outline = polygon(bounds)
    return {
        "model": request.model,
        "weights_sha256": request.weights_sha256,
        "architecture": card.backbone,
        "image_px": card.image_px,
        "dim": lengths.embedding,
        "projected_dim": lengths.projected,
        "pooling": request.output.pooling or "mean",
        "normalised": _NORMALISED if request.normalise else "",
        "input_prep": request.input_prep,
        "request_id": request.sha256()[:12],
        "done": f"{progress.done:,}",
        "failed": f"{progress.failed:,}",
        "no_imagery": f"{progress.no_imagery:,}",
        "first": first,
        "last": last,
        "bbox": json.dumps(bounds),
        "footprint": shapely.to_geojson(outline),
        "backend": request.backend,
        "composite": sensor.composite,
        "cloudy_pct": f"{sensor.cloudy_pct:g}",
        "scale_m": f"{sensor.scale_m:g}",
        "bands": ", ".join(sensor.bands),
        "stac_bands": json.dumps([{"name": band} for band in sensor.bands]),
        "source_data": SOURCE_DATA,
        "notice": f"Contains modified Copernicus Sentinel data {'-'.join(sorted({first[:4], last[:4]}))}",
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _bounds(folder: DatasetFolder) -> Box:
    """Return west, south, east and north of all footprints, from the files' footers."""
    boxes = []
    for path in (folder.path / "embeddings").glob("*.parquet"):
        column = json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]
        boxes += [column["bbox"]] if "bbox" in column else []
    return enclose(boxes) if boxes else WORLD
