"""Documents beside a dataset's files fit the standards that they name: STAC, MLM, Embeddings, geoemb, GeoParquet.

The schemas of STAC come with pystac, MLM's lies in tests/data. The Embeddings extension, geoemb and GeoParquet are
checked against rules written from their texts, which close their namespaces; Embeddings also against its own schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pyarrow.parquet as pq
import pystac
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from fakes import NO_IMAGERY, FakeProvider
from rs_embed import BBox, OutputSpec, PointBuffer, SensorSpec, TemporalSpec, export_embeddings
from rs_embed.digest import digest_of
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.sidecars import EMBEDDINGS_EXTENSION, MLM_EXTENSION, Coverage, sidecars

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
STAC = "https://schemas.stacspec.org/{}/{}-spec/json-schema/{}.json"
ITEM, COLLECTION = STAC.format("v1.1.0", "item", "item"), STAC.format("v1.1.0", "collection", "collection")
EXPRESSION = {
    "type": "object",
    "required": ["format", "expression"],
    "properties": {"format": {"type": "string"}, "expression": {}},
}
ITEM_ONLY = ("runtime_parameters", "preprocessing", "postprocessing", "spatial_coverage", "quantization", "energy")
EMBEDDINGS_RULES = {
    "Collection": {
        "required": ["emb:type", "emb:dimensions", "data_type"],
        "properties": {
            "emb:type": {"enum": ["pixel", "chip"]},
            "emb:dimensions": {"type": "integer", "minimum": 1},
            "emb:chip_layout": {
                "properties": {"layout_type": {"enum": ["regular_grid", "variable_grid", "named_grid"]}}
            },
            "emb:fit_for_use": {"type": "array", "items": {"type": "string"}},
        },
        "patternProperties": {"^(?!emb:)": {}},
        "additionalProperties": False,
    },
    "Feature": {
        "properties": {
            "assets": {"required": ["embeddings"]},
            "properties": {
                "properties": {
                    "emb:runtime_parameters": {"type": "object"},
                    "emb:preprocessing": EXPRESSION,
                    "emb:postprocessing": EXPRESSION,
                },
                "patternProperties": {"^(?!emb:)": {}},
                "additionalProperties": False,
            },
        }
    },
}
GEOPARQUET_RULES = {
    "required": ["version", "primary_column", "columns"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": "1.1.0"},
        "primary_column": {"const": "geometry"},
        "columns": {
            "required": ["geometry"],
            "additionalProperties": {
                "required": ["encoding", "geometry_types"],
                "additionalProperties": False,
                "properties": {
                    "encoding": {"const": "WKB"},
                    "geometry_types": {
                        "uniqueItems": True,
                        "items": {"pattern": "^(GeometryCollection|(Multi)?(Point|LineString|Polygon))( Z)?$"},
                    },
                    "bbox": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                    "covering": {
                        "const": {"bbox": {edge: ["bbox", edge] for edge in ("xmin", "ymin", "xmax", "ymax")}}
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    """Every schema by its address; the three that others refer to for one definition have that definition alone."""
    folder = Path(pystac.__file__).parent / "validation" / "jsonschemas"
    found = {}
    for file in sorted((folder / "stac-spec" / "v1.1.0").glob("*.json")):
        part = file.stem if file.stem in ("catalog", "collection") else "item"
        found[STAC.format("v1.1.0", part, file.stem)] = json.loads(file.read_text())
    for file in (folder / "geojson").glob("*.json"):
        found[f"https://geojson.org/schema/{file.name}"] = json.loads(file.read_text())
    # the Embeddings extension names STAC 1.0's; MLM wants the bands of 1.1, and one folder should have one version
    found |= {address.replace("v1.1.0", "v1.0.0"): schema for address, schema in found.items()}
    found[MLM_EXTENSION] = json.loads((Path(__file__).parent / "data" / "mlm-v1.4.0.json").read_text())
    extension = "https://stac-extensions.github.io/{}/schema.json"
    expression = {"definitions": {"fields": {"properties": {"processing:expression": EXPRESSION}}}}
    found[extension.format("processing/v1.1.0")] = found[extension.format("processing/v1.2.0")] = expression
    data_type = found[STAC.format("v1.1.0", "item", "data-values")]["properties"]["data_type"]
    bands = {"bands": {"items": {"properties": {"data_type": data_type}}}}
    found[extension.format("raster/v1.1.0")] = {"definitions": bands}
    classes = {"fields": {"properties": {"classification:classes": {"type": "array", "minItems": 1}}}}
    found[extension.format("classification/v1.1.0")] = {"definitions": classes}
    return Registry().with_resources(
        (address, Resource.from_contents(schema, default_specification=DRAFT7)) for address, schema in found.items()
    )


def problems(document: object, schema: object, registry: Registry = Registry()) -> list[str]:  # noqa: B008
    validator = jsonschema.Draft7Validator(schema, registry=registry)
    return [f"{error.json_path}: {error.message:.200}" for error in validator.iter_errors(document)]


def check(document: dict, registry: Registry) -> None:
    """Check one STAC document against the core, the extensions that it names, and the rules of the Embeddings one."""
    kind = document["type"]
    assert problems(document, {"$ref": ITEM if kind == "Feature" else COLLECTION}, registry) == []
    [extension] = document["stac_extensions"]
    if extension == MLM_EXTENSION:
        assert problems(document, {"$ref": MLM_EXTENSION}, registry) == []
    else:
        assert extension == EMBEDDINGS_EXTENSION
        assert problems(document, EMBEDDINGS_RULES[kind]) == []
        places = (document, *document.get("assets", {}).values(), *document.get("item_assets", {}).values())
        assert not [key for place in places for key in place if key.removeprefix("emb:") in ITEM_ONLY]
    for link in document["links"]:
        assert link["rel"] != "self"  # it had to be absolute, and a folder is copied
        assert urlsplit(link["href"]).scheme == "https" or link["href"].startswith("./")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sidecars") / "ds"
    where = [PointBuffer(15, 48, 320), PointBuffer(16, 48, 320), BBox(179.99, -16.5, -179.99, -16.48)]
    export_embeddings(
        *(MODEL, where, folder),
        temporal=JUNE,
        backend=FakeProvider(failing={1: NO_IMAGERY}),
        grid=True,
        thumbnails=True,
        normalise=True,
        dtype="float16",
        allow_small=True,
    )
    return folder


def documents(folder: Path) -> dict[str, dict]:
    return {name: json.loads((folder / name).read_text()) for name in ("collection.json", "item.json", "model.json")}


def test_the_stac_documents_validate(dataset, registry):
    found = documents(dataset)
    for document in found.values():
        check(document, registry)
    collection, item, model = found.values()
    assert collection["data_type"] == "float16"
    assert {link["rel"]: link["href"] for link in collection["links"]}["item"] == "./item.json"
    assert item["collection"] == collection["id"]
    for asset in item["assets"].values():
        assert (dataset / asset["href"]).exists()
    assert item["properties"]["emb:runtime_parameters"]["weights_sha256"]
    assert item["properties"]["emb:postprocessing"]
    assert item["geometry"]["type"] == "MultiPolygon"  # on both sides of 180°
    assert [band["name"] for band in model["properties"]["bands"]] == ["B4", "B3", "B2"]
    assert "red" in model["properties"]["bands"][0]["description"]
    assert model["properties"]["mlm:input"][0]["bands"] == ["B4", "B3", "B2"]
    assert model["assets"]["model"]["roles"][0] == "mlm:model"


def test_the_documents_fit_the_schema_of_the_embeddings_extension(dataset, registry, shared):
    [file] = (shared / "schemas").glob("*embeddings-stac-specification.json")
    schema = json.loads(file.read_text())
    assert schema["$id"].rstrip("#") == EMBEDDINGS_EXTENSION
    for name in ("collection.json", "item.json"):
        assert problems(documents(dataset)[name], schema, registry) == []
    assert problems(documents(dataset)["model.json"], schema, registry)
    shared_mlm = next((shared / "schemas").glob("*mlm.json"))
    assert json.loads(shared_mlm.read_text()) == json.loads(
        (Path(__file__).parent / "data/mlm-v1.4.0.json").read_text()
    )


def test_pystac_reads_the_collection_and_follows_its_links(dataset):
    collection = pystac.Collection.from_file(str(dataset / "collection.json"))
    [item] = collection.get_items()
    assert item.assets["embeddings"].get_absolute_href() == str(dataset / "embeddings")
    [link] = collection.get_links("emb:model")
    assert pystac.Item.from_file(link.get_absolute_href()).properties["mlm:name"] == MODEL


def test_faults_of_the_documents_are_found(dataset, registry):
    """The checks above can fail."""
    collection, item, model = documents(dataset).values()
    for broken in (
        collection | {"emb:preprocessing": {"format": "text", "expression": "x"}},
        collection | {"stac_extensions": ["https://example.org/other.json"]},
        collection | {"emb:dimensions": "192"},
        item | {"assets": {}},
        item | {"bbox": None},
        model | {"assets": {}},
        model | {"assets": {"model": {**model["assets"]["model"], "mlm:artifact_type": ""}}},
        model | {"properties": {**model["properties"], "mlm:framework_version": "two"}},
        model | {"properties": {k: v for k, v in model["properties"].items() if k != "bands"}},
    ):
        with pytest.raises(AssertionError):
            check(broken, registry)


def test_token_grids_follow_the_geoemb_convention(dataset):
    root = json.loads((dataset / "grids.zarr" / "zarr.json").read_text())
    attributes = root["attributes"]
    assert (root["zarr_format"], root["node_type"]) == (3, "group")
    assert attributes["geoemb:type"] == "pixel"
    assert attributes["geoemb:dimensions"] == 192
    assert isinstance(attributes["geoemb:source_data"], list)
    for address in (*attributes["geoemb:source_data"], attributes["geoemb:model"]):
        assert urlsplit(address).scheme
    assert attributes["geoemb:data_type"] == "float32"
    known = {"type", "dimensions", "model", "source_data", "data_type", "gsd", "chip_layout", "quantization"}
    assert {key.removeprefix("geoemb:") for key in attributes if key.startswith("geoemb:")} <= known
    [convention] = [c for c in attributes["zarr_conventions"] if c["name"] == "geoemb:"]
    assert convention["uuid"] == "61c12cc5-0e28-4056-999a-480cf3fb7e4c"
    assert set(convention) <= {"schema_url", "spec_url", "uuid", "name", "description"}


def test_every_file_of_rows_is_geoparquet_1_1(dataset):
    files = sorted(dataset.glob("*/part-*.parquet"))
    with_places = [file for file in files if file.parent.name != "thumbnails"]
    assert {file.parent.name for file in with_places} == {"embeddings", "failures"}
    for file in with_places:
        schema = pq.read_schema(file)
        geo = json.loads(schema.metadata[b"geo"])
        assert problems(geo, GEOPARQUET_RULES) == []
        assert str(schema.field("geometry").type) == "binary"
        assert [field.name for field in schema.field("bbox").type] == ["xmin", "ymin", "xmax", "ymax"]
        assert {str(field.type) for field in schema.field("bbox").type} == {"double"}
    assert problems(geo | {"columns": {"geometry": {"encoding": "WKT"}}}, GEOPARQUET_RULES)


@pytest.mark.parametrize(
    ("model", "checkpoint", "uri"),
    [
        (MODEL, None, "pkg:pypi/rs-embed-remoteclip@"),
        ("remoteclip_s2rgb", None, "https://huggingface.co/MVRL/remote-clip-vit-base-patch32"),
        ("remoteclip_s2rgb", "hf:me/mine@v2:a.pt", "https://huggingface.co/me/mine/tree/v2"),
        ("remoteclip_s2rgb", "local", "ni:///sha-256;"),
    ],
)
def test_the_model_is_named_by_a_uri_that_means_something_elsewhere(model, checkpoint, uri, small, registry):
    digest = digest_of(small / "model.safetensors").result()
    request = ExportRequest(
        model=model,
        sensor=SensorSpec(),
        output=OutputSpec.pooled(),
        backend="sample",
        input_prep="resize",
        checkpoint=str(small) if checkpoint == "local" else checkpoint,
        precision="fp32",
        weights_sha256=digest,
        dtype="float32",
        normalise=False,
        thumbnails=False,
        grid=False,
        columns=(),
    )
    coverage = Coverage(bounds=(1.0, 2.0, 3.0, 4.0), first="2022-06-01", last="2022-07-01", notice="ESA")
    found = sidecars(request, VectorLengths(64, 32), coverage)
    for document in found.values():
        check(json.loads(json.dumps(document)), registry)
    href = found["model.json"]["assets"]["model"]["href"]
    assert href.startswith(uri)
    assert str(small) not in json.dumps(found)
    assert set(found["item.json"]["assets"]) == {"embeddings"}
    assert found["model.json"]["properties"]["mlm:input"][0]["input"]["shape"] == [-1, 3, -1, -1]
    assert "postprocessing" not in json.dumps(found)
