"""Every public call inside a running event loop, as in a notebook's cell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import ee
import numpy as np
import pytest
from google.auth.credentials import AnonymousCredentials

import rs_embed
from archive_server import Api, FileServer, Tile, serve_api, serve_files, write_scene
from earth_engine import serving
from fakes import write_checkpoint
from local_archive import LEFT, TOP, write_archive
from rs_embed import PointBuffer, TemporalSpec
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.grid import transformer
from rs_embed.providers import registry

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
LON, LAT = transformer(32633, 4326).transform(LEFT + 2500, TOP - 2500)
PLACE = PointBuffer(LON, LAT, 320)


def at(backend: str) -> dict[str, object]:
    """The place, time and backend of a call."""
    if backend == "sample":
        sample = rs_embed.list_samples()[0]
        place = PointBuffer(sample.lon, sample.lat, 500)
        return {"spatial": place, "temporal": TemporalSpec.range(sample.start, sample.end), "backend": backend}
    return {"spatial": PLACE, "temporal": JUNE, "backend": backend}


def batch(backend: str) -> object:
    found = at(backend)
    return rs_embed.get_embeddings_batch(MODEL, spatials=[found.pop("spatial")] * 3, **found)  # type: ignore[arg-type]


def export(backend: str, tmp: Path) -> None:
    found = at(backend)
    place: PointBuffer = found.pop("spatial")  # type: ignore[assignment]
    rows = tmp / "places.csv"
    rows.write_text(f"id,lon,lat\nhome,{place.lon},{place.lat}\n")
    asked = found | {"chip_m": 640.0}
    rs_embed.plan_export(rows, **asked)  # type: ignore[arg-type]
    rs_embed.export_embeddings(MODEL, rows, tmp / "out", **asked)  # type: ignore[arg-type]
    assert len(rs_embed.EmbeddingIndex(tmp / "out").search("lake", k=1).hits) == 1


CALLS: dict[str, Callable[[str, Path], object]] = {
    "get_embedding": lambda backend, tmp: rs_embed.get_embedding(MODEL, **at(backend)),
    "get_embeddings_batch": lambda backend, tmp: batch(backend),
    "inspect_provider_patch": lambda backend, tmp: rs_embed.inspect_provider_patch(**at(backend)),
    "fetch_patch": lambda backend, tmp: rs_embed.fetch_patch(**at(backend)),
    "heat_map": lambda backend, tmp: rs_embed.heat_map(MODEL, "lake", **at(backend)),
    "export": export,
}


def in_a_cell(call: Callable[[], object]) -> object:
    async def cell() -> object:
        return call()

    return asyncio.run(cell())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local:{write_archive(tmp_path_factory.mktemp('local'))}"


@pytest.fixture(scope="module")
def stac_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stac")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", ["sample", "local", "stac", "gee"])
def test_every_call_works_in_a_running_event_loop(kind, name, local, stac_root, tmp_path):
    if kind in ("sample", "local"):
        in_a_cell(lambda: CALLS[name](local if kind == "local" else kind, tmp_path))
    elif kind == "gee":
        registry._open_gee.cache_clear()  # what other tests listed
        with serving(Path(local.removeprefix("local:"))) as engine:
            ee.Initialize(AnonymousCredentials(), project="test", url=engine.url)
            in_a_cell(lambda: CALLS[name]("gee", tmp_path))
            ee.Reset()
    else:
        with serve_files(FileServer(stac_root)) as files:
            tile = Tile("33UVP", 32633, LEFT, TOP, side_px=1024)
            item = write_scene(stac_root, files.url, tile, "2022-06-03", seed=1, overviews="AUTO", darkest=1040)
            item["properties"]["earthsearch:boa_offset_applied"] = True  # doubtful, so that a second band is looked at
            with serve_api(Api([item])) as api:
                in_a_cell(lambda: CALLS[name](f"stac:{api.url}#sentinel-2-l2a", tmp_path))
            assert any(path.endswith("B04.tif") for path, _ in files.requests)


def test_words_and_own_pixels_work_in_a_running_event_loop(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "small")
    words = Tokenizer.from_open_clip_merges()
    assert words is not None
    words.rules.save(str(checkpoint / "tokenizer.json"))
    texts = in_a_cell(lambda: rs_embed.embed_text("remoteclip_s2rgb", ["a lake", "a town"], checkpoint=str(checkpoint)))
    assert texts.shape == (2, 32)
    pixels = np.full((3, 64, 64), 900.0)
    found = in_a_cell(lambda: rs_embed.get_embedding("remoteclip_s2rgb", input_chw=pixels, checkpoint=str(checkpoint)))
    assert found.data.shape == (64,)
    image = rs_embed.get_embedding(MODEL, input_chw=pixels, output=rs_embed.OutputSpec.pooled("projected"))
    assert in_a_cell(lambda: rs_embed.zero_shot([image], ["lake", "forest"], model=MODEL)).shape == (1, 2)
    assert in_a_cell(lambda: rs_embed.text_query(MODEL, "lake")) is not None
