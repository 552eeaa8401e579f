"""Where in a place some words are: values against a single embedding, the grid, real water, files, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
import rasterio.warp
from PIL import Image

from fakes import FakeProvider
from rs_embed import (
    ModelError,
    NoImageryError,
    OutputSpec,
    PointBuffer,
    SpecError,
    TemporalSpec,
    get_embedding,
    heat_map,
    list_samples,
)
from rs_embed.cli.main import main
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.text import load_text_embedder, unit
from rs_embed.search.heatmap import _spread
from rs_embed.search.query import text_query, word_probabilities
from rs_embed.search.results import NOTHING_LIKE_IT

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACE = PointBuffer(13.72, 48.22, 640)  # 128 px a side
LAKE = next(s for s in list_samples() if "Water bodies" in s.labels)
AT_THE_LAKE = ["--point", str(LAKE.lon), str(LAKE.lat), "--buffer-m", "600", "--start", LAKE.start, "--end", LAKE.end]
SAMPLE = ["--model", MODEL, "--backend", "sample", *AT_THE_LAKE]


def texture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 3000, (3, 128, 128)).astype(np.float32)


def heat_of(dn: np.ndarray, **options: object):
    return heat_map(MODEL, "forest", spatial=PLACE, temporal=JUNE, backend=FakeProvider(dn=dn), **options)


@pytest.fixture(scope="module")
def lake():
    place = PointBuffer(LAKE.lon, LAKE.lat, 600)
    time = TemporalSpec.range(LAKE.start, LAKE.end)
    return heat_map(MODEL, "lake", spatial=place, temporal=time, backend="sample", window_m=320)


def test_one_window_is_the_place_itself():
    dn = texture()
    heat = heat_of(dn, window_m=1280)
    vector = np.asarray(get_embedding(MODEL, input_chw=dn, output=OutputSpec.pooled("projected")).data)[None]
    texts = load_text_embedder(find_card(MODEL), checkpoint=None, device="cpu")
    assert heat.score == pytest.approx(float((unit(vector) @ text_query(MODEL, "forest"))[0]), abs=1e-5)
    assert heat.probability == pytest.approx(float(word_probabilities(texts, ["forest"], vector)[0]), abs=1e-5)
    assert heat.meta["windows"] == 1


def test_windows_begin_every_quarter_and_the_last_is_shifted_in():
    assert heat_of(texture(), window_m=640).meta["windows"] == 25
    shifted = heat_of(texture(), window_m=500)
    assert shifted.meta["windows"] == 64  # from 0, 12, …, 72 px, 78, where the last one fits
    assert not np.isnan(shifted.score).any()


def test_a_pixel_is_the_mean_of_the_windows_over_it_by_their_distance():
    corners, values, window = [(0, 0), (0, 3), (2, 1)], np.array([0.1, 0.5, 0.9], np.float32), 4
    spread = _spread(values, corners, window, (7, 8))
    for y in range(7):
        for x in range(8):
            shares = [
                max(0, 2 - abs(y + 0.5 - (top + 2))) * max(0, 2 - abs(x + 0.5 - (left + 2))) for top, left in corners
            ]
            if sum(shares) == 0:
                assert np.isnan(spread[y, x])
            else:
                assert spread[y, x] == pytest.approx(np.average(values, weights=shares), abs=1e-6)


def test_words_point_to_real_water(lake):
    row, column = lake.best_pixel
    assert lake.best[2] > 0.9
    around = lake.dn[0, max(row - 5, 0) : row + 6, column - 5 : column + 6]
    assert np.nanmedian(around) < np.nanpercentile(lake.dn[0], 20)  # in red nothing is as dark as water
    assert lake.notice is None
    assert 0 < lake.likely_frac < 0.4


def test_what_is_not_there_is_said_to_be_missing(lake):
    place = PointBuffer(LAKE.lon, LAKE.lat, 600)
    time = TemporalSpec.range(LAKE.start, LAKE.end)
    heat = heat_map(MODEL, "annual crop", spatial=place, temporal=time, backend="sample")
    assert heat.notice == NOTHING_LIKE_IT


def test_windows_that_were_not_observed_have_no_value():
    dn = texture()
    dn[:, :, :64] = np.nan
    heat = heat_of(dn)
    assert heat.meta["windows"] == 10  # the two columns of five that show three quarters
    assert np.array_equal(np.isnan(heat.probability), np.isnan(dn[0]))
    assert heat.best_pixel[1] >= 64
    assert any("only 50% of the place was observed" in text for text in heat.meta["warnings"])
    with pytest.raises(NoImageryError, match="no window of the place is observed by three quarters"):
        heat_of(np.full((3, 128, 128), np.nan, np.float32))


def test_the_geotiff_lies_on_the_places_grid(lake, tmp_path):
    path = lake.to_geotiff(tmp_path / "lake.tif")
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32636
        assert file.transform == lake.geobox.transform
        assert file.descriptions == ("probability", "score")
        assert np.isnan(file.nodata)
        assert np.array_equal(file.read(1), lake.probability, equal_nan=True)
        assert np.array_equal(file.read(2), lake.score, equal_nan=True)
        lon, lat, probability = lake.best
        [x], [y] = rasterio.warp.transform("EPSG:4326", file.crs, [lon], [lat])
        [found] = file.sample([(x, y)])
        assert found[0] == pytest.approx(probability)
    assert [p.name for p in tmp_path.iterdir()] == ["lake.tif"]


def test_a_file_that_cannot_be_written_leaves_nothing(lake, tmp_path):
    with pytest.raises(rasterio.errors.RasterioIOError):
        lake.to_geotiff(tmp_path / "none" / "lake.tif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window_m", [0, -1, 19, float("nan"), float("inf")])
def test_a_window_must_have_a_size(window_m):
    with pytest.raises(SpecError, match=r"window_m must be|less than one window"):
        heat_of(texture(), window_m=window_m)


def test_bad_questions_are_refused_before_anything_is_fetched():
    with pytest.raises(SpecError, match="the place is 1280 x 1280 m, less than one window of 2000 m"):
        heat_of(texture(), window_m=2000)
    for text, fault in (("", "empty"), ("zeppelin hangar", "knows no word of 'zeppelin hangar'")):
        with pytest.raises(ModelError, match=fault):
            heat_map(MODEL, text, spatial=PLACE, temporal=JUNE, backend=FakeProvider(dn=texture()))


def test_negative_words_change_the_score_and_not_the_probability():
    plain, against = heat_of(texture()), heat_of(texture(), negative="river")
    assert np.array_equal(plain.probability, against.probability)
    assert not np.allclose(plain.score, against.score)
    assert against.meta["negative"] == ["river"]


def test_the_command_draws_and_writes(tmp_path, capsys):
    picture, raster = tmp_path / "new" / "lake.png", tmp_path / "lake.tif"
    options = ["--window-m", "320", "--plot", str(picture), "--out", str(raster), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(["heatmap", "lake", *SAMPLE, *options])
    assert not stopped.value.code
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == [str(raster), str(picture)]
    assert any("windows of 32 px show the model little" in text for text in facts["meta"]["warnings"])
    assert facts["best"]["probability"] > 0.9
    assert facts["meta"]["scenes"][0]["id"].startswith("S2")
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"), int)
    right = pixels[84:560, 528:1008]
    red = (right[..., 0] - right[..., 2] > 40).mean()
    assert 0.02 < red < 0.4  # the paled imagery is grey but where the lake is


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--plot", "lake.bmp"], "--plot lake.bmp must end in one of .png"),
        (["--out", "lake.nc"], "--out lake.nc must end in one of .tif"),
        (["--window-m", "5000"], "less than one window of 5000 m"),
        (["--window-m", "20"], "at most 10,000 are embedded"),
    ],
)
def test_the_command_refuses_what_it_cannot_write(options, fault, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["heatmap", "lake", *SAMPLE, *options])
    assert stopped.value.code == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_right_quadrant_of_mosaics_is_found(shared):
    """Four chips of four classes, held out of training; `python -m benchmarks.bench_heatmap` does it with more."""
    from benchmarks.bench_heatmap import quadrants

    assert quadrants(30, shared / "eurosat" / "eurosat_rgb.tar") >= 0.8
