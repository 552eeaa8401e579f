"""Description of a dataset beside its files: a README, licence notes, and a STAC collection and item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow.parquet as pq

from rs_embed.embedders.cards import find_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.progress import Progress
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.tables import SOURCE_DATA, embedding_fields

_EMB = "https://geo-embeddings.github.io/embeddings-stac-specification/v0.0.1/schema.json"
_MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"


def write_card(folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths) -> None:
    """Write README.md, LICENSE.txt, collection.json and model.json for the present content of the folder."""
    first, last = folder.time_range()
    progress = Progress(total=0)
    for counts in folder.done().values():
        progress.count_partition(counts)
    bounds = _bounds(folder)
    documents = {
        "collection.json": _collection(request, lengths, bounds, first, last),
        "model.json": _model(request, bounds, first, last),
    }
    texts = {name: json.dumps(document, indent=1) + "\n" for name, document in documents.items()}
    texts |= {"README.md": _readme(request, lengths, progress, first, last), "LICENSE.txt": _licence(first, last)}
    for name, text in texts.items():
        folder.write_text(folder.path / name, text)


def _bounds(folder: DatasetFolder) -> list[float]:
    """Return west, south, east and north of all footprints, from the files' footers."""
    boxes = []
    for path in (folder.path / "embeddings").glob("*.parquet"):
        column = json.loads(pq.read_metadata(path).metadata[b"geo"])["columns"]["geometry"]
        boxes += [column["bbox"]] if "bbox" in column else []
    if not boxes:
        return [-180.0, -90.0, 180.0, 90.0]
    west, south, east, north = zip(*boxes, strict=True)
    return [min(west), min(south), max(east), max(north)]


def _notice(first: str, last: str) -> str:
    years = sorted({first[:4], last[:4]})
    return f"Contains modified Copernicus Sentinel data {'-'.join(years)}"


def _readme(request: ExportRequest, lengths: VectorLengths, counts: Progress, first: str, last: str) -> str:
    return f"""# Embeddings of Sentinel-2 imagery by {request.model}

{counts.done:,} places and time ranges between {first} and {last}, each with a vector of \
{lengths.embedding} numbers (`embedding`, {request.output.pooling or "mean"}) and its CLIP projection of \
{lengths.projected} (`embedding_projected`), which texts can be compared with. {counts.no_imagery:,} had no imagery, \
{counts.failed:,} failed: see `failures/`.

```python
import geopandas
frame = geopandas.read_parquet("embeddings")                     # a map with vectors

from rs_embed import open_dataset
vectors = open_dataset(".").to_numpy()                           # (n, {lengths.embedding})
```

| folder | rows |
|---|---|
| `embeddings/` | GeoParquet 1.1, one row a vector; nothing else is in there |
| `failures/` | the same columns without a vector, and the error |
| `thumbnails/` | quicklooks as PNG, by `unique_id` |

Columns: first those of Major TOM's embeddings, then how each vector was made (`scene_ids`, `dn_offsets`, \
`valid_frac`, `clear_frac`, `n_clear`, `warnings`, …), then the input's own. `id` and `input_row` join with it; \
`spatial_block` (a UTM cell of 10 km) is for grouped cross-validation; `band_means` are the mean DN of \
{", ".join(request.sensor.bands)}. `status` is `partial` where less than 80 % of the pixels were observed.
{_normalised(request)}
Model: {request.model}, weights sha256 {request.weights_sha256}. Imagery: {request.backend}, \
{request.sensor.composite} of the scenes with at most {request.sensor.cloudy_pct:g} % cloud, \
{request.sensor.scale_m:g} m a pixel.

{_notice(first, last)}.
"""


def _normalised(request: ExportRequest) -> str:
    if not request.normalise:
        return ""
    return "`embedding` has length 1; multiplied by `norm` it is the model's own output.\n"


def _licence(first: str, last: str) -> str:
    return f"""{_notice(first, last)}, processed by ESA.

The imagery is under the Copernicus Sentinel Data Terms and Conditions, which ask for the notice above with anything
made from it (https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice). The licence of the
vectors beyond that is yours to choose: put it here before you publish.
"""


def _collection(
    request: ExportRequest, lengths: VectorLengths, bounds: Sequence[float], first: str, last: str
) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [_EMB],
        "id": f"rs-embed-{request.sha256()[:12]}",
        "title": f"Embeddings of Sentinel-2 imagery by {request.model}",
        "description": f"One vector a place and time range. {_notice(first, last)}.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [list(bounds)]},
            "temporal": {"interval": [[f"{first}T00:00:00Z", f"{last}T00:00:00Z"]]},
        },
        **embedding_fields(request, lengths.embedding),
        "emb:chip_layout": {"layout_type": "variable_grid"},
        "emb:fit_for_use": ["similarity_search", "classification", "retrieval"],
        "emb:preprocessing": {
            "format": "text",
            "expression": f"{request.sensor.composite} composite, {request.input_prep}",
        },
        "links": [
            {"rel": "self", "href": "./collection.json", "type": "application/json"},
            {"rel": "emb:model", "href": "./model.json", "type": "application/geo+json"},
            {"rel": "emb:source-data", "href": SOURCE_DATA, "type": "text/html"},
            {"rel": "license", "href": "./LICENSE.txt", "type": "text/plain"},
        ],
        "assets": {
            "embeddings": {"href": "./embeddings/", "type": "application/vnd.apache.parquet", "roles": ["data"]},
            "thumbnails": {"href": "./thumbnails/", "type": "application/vnd.apache.parquet", "roles": ["thumbnail"]},
        },
    }


def _model(request: ExportRequest, bounds: Sequence[float], first: str, last: str) -> dict[str, Any]:
    """Return the model as a STAC item with the MLM extension, for the area and time of the dataset."""
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    card = find_card(request.model)
    bands = [{"name": band} for band in request.sensor.bands]
    side = card.image_px
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_MLM],
        "id": request.model,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(bounds),
        "properties": {
            "datetime": None,
            "start_datetime": f"{first}T00:00:00Z",
            "end_datetime": f"{last}T00:00:00Z",
            "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "mlm:name": request.model,
            "mlm:architecture": card.backbone,
            "mlm:tasks": ["similarity-search"],
            "mlm:framework": "pytorch",
            "mlm:pretrained": True,
            "mlm:input": [
                {
                    "name": "Sentinel-2 L2A true colour",
                    "bands": bands,
                    "input": {
                        "shape": [-1, 3, side, side],
                        "dim_order": ["batch", "bands", "height", "width"],
                        "data_type": "float32",
                    },
                }
            ],
            "mlm:output": [
                {
                    "name": "vector",
                    "tasks": ["similarity-search"],
                    "result": {"shape": [-1, -1], "dim_order": ["batch", "embedding"], "data_type": "float32"},
                }
            ],
        },
        "links": [],
        "assets": {},
    }
