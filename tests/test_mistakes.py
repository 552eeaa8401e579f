"""Mistakes that people make: each is one line that names the value and the remedy, and nothing is left half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import rs_embed as rs
from rs_embed.cli.main import main
from rs_embed.cli.usage import split_coordinates
from vector_dataset import write_vectors

MODEL, SAMPLE = ["--model", "clip_eurosat_s2rgb"], ["--backend", "sample"]
WHEN, AT = ["--start", "2017-06-01", "--end", "2017-07-01"], ["--point", "13.720948", "48.222307", "--buffer-m", "600"]
EMBED, ONE = ["embed", *MODEL, *SAMPLE, *WHEN], ["embed", *MODEL, *SAMPLE, *WHEN, *AT]
FILE = ["--chip", "1200"]
EXPORT = ["export", "ok.csv", *MODEL, *SAMPLE, *WHEN, *FILE, "--out", "new"]
HERE, TIME = rs.PointBuffer(13.720948, 48.222307, 600), rs.TemporalSpec.range("2017-06-01", "2017-07-01")

COMMANDS: list[tuple[list[str], list[str]]] = [
    # words of the command line
    (["embd"], ["'embd'", "'embed'"]),
    (["embed"], ["--start", "rs-embed embed --help"]),
    ([*ONE, "--strat", "2017-06-01"], ["--strat", "--start"]),
    ([*ONE, "--buffer-m", "600m"], ["--buffer-m", "'600m'", "number"]),
    ([*ONE, "--max-scenes", "three"], ["--max-scenes", "'three'", "integer"]),
    ([*EMBED, "ok.csv", "more.csv", *FILE], ["more.csv"]),
    (["serve", "ds", "--port", "99999"], ["--port", "'99999'", "65535"]),
    # places
    ([*EMBED, *FILE], ["one place or one file is needed", "--point LON LAT"]),
    ([*EMBED, "--point", "13.7", "48.2"], ["--buffer-m M"]),
    ([*EMBED, "--point", "13.7", "--buffer-m", "600"], ["--point", "'13.7 --buffer-m'", "number"]),
    ([*EMBED, "--point", "13,7", "48,2", "--buffer-m", "600"], ["--point 13,7", "points as decimal signs"]),
    ([*EMBED, "--point=13,48", "--buffer-m", "600"], ["--point 13,48", "LON LAT"]),
    ([*EMBED, "--bbox", "13.7", "48.2", "13.8"], ["--bbox W S E N"]),
    ([*EMBED, "--bbox", "13.8", "48.3", "13.7", "48.2"], ["48.3", "swap them"]),
    ([*EMBED, "--point", "48.2", "113.7", "--buffer-m", "600"], ["113.7", "swapped"]),
    ([*EMBED, "--point", "500000", "5316300", "--buffer-m", "600"], ["500000", "metres", "CRS"]),
    ([*EMBED, "--point", "13.7", "89", "--buffer-m", "600"], ["89", "UTM"]),
    ([*EMBED, "--point", "13.7", "48.2", "--buffer-m", "-5"], ["-5", "greater than 0"]),
    ([*ONE, "--chip", "1200"], ["give one of the two"]),
    ([*ONE, "--buffer-m", "1e6"], ["8192 px", "--chip M"]),
    # time
    ([*ONE, "--start", "2017-13-01"], ["'2017-13-01'", "YYYY-MM-DD"]),
    ([*ONE, "--start", "01.06.2017"], ["'01.06.2017'", "YYYY-MM-DD"]),
    ([*ONE, "--start", "2017-07-01", "--end", "2017-06-01"], ["2017-07-01 to 2017-06-01", "reversed"]),
    ([*ONE, "--end", "2017-06-01"], ["empty", "range('2017-06-01', '2017-06-02')"]),
    ([*ONE, "--start", "1980-01-01", "--end", "1980-02-01"], ["2017-06-13", "widen the time range"]),
    (["plan", "ok.csv", *SAMPLE, *FILE, "--start", "2017-06-01"], ["--start and --end come together"]),
    # files
    ([*EMBED, "nothere.csv", *FILE], ["nothere.csv: no such file"]),
    ([*EMBED, "folder", *FILE], ["folder: it is a folder", "name a file"]),
    ([*EMBED, "empty.csv", *FILE], ["empty.csv", "name its columns in the first line"]),
    ([*EMBED, "header.csv", *FILE], ["header.csv has no places", "at least one row"]),
    ([*EMBED, "text.txt", *FILE], ["text.txt", ".csv", "not .txt"]),
    ([*EMBED, "bad.geojson", *FILE], ["bad.geojson cannot be read as GeoJSON"]),
    ([*EMBED, "bad.parquet", *FILE], ["bad.parquet cannot be read"]),
    ([*EMBED, "ok.csv", "--chip", "-7"], ["-7", "greater than 0"]),
    # the source and the model
    ([*ONE, "--model", "remoteclip_s2rbg"], ["'remoteclip_s2rbg'", "did you mean 'remoteclip_s2rgb'"]),
    ([*ONE, "--model", "RemoteCLIP"], ["'RemoteCLIP'", "did you mean 'remoteclip'"]),
    (["models", "clip-eurosat"], ["'clip-eurosat'", "did you mean 'clip_eurosat'"]),
    ([*ONE, "--backend", "folder"], ["'folder'", "did you mean 'local:folder'"]),
    ([*ONE, "--backend", "earthsearch"], ["'earthsearch'", "did you mean 'earth-search'"]),
    ([*ONE, "--backend", "Planetary_Computer"], ["did you mean 'planetary-computer'"]),
    ([*ONE, "--backend", "https://x.y/v1"], ["did you mean 'stac:https://x.y/v1#<collection>'"]),
    ([*ONE, "--backend", "local:nothere"], ["local:nothere: no such folder"]),
    ([*ONE, "--backend", "local:folder"], ["local:folder", "no usable Sentinel-2 scene"]),
    ([*ONE, "--checkpoint", "nothere.pt"], ["'nothere.pt'", "check the path"]),
    ([*ONE, "--checkpoint", "text.txt"], ["text.txt", "neither safetensors nor a torch file"]),
    ([*ONE, "--checkpoint", "folder"], ["folder holds no weights", "model.safetensors"]),
    ([*ONE, "--device", "gpu"], ["device='gpu'", "use 'auto' or 'cpu'"]),
    ([*ONE, "--device", "mps"], ["device='mps'", "use 'auto' or 'cpu'"]),
    ([*ONE, "--precision", "int4"], ["'int4'", "'fp32'"]),
    ([*ONE, "--precision", "fp16"], ["'fp16'", "use 'fp32', 'bf16' or 'int8'"]),
    ([*ONE, "--composite", "mean"], ["'mean'", "'median' or 'mosaic'"]),
    ([*ONE, "--cloud-mask", "qa60"], ["'qa60'", "'scl'"]),
    ([*ONE, "--cloudy-pct", "200"], ["200", "0…100"]),
    ([*ONE, "--scale-m", "0"], ["scale_m", "greater than 0"]),
    ([*ONE, "--max-scenes", "0"], ["max_scenes", "at least 1"]),
    # results
    ([*ONE, "--output", "tokens"], ["'tokens'", "'grid'"]),
    ([*ONE, "--pooling", "max"], ["'max'", "'projected'"]),
    ([*ONE, "--out", "vectors.xyz"], ["vectors.xyz", ".npy"]),
    ([*ONE, "--out", "nothere/v.npy"], ["nothere", "does not exist"]),
    ([*ONE, "--out", "v.parquet", "--output", "grid"], ["v.parquet", "write .nc"]),
    ([*EXPORT, "--out", "text.txt"], ["text.txt is a file", "name a folder"]),
    ([*EXPORT, "--chip", "10"], ["1 px a side", "--allow-small"]),
    ([*EXPORT, "--every", "week"], ["'week'", "month, quarter, year"]),
    ([*EXPORT, "--shard", "4"], ["'4'", "such as 0/4"]),
    ([*EXPORT, "--shard", "4/4"], ["4/4", "I < N"]),
    ([*EXPORT, "--dtype", "int8"], ["'int8'", "'float16'"]),
    ([*EXPORT, "--engine", "dask"], ["'dask'", "'ray'"]),
    ([*EXPORT, "--crs", "EPSG:1"], ["'EPSG:1'", "EPSG:…"]),
    ([*EXPORT, "--lon", "east"], ["no column east", "id, lon, lat"]),
    ([*EXPORT, "--partition-size", "0"], ["partition_size", "at least 1"]),
    (["export", *EXPORT[2:], "--region", "nothere.geojson"], ["nothere.geojson"]),
    (["plan", "ok.csv", *SAMPLE, *WHEN, *FILE, "--mbit-s", "0"], ["greater than 0 Mbit/s"]),
    # the other commands
    (["classify", *ONE[1:], "--labels", "forest,,lake"], ["''", "forest,water=river|lake"]),
    (["inspect", *SAMPLE, *WHEN, *AT, "--save-dir", "text.txt"], ["text.txt cannot be written", "check the folder"]),
    (["heatmap", "river", *ONE[1:], "--window-m", "1"], ["window_m", "20 m"]),
    (["heatmap", "river", *ONE[1:], "--plot", "map.txt"], ["map.txt", ".png"]),
    (["heatmap", "river", *ONE[1:], "--out", "map.png"], ["map.png", ".tif"]),
    (["index", "folder"], ["folder is no dataset"]),
    (["search", "nothere", "river"], ["nothere is no dataset"]),
    (["search", "broken", "river"], ["manifest.json is damaged", "copy the dataset again"]),
    (["search", "ds", "--like", "v0-7"], ["v0-7"]),
    (["search", "ds", "--like", "v0-0", "--k", "0"], ["k ", "0"]),
    (["search", "ds", "--like", "v0-0", "--concept", "none"], ["none"]),
    (["search", "ds", "--like", "v0-0", "--plot", "hits.gif"], ["hits.gif", ".png"]),
    (["search", "ds", "--like", "v0-0", "--bbox", "1", "2", "1", "2"], ["no area"]),
    (["search", "ds"], ["nothing was asked", "in words"]),
    (["demo", "--model", "remoteclip_s2"], ["'remoteclip_s2'", "did you mean"]),
    (["demo", "--out", "text.txt"], ["text.txt cannot be written"]),
    (["demo", "--at", "200", "10"], ["--at 200 10", "longitude, then latitude"]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of somebody with a few files."""
    root, before = tmp_path_factory.mktemp("mistakes"), Path.cwd()
    (root / "ok.csv").write_text("id,lon,lat\na,13.720948,48.222307\n")
    (root / "header.csv").write_text("lon,lat\n")
    for name in ("empty.csv", "text.txt", "bad.geojson", "bad.parquet"):
        (root / name).write_text("" if name == "empty.csv" else "mine")
    (root / "folder").mkdir()
    (root / "broken" / ".rs-embed").mkdir(parents=True)
    (root / "broken" / ".rs-embed" / "manifest.json").write_text("{")
    rs.EmbeddingIndex(write_vectors(root / "ds", np.eye(3, 8, dtype=np.float32)))
    os.chdir(root)
    yield root
    os.chdir(before)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize(("arguments", "says"), COMMANDS, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_in_a_command_is_one_line_and_leaves_nothing(folder, capsys, arguments, says):
    before = contents(folder)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code in (1, 2)
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert len(err) < 700
    for words in says:
        assert words in err
    assert contents(folder) == before


def embed(**changes: object) -> Callable[[], object]:
    given = {"spatial": HERE, "temporal": TIME, "backend": "sample", **changes}
    return lambda: rs.get_embedding("clip_eurosat_s2rgb", **given)


def batch(**changes: object) -> Callable[[], object]:
    given = {"spatials": [HERE], "temporal": TIME, "backend": "sample", **changes}
    return lambda: rs.get_embeddings_batch("clip_eurosat_s2rgb", **given)


def export(places: object, **changes: object) -> Callable[[], object]:
    given = {"temporal": TIME, "backend": "sample", **changes}
    return lambda: rs.export_embeddings("clip_eurosat_s2rgb", places, "new", **given)


def pixels(value: object) -> Callable[[], object]:
    return lambda: rs.get_embedding("clip_eurosat_s2rgb", input_chw=value)


DAYS = ("2017-06-01", "2017-07-01")
CALLS: list[tuple[Callable[[], object], list[str]]] = [
    (embed(temporal=DAYS), [str(DAYS), f"TemporalSpec.range{DAYS}"]),
    (embed(temporal=2017), ["2017", "TemporalSpec.range("]),
    (embed(temporal=None), ["no temporal", "TemporalSpec.range("]),
    (embed(temporal=rs.TemporalSpec.year(2017)), ["mode='year'", "TemporalSpec.range("]),
    (batch(spatials=[HERE, HERE], temporal=list(DAYS)), [f"TemporalSpec.range{DAYS}"]),
    (batch(temporal=[TIME, TIME]), ["2 time ranges for 1 places", "one for all"]),
    (embed(spatial=(13.7, 48.2)), ["write PointBuffer(13.7, 48.2, buffer_m=…)"]),
    (embed(spatial=[13.7, 48.2, 600]), ["write PointBuffer(13.7, 48.2, 600)"]),
    (embed(spatial=(1, 2, 3, 4)), ["write BBox(1, 2, 3, 4)"]),
    (embed(spatial="Linz"), ["'Linz'", "PointBuffer(lon, lat, buffer_m)"]),
    (embed(spatial=None), ["a place is needed", "PointBuffer"]),
    (batch(spatials=HERE), ["spatials must be a list", "[...]"]),
    (embed(sensor={"scale_m": 10}), ["{'scale_m': 10}", "SensorSpec("]),
    (embed(output="pooled"), ["'pooled'", "OutputSpec.pooled()"]),
    (embed(backend=None), ["None", "fetch and plan"]),
    (embed(device=None), ["device=None", "'cpu'"]),
    (embed(precision="half"), ["'half'", "'fp16'"]),
    (embed(checkpoint=5), ["int", "encode_image"]),
    (batch(on_error="ignore"), ["'ignore'", "'return'"]),
    (pixels(np.ones((224, 224, 3))), ["(224, 224, 3)", "CHW"]),
    (pixels(np.full((3, 8, 8), 0.5)), ["0.5", "multiply it by 10000"]),
    (pixels(np.full((3, 8, 8), np.nan)), ["input_chw"]),
    (pixels("image.tif"), ["numbers (raw DN)"]),
    (lambda: rs.get_embeddings_batch("remoteclip", input_chws=np.ones((3, 8, 8))), ["input_chws[0]", "CHW"]),
    (lambda: rs.fetch_patch((13.7, 48.2), TIME), ["write PointBuffer(13.7, 48.2, buffer_m=…)"]),
    (lambda: rs.fetch_patch(HERE, DAYS), [f"TemporalSpec.range{DAYS}"]),
    (lambda: rs.inspect_provider_patch(spatial=HERE, temporal=TIME, value_range=(9, 1)), ["(9, 1)", "(0, 10000)"]),
    (lambda: rs.heat_map("clip_eurosat", "river", spatial=(1, 2), temporal=TIME, backend="sample"), ["PointBuffer("]),
    (lambda: rs.heat_map("clip_eurosat", "", spatial=HERE, temporal=TIME, backend="sample"), ["''", "non-empty"]),
    (lambda: rs.embed_text("clip_eurosat", 5), ["5", "list of texts"]),
    (lambda: rs.embed_text("clip_eurosat", "river", template="no braces"), ["'no braces'", "{}"]),
    (lambda: rs.describe_model("remoteclip_s2"), ["did you mean 'remoteclip_s2rgb'"]),
    (lambda: rs.open_dataset("folder"), ["folder is no dataset"]),
    (lambda: rs.EmbeddingIndex("broken"), ["manifest.json is damaged", "copy the dataset again"]),
    (lambda: rs.StacProvider("nowhere"), ["'nowhere'", "earth-search"]),
    (lambda: rs.LocalProvider("nothere"), ["nothere", "no such folder"]),
    (lambda: rs.plan_export([HERE], temporal=DAYS, backend="sample"), [f"TemporalSpec.range{DAYS}"]),
    (export([(13.7, 48.2)]), ["(13.7, 48.2)", "BBox and PointBuffer"]),
    (export([]), ["no places", "at least one row"]),
    (export("ok.csv"), ["a size is needed", "--chip M"]),
    (export("ok.csv", chip_m="600"), ["'600'", "greater than 0 metres"]),
    (export([HERE], temporal=DAYS), [f"TemporalSpec.range{DAYS}"]),
    (export([HERE], shard=(2, 2)), ["2/2", "I < N"]),
    (lambda: rs.BBox(13.7, 48.2, 13.7, 48.2), ["no area", "PointBuffer("]),
    (lambda: rs.PointBuffer("13.7", 48.2, 600), ["'13.7'", "must be a number"]),
    (lambda: rs.TemporalSpec.range("2022-6-1", "2022-7-1"), ["'2022-6-1'", "YYYY-MM-DD"]),
    (lambda: rs.TemporalSpec.year("2022"), ["'2022'", "whole number"]),
    (lambda: rs.SensorSpec(bands="B4"), ["'B4'", "('B4', 'B3', 'B2')"]),
    (lambda: rs.SensorSpec(collection="landsat"), ["'landsat'", "sentinel-2-l2a"]),
    (lambda: rs.OutputSpec.pooled("max"), ["'max'", "'projected'"]),
]


@pytest.mark.parametrize(("call", "says"), CALLS, ids=lambda value: value[0][:60] if isinstance(value, list) else "")
def test_a_mistake_in_a_call_is_one_error_and_leaves_nothing(folder, call, says):
    before = contents(folder)
    with pytest.raises(rs.RSEmbedError) as error:
        call()
    assert "\n" not in str(error.value)
    for words in says:
        assert words in str(error.value)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--point", "13.7,48.2"], ["--point", "13.7", "48.2"]),
        (["--point=-60.1, -5.25"], ["--point", "-60.1", "-5.25"]),
        (["--point", "(13.7;48.2)"], ["--point", "13.7", "48.2"]),
        (["--bbox", "13,48,14,49"], ["--bbox", "13", "48", "14", "49"]),
        (["--at", "13.7", "48.2"], ["--at", "13.7", "48.2"]),
        (["--point"], ["--point"]),
    ],
)
def test_coordinates_with_commas_are_taken_where_they_are_clear(typed, meant):
    assert split_coordinates(typed) == meant


def test_a_point_with_a_comma_is_that_point(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *SAMPLE, *WHEN, "--point", "13.720948,48.222307", "--buffer-m", "600", "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["report"]["shape"] == [3, 120, 120]


def test_a_point_whose_swap_is_on_land_is_asked_about(folder, capsys, caplog):
    with pytest.raises(SystemExit):
        main(["inspect", *SAMPLE, *WHEN, "--point", "52.5", "13.4", "--buffer-m", "600"])
    assert "--point: longitude 52.5, latitude 13.4 would lie on land with longitude and latitude swapped" in caplog.text
