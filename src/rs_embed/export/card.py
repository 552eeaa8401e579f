"""Description of a dataset beside its files: a README, licence notes, and a STAC collection and items."""

from __future__ import annotations

import json
from importlib import resources
from string import Template
from typing import Any

import pyarrow.parquet as pq

from rs_embed.export.folder import DatasetFolder
from rs_embed.export.progress import Progress
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.sidecars import Coverage, sidecars
from rs_embed.lonlat import WORLD, Box, enclose

_TEMPLATES = resources.files("rs_embed") / "export" / "templates"
_NORMALISED = "`embedding` has length 1; multiplied by `norm` it is the model's own output.\n"


def write_card(folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths) -> None:
    """Write README.md, LICENSE.txt and the STAC documents for the present content of the folder."""
    first, last = folder.time_range()
    notice = f"Contains modified Copernicus Sentinel data {'-'.join(sorted({first[:4], last[:4]}))}"
    coverage = Coverage(bounds=_bounds(folder), first=first, last=last, notice=notice)
    values = _values(folder, request, lengths, coverage)
    texts = {
        name: Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)
        for name in ("README.md", "LICENSE.txt")
    }
    documents = sidecars(request, lengths, coverage)
    texts |= {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}
    for name, text in texts.items():
        folder.write_text(folder.path / name, text)


def _values(
    folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths, coverage: Coverage
) -> dict[str, Any]:
    """Return the values of the templates' placeholders."""
    progress = Progress(total=0)
    for counts in folder.done().values():
        progress.count_partition(counts)
    sensor = request.sensor
    return {
        "model": request.model,
        "weights_sha256": request.weights_sha256,
        "dim": lengths.embedding,
        "projected_dim": lengths.projected,
        "pooling": request.output.pooling or "mean",
        "normalised": _NORMALISED if request.normalise else "",
        "done": f"{progress.done:,}",
        "failed": f"{progress.failed:,}",
        "no_imagery": f"{progress.no_imagery:,}",
        "first": coverage.first,
        "last": coverage.last,
        "backend": request.backend,
        "composite": sensor.composite,
        "cloudy_pct": f"{sensor.cloudy_pct:g}",
        "scale_m": f"{sensor.scale_m:g}",
        "bands": ", ".join(sensor.bands),
        "notice": coverage.notice,
    }


def _bounds(folder: DatasetFolder) -> Box:
    """Return west, south, east and north of all footprints, from the files' footers."""
    boxes = []
    for path in (folder.path / "embeddings").glob("*.parquet"):
        column = json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]
        boxes += [column["bbox"]] if "bbox" in column else []
    return enclose(boxes) if boxes else WORLD
