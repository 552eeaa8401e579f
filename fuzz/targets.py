"""What is fuzzed: one function for each kind of file that may come from elsewhere."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import rs_embed
from fuzz.harness import JSON, check_error, mutated_bytes, mutated_json, target, write_json
from rs_embed import (
    EmbeddingIndex,
    LocalProvider,
    PointBuffer,
    RSEmbedError,
    SensorSpec,
    TemporalSpec,
    open_dataset,
)
from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import read_places
from rs_embed.export.regions import read_region
from rs_embed.grid import place_geobox
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.block_files import open_block_file
from rs_embed.providers.http import RangeReader, new_client

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from archive_server import Tile, write_scene
from fakes import SMALL_JSON, state_dict, write_checkpoint
from vector_dataset import write_vectors

_SEEDS = Path(tempfile.mkdtemp(prefix="rs-embed-fuzz-seeds-"))
_VECTORS = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
_DATASET = write_vectors(_SEEDS / "dataset", _VECTORS, list("abcdef"))
EmbeddingIndex(_DATASET)
_CHECKPOINT = write_checkpoint(_SEEDS / "checkpoint")
_BUNDLED = Path(rs_embed.__file__).parent / "embedders" / "clip_eurosat"
_PART, _INDEX = "embeddings/part-000000.parquet", ".rs-embed/index"


def _content(name: str) -> Any:
    return json.loads((_DATASET / name).read_text())


def _use(folder: Path) -> None:
    """Read and search a dataset in every way that needs no weights; each way may refuse it by itself."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: DatasetFolder(folder).planned_keys(),
        lambda: [DatasetFolder(folder).rows(number) for number in list(DatasetFolder(folder).partitions())[:3]],
        lambda: DatasetFolder(folder).done(),
        lambda: open_dataset(folder).to_table(),
        lambda: open_dataset(folder).to_numpy("embedding_projected"),
        lambda: _search(EmbeddingIndex(folder)),
    )
    for way in ways:
        try:
            way()
        except RSEmbedError as error:
            check_error(error)


def _search(index: EmbeddingIndex) -> None:
    found = index.search(vector=_VECTORS[0], k=6)
    json.dumps([found.to_dict(), found.to_geojson(), index.places().to_dict(), index.extent], allow_nan=False)
    index.thumbnails([hit.unique_id for hit in found.hits])


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(_DATASET, folder / "ds"))


@target(mutated_json(_content(".rs-embed/manifest.json")))
def manifest(value: Any, folder: Path) -> None:
    """The request and the plans of a dataset."""
    write_json(_copy(folder) / ".rs-embed" / "manifest.json", value)
    _use(folder / "ds")


@target(mutated_json(_content(f"{_INDEX}/index.json")))
def index_header(value: Any, folder: Path) -> None:
    """The header of an index."""
    write_json(_copy(folder) / _INDEX / "index.json", value)
    _use(folder / "ds")


@target(
    st.sampled_from([f"{_INDEX}/{name}" for name in ("rows-000000000.parquet", "mean.npy", "vectors.f16")]).flatmap(
        lambda name: st.tuples(st.just(name), mutated_bytes([(_DATASET / name).read_bytes()]))
    )
)
def index_files(value: tuple[str, bytes], folder: Path) -> None:
    """The other files of an index."""
    (_copy(folder) / value[0]).write_bytes(value[1])
    _use(folder / "ds")


@target(mutated_bytes([(_DATASET / _PART).read_bytes(), (_DATASET / ".rs-embed/plan-000.parquet").read_bytes()]))
def part(value: bytes, folder: Path) -> None:
    """The rows of a dataset, and a plan."""
    dataset = _copy(folder)
    shutil.rmtree(dataset / _INDEX)
    for name in (_PART, ".rs-embed/plan-000.parquet"):
        (dataset / name).write_bytes(value)
    _use(dataset)


@target(mutated_json({"ok": 6, "partial": 0, "failed": 0, "no_imagery": 0}))
def mark(value: Any, folder: Path) -> None:
    """The mark of a finished partition."""
    write_json(_copy(folder) / ".rs-embed" / "done" / "000000.json", value)
    DatasetFolder(folder / "ds").done()


_CONCEPT = {"name": "c", "model": "m", "weights_sha256": "0" * 64, "direction": [0.1] * 64, "text": ["a"]}


@target(mutated_json(_CONCEPT | {"positives": ["a"], "negatives": ["b"]}))
def concept(value: Any, folder: Path) -> None:
    """A saved concept."""
    write_json(_copy(folder) / "concepts" / "c.json", value)
    EmbeddingIndex(folder / "ds").search(concept="c")


@target(mutated_json(SMALL_JSON | {"vision_config": {"hidden_act": "gelu"}, "model_cfg": {"quick_gelu": True}}) | JSON)
def config(value: Any, folder: Path) -> None:
    """The config beside weights."""
    (folder / "model.safetensors").symlink_to(_CHECKPOINT / "model.safetensors")
    write_json(folder / "config.json", value)
    open_checkpoint(folder / "model.safetensors")


_WEIGHTS = (_CHECKPOINT / "model.safetensors").read_bytes()
_HEADER_END = 8 + int.from_bytes(_WEIGHTS[:8], "little")


def _load(file: Path) -> None:
    checkpoint = open_checkpoint(file)
    checkpoint.load_vision()
    checkpoint.load_text()


@target(mutated_json(json.loads(_WEIGHTS[8:_HEADER_END])))
def safetensors_header(value: Any, folder: Path) -> None:
    """Names, types, shapes and places of tensors."""
    text = json.dumps(value).encode()
    shutil.copy(_CHECKPOINT / "config.json", folder)
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + _WEIGHTS[_HEADER_END:])
    _load(folder / "x.safetensors")


