"""STAC 1.1 description of a dataset: a collection, the item of its files, and an item for the model (MLM 1.4.0).

https://github.com/stac-extensions/mlm · https://github.com/geo-embeddings/embeddings-stac-specification
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import shapely

from rs_embed.clip.weights import find_cached, local_file
from rs_embed.embedders.cards import PACKAGE, describe_model, find_card, shipped_folder
from rs_embed.errors import DISTRIBUTION
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.tables import SOURCE_DATA, embedding_fields, run_fields
from rs_embed.lonlat import Box
from rs_embed.outlines import polygon
from rs_embed.sentinel2 import COMMON_NAMES, NATIVE_M
from rs_embed.versions import versions

EMBEDDINGS_EXTENSION = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
MLM_EXTENSION = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
_PARQUET, _JSON, _GEOJSON = "application/vnd.apache.parquet", "application/json", "application/geo+json"
_STAC = {"stac_version": "1.1.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Footprint and time range of a dataset's rows."""

    bounds: Box
    first: str  # day
    last: str
    notice: str

    @property
    def interval(self) -> list[str]:
        """Both ends of the time range in UTC."""
        return [f"{day}T00:00:00Z" for day in (self.first, self.last)]

    def feature(self) -> dict[str, Any]:
        """Return the fields that every item of the dataset has."""
        start, end = self.interval
        return {
            "type": "Feature",
            **_STAC,
            "geometry": shapely.geometry.mapping(polygon(self.bounds)),
            "bbox": list(self.bounds),
            "properties": {
                "datetime": None,
                "start_datetime": start,
                "end_datetime": end,
                "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        }


def sidecars(request: ExportRequest, lengths: VectorLengths, coverage: Coverage) -> dict[str, dict[str, Any]]:
    """Return the STAC documents of a dataset by the names of their files."""
    return {
        "collection.json": _collection(request, lengths, coverage),
        "item.json": _item(request, coverage),
        "model.json": _model(request, lengths, coverage),
    }


def _collection_id(request: ExportRequest) -> str:
    return f"rs-embed-{request.sha256()[:12]}"


def _collection(request: ExportRequest, lengths: VectorLengths, coverage: Coverage) -> dict[str, Any]:
    embeddings = {"title": "Vectors as GeoParquet 1.1", "type": _PARQUET, "roles": ["data"]}
    return {
        "type": "Collection",
        **_STAC,
        "stac_extensions": [EMBEDDINGS_EXTENSION],
        "id": _collection_id(request),
        "title": f"Embeddings of Sentinel-2 imagery by {request.model}",
        "description": f"One vector a place and time range. {coverage.notice}.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [list(coverage.bounds)]},
            "temporal": {"interval": [coverage.interval]},
        },
        **embedding_fields(request, lengths.embedding),
        "emb:chip_layout": {"layout_type": "variable_grid"},
        "emb:fit_for_use": ["similarity_search", "classification", "retrieval"],
        "item_assets": {"embeddings": embeddings},
        "links": [
            {"rel": "item", "href": "./item.json", "type": _GEOJSON},
            {"rel": "emb:model", "href": "./model.json", "type": _GEOJSON},
            {"rel": "emb:source-data", "href": SOURCE_DATA, "type": "text/html"},
            {"rel": "license", "href": "./LICENSE.txt", "type": "text/plain"},
        ],
    }


def _item(request: ExportRequest, coverage: Coverage) -> dict[str, Any]:
    item = coverage.feature()
    item["properties"] |= run_fields(request)
    assets = {"embeddings": {"href": "./embeddings/", "type": _PARQUET, "roles": ["data"]}}
    if request.thumbnails:
        assets["thumbnails"] = {"href": "./thumbnails/", "type": _PARQUET, "roles": ["thumbnail"]}
    if request.grid:
        assets["grids"] = {"href": "./grids.zarr/", "type": "application/vnd+zarr; version=3", "roles": ["data"]}
    return item | {
        "stac_extensions": [EMBEDDINGS_EXTENSION],
        "id": f"{_collection_id(request)}-rows",
        "collection": _collection_id(request),
        "links": [
            {"rel": "collection", "href": "./collection.json", "type": _JSON},
            {"rel": "emb:source-data", "href": SOURCE_DATA, "type": "text/html"},
        ],
        "assets": assets,
    }


def _model(request: ExportRequest, lengths: VectorLengths, coverage: Coverage) -> dict[str, Any]:
    """Return the model's item; the shape of a checkpoint that is not the card's own is left open."""
    card = find_card(request.model)
    own = lengths.projected == card.projection_dim
    side = card.image_px if own else -1
    pixels = describe_model(card.name)["input"]["pixels"]
    bands = [_band(name) for name in request.sensor.bands]
    names, shape = ("embedding", "embedding_projected"), (lengths.embedding, lengths.projected)
    item = coverage.feature()
    item["properties"] |= {
        "bands": bands,
        "mlm:name": request.model,
        "mlm:architecture": card.backbone if own else "CLIP vision transformer",
        "mlm:tasks": ["similarity-search"],
        "mlm:framework": "PyTorch",
        "mlm:pretrained": True,
        "mlm:input": [
            {
                "name": "Sentinel-2 L2A true colour",
                "bands": [band["name"] for band in bands],
                "input": _array((-1, len(bands), side, side), ("batch", "bands", "height", "width")),
                "pre_processing_function": {"format": "text", "expression": pixels},
            }
        ],
        "mlm:output": [
            {"name": name, "tasks": ["similarity-search"], "result": _array((-1, dim), ("batch", "embedding"))}
            for name, dim in zip(names, shape, strict=True)
        ],
    }
    weights = {
        "href": model_uri(request),
        "title": f"Weights, sha256 {request.weights_sha256}",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": _artifact_type(request),
        "bands": bands,
    }
    return item | {
        "stac_extensions": [MLM_EXTENSION],
        "id": request.model,
        "links": [],
        "assets": {"model": weights},
    }


def model_uri(request: ExportRequest) -> str:
    """Return a URI of the weights: of the package that brings them, their digest (RFC 6920), or their hub repo."""
    reference = _reference(request)
    if shipped_folder(reference):
        folder = reference.removeprefix(PACKAGE)
        version = f"@{versions()[DISTRIBUTION]}" if DISTRIBUTION in versions() else ""
        return f"pkg:pypi/{DISTRIBUTION}{version}#rs_embed/embedders/{folder}/model.safetensors"
    if local_file(reference) is not None and request.weights_sha256 is not None:
        digest = base64.urlsafe_b64encode(bytes.fromhex(request.weights_sha256)).rstrip(b"=").decode()
        return f"ni:///sha-256;{digest}"  # a path of this machine would say nothing elsewhere
    repo, _, revision = reference.removeprefix("hf:").partition(":")[0].partition("@")
    return f"https://huggingface.co/{repo}" + (f"/tree/{revision}" if revision else "")


def _reference(request: ExportRequest) -> str:
    return request.checkpoint or find_card(request.model).checkpoint


def _artifact_type(request: ExportRequest) -> str:
    reference = _reference(request)
    file = None if shipped_folder(reference) else find_cached(reference)
    return "safetensors" if file is None or file.suffix == ".safetensors" else "torch.save"


def _array(shape: tuple[int, ...], dims: tuple[str, ...]) -> dict[str, Any]:
    return {"shape": list(shape), "dim_order": list(dims), "data_type": "float32"}


def _band(name: str) -> dict[str, Any]:
    text = f"Sentinel-2 MSI, {COMMON_NAMES[name]}, native resolution {NATIVE_M.get(name, 20)} m, DN of L2A"
    return {"name": name, "description": text}