@target(mutated_bytes([_WEIGHTS[: _HEADER_END + 100]]))
def safetensors_bytes(value: bytes, folder: Path) -> None:
    """The beginning of a safetensors file."""
    shutil.copy(_CHECKPOINT / "config.json", folder)
    (folder / "x.safetensors").write_bytes(value + _WEIGHTS[_HEADER_END + 100 :])
    _load(folder / "x.safetensors")


def _torch_file() -> bytes:
    small = {name: tensor for name, tensor in state_dict().items() if "ln" in name or name == "visual.class_embedding"}
    torch.save(small, _SEEDS / "x.pt")
    return (_SEEDS / "x.pt").read_bytes()


@target(mutated_bytes([_torch_file()]))
def torch_bytes(value: bytes, folder: Path) -> None:
    """A torch archive."""
    (folder / "x.pt").write_bytes(value)
    _load(folder / "x.pt")


_RULES = json.loads((_BUNDLED / "tokenizer.json").read_text())


@target(st.tuples(mutated_json(_RULES), st.text(max_size=60)))
def tokenizer(value: tuple[Any, str], folder: Path) -> None:
    """A tokenizer, and a text for it."""
    write_json(folder / "tokenizer.json", value[0])
    rules = Tokenizer.from_file(folder / "tokenizer.json")
    rules.encode([value[1], "lake"], 16)
    rules.count(value[1])
    rules.unknown_words(value[1])


_POLYGON = {"type": "Polygon", "coordinates": [[[1, 2], [1, 3], [2, 3], [1, 2]]]}
_FEATURES = [
    {"type": "Feature", "id": "a", "properties": {"n": 1}, "geometry": {"type": "Point", "coordinates": [13.7, 48.2]}},
    {"type": "Feature", "properties": {"id": "b", "start": "2022-06-01"}, "geometry": _POLYGON},
]


@target(mutated_json({"type": "FeatureCollection", "features": _FEATURES}) | JSON)
def geojson_places(value: Any, folder: Path) -> None:
    """Places in GeoJSON."""
    write_json(folder / "places.geojson", value)
    read_places(folder / "places.geojson", ReadOptions(chip_m=400))


@target(mutated_json({"type": "FeatureCollection", "features": [_FEATURES[1]]}) | mutated_json(_POLYGON) | JSON)
def geojson_region(value: Any, folder: Path) -> None:
    """A region in GeoJSON."""
    write_json(folder / "region.geojson", value)
    read_region(folder / "region.geojson")


_CELL = st.sampled_from(["1", "-91", "nan", "1e400", "2022-06-01", "2022-13-01", '"', "", "٣", "0x1", "1_0"]) | st.text(
    max_size=8
)
_LINE = st.lists(_CELL, max_size=5).map(",".join)
_CSV = st.tuples(
    st.sampled_from(["id,lon,lat", "lon,lat,start,end", "x,y,x", "id,id,lon,lat"]), st.lists(_LINE, max_size=6)
)


@target(_CSV.map(lambda parts: "\n".join([parts[0], *parts[1]])) | st.text(max_size=80))
def csv_places(value: str, folder: Path) -> None:
    """Places in a CSV file."""
    (folder / "places.csv").write_bytes(value.encode("utf-8", "surrogatepass"))
    read_places(folder / "places.csv", ReadOptions(chip_m=400))


_TILE = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=128)
_ITEM = write_scene(_SEEDS / "scenes", ".", _TILE, "2022-06-03", seed=0, block=64)
_BAND = (_SEEDS / "scenes" / str(_ITEM["id"]) / "B04.tif").read_bytes()
_PLACE = place_geobox(PointBuffer(15.005, 47.85, 160), 10)
_WANTED = PatchRequest(_PLACE, TemporalSpec.range("2022-06-01", "2022-07-01"), SensorSpec())


@target(mutated_json(_ITEM))
def item(value: Any, folder: Path) -> None:
    """An item of a static catalog."""
    shutil.copytree(_SEEDS / "scenes" / str(_ITEM["id"]), folder / str(_ITEM["id"]))
    write_json(folder / "item.json", value)
    provider = LocalProvider(folder)
    provider.plan([_WANTED])
    list(provider.fetch([_WANTED]))


@dataclass(repr=False)
class _Bytes(RangeReader):
    """A reader of one file in memory."""

    content: bytes = b""

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        self.sizes[path] = len(self.content)
        return self.content[start : end if end is not None else start + (length or 0)]


@target(mutated_bytes([_BAND, _BAND[:2000]]))
def tiff(value: bytes, folder: Path) -> None:
    """A raster of a catalog: its header and its blocks."""

    async def read() -> None:
        async with new_client() as client:
            file = await open_block_file(_Bytes(client, asyncio.Semaphore(1), content=value), "http://host/B04.tif")
            rows, columns = -(-file.grid.height // file.grid.block_height), -(-file.grid.width // file.grid.block_width)
            for row in range(min(rows, 2)):
                await file.fetch_blocks(row, range(min(columns, 2)))

    asyncio.run(read())


@target(mutated_bytes([_BAND, _BAND[:2000]]))
def local_tiff(value: bytes, folder: Path) -> None:
    """A raster of a folder."""
    scene = folder / str(_ITEM["id"])
    shutil.copytree(_SEEDS / "scenes" / str(_ITEM["id"]), scene)
    (scene / "B04.tif").write_bytes(value)
    write_json(folder / "item.json", _ITEM)
    list(LocalProvider(folder).fetch([_WANTED]))
