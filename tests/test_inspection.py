from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import FakeProvider, write_raster
from rs_embed import (
    NoImageryError,
    PointBuffer,
    SensorSpec,
    TemporalSpec,
    inspect_gee_patch,
    inspect_provider_patch,
    list_samples,
)
from rs_embed.grid import place_geobox
from rs_embed.inspection import inspect_array, save_quicklook, summarise_patch
from rs_embed.pictures import quicklook

RNG = np.random.default_rng(0)
GOOD = RNG.integers(200, 3000, (3, 60, 60)).astype(np.float32)
REPORT_KEYS = {
    *("name", "ok", "issues", "warnings", "shape", "dtype", "finite_frac", "valid_frac", "band_min", "band_max"),
    *("band_mean", "band_std", "band_quantiles", "hist", "outside_range_frac", "fill_value", "fill_frac", "scenes"),
    *("clear_frac", "n_clear", "shown_clear_frac"),
}


def png_size(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def changed(where, value) -> np.ndarray:
    dn = GOOD.copy()
    dn[where] = value
    return dn


def test_numbers_equal_numpys():
    dn = changed(np.s_[:, :10], np.nan)
    report = inspect_array(dn, name="x", value_range=(0, 10_000))
    seen = dn[:, 10:].reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(report["band_mean"], seen.mean(axis=1))
    np.testing.assert_allclose(report["band_std"], seen.std(axis=1))
    np.testing.assert_allclose(report["band_quantiles"]["p99"], np.percentile(seen, 99, axis=1))
    assert report["valid_frac"] == pytest.approx(50 / 60)
    assert report["fill_frac"] == pytest.approx(10 / 60)
    assert np.sum(report["hist"]["counts"]) == 3 * 50 * 60
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    ("dn", "options", "issue"),
    [
        (changed(np.s_[0, :2], np.inf), {}, "finite"),
        (GOOD[:2], {}, r"2 channel\(s\), expected 3"),
        (changed(np.s_[1], 7.0), {}, "band B3 is constant: every value is 7"),
        (changed(np.s_[0, 0], 20_000), {"value_range": (0, 10_000)}, r"outside \(0, 10000\)"),
        (changed(np.s_[:, 1:], 0.0), {}, "98.3% of the pixels hold the fill value 0"),
        (changed(np.s_[:, 1:], np.nan), {}, "98.3% of the pixels hold the fill value"),
        (np.full((3, 4, 4), np.nan, np.float32), {}, "nothing observed"),
    ],
)
def test_bad_pixels_fail_with_the_reason(dn, options, issue):
    report = inspect_array(dn, name="x", **options)
    assert not report["ok"]
    assert any(re.search(issue, text) for text in report["issues"])
    json.dumps(report, allow_nan=False)


def test_good_pixels_pass_and_small_faults_are_let_through():
    assert inspect_array(GOOD, name="x", value_range=(0, 10_000))["ok"]
    assert inspect_array(changed(np.s_[0, 0, :3], 20_000), name="x", value_range=(0, 10_000))["ok"]
    assert inspect_array(GOOD.astype(np.uint16), name="x")["ok"]


def test_reflectance_is_noticed():
    assert "look like reflectance" in inspect_array(GOOD / 10_000, name="x")["warnings"][0]


def test_a_quicklook_is_stretched_enlarged_and_hatched(tmp_path):
    dn = changed(np.s_[:, :20], np.nan)
    image = np.asarray(quicklook(dn))
    assert image.shape == (512, 512, 3)
    assert set(np.unique(image[:160])) == {168, 208}  # not observed is hatched, never black
    assert image[180:].min() == 0
    assert image[180:].max() == 255
    assert np.asarray(quicklook(np.ones((3, 2000, 1500)))).shape[0] <= 1024


def test_a_picture_cannot_leave_its_folder(tmp_path):
    path = save_quicklook(GOOD, tmp_path / "in", "../../etc/passwd")
    assert path.parent == tmp_path / "in"
    assert png_size(path) == (512, 512)


def backends(tmp_path: Path):
    """Every backend that works here, with a place that it has."""
    sample = list_samples()[0]
    at, when = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
    geobox = place_geobox(at, 10)
    dn = RNG.integers(200, 3000, (3, *geobox.shape)).astype(np.uint16)
    named = {"crs": f"EPSG:{geobox.crs.epsg}", "descriptions": ("B04", "B03", "B02")}
    write_raster(tmp_path / "chip_20170613.tif", dn, transform=geobox.affine, **named)
    return [(b, at, when) for b in ("sample", f"local:{tmp_path}", FakeProvider())]


def test_inspection_works_on_every_backend(tmp_path):
    for backend, place, time in backends(tmp_path):
        result = inspect_provider_patch(
            spatial=place,
            temporal=time,
            sensor=SensorSpec(check_save_dir=str(tmp_path / "pictures")),
            backend=backend,
            value_range=(0, 10_000),
        )
        assert set(result) == {"ok", "report", "sensor", "temporal", "backend", "artifacts"}
        assert set(result["report"]) == REPORT_KEYS
        assert result["ok"]
        assert result["report"]["shape"] == [3, 120, 120]
        assert result["report"]["scenes"]
        assert png_size(result["artifacts"]["quicklook"]) == (512, 512)
        json.dumps(result, allow_nan=False)
        assert inspect_gee_patch(spatial=place, temporal=time, backend=backend)["ok"]


def test_the_array_comes_along_when_asked(tmp_path):
    backend, place, time = backends(tmp_path)[0]
    result = inspect_provider_patch(spatial=place, temporal=time, backend=backend, return_array=True)
    assert result["array_chw"].shape == (3, 120, 120)
    assert result["array_chw"].dtype == np.float32


def test_no_imagery_is_an_error_not_a_report():
    with pytest.raises(NoImageryError):
        inspect_provider_patch(
            spatial=PointBuffer(0, 0, 600), temporal=TemporalSpec.range("2022-06-01", "2022-07-01"), backend="sample"
        )


def test_thumbnails_have_one_stretch_so_that_neighbours_meet():
    dark, bright = (np.full((3, 96, 96), dn, np.float32) for dn in (500, 2000))
    both = np.concatenate([dark, bright], axis=2)
    alone, beside = (np.asarray(Image.open(io.BytesIO(summarise_patch(dn).thumbnail))) for dn in (dark, both))
    assert abs(int(alone[40, 40, 0]) - int(beside[20, 10, 0])) <= 1
    assert len({tuple(pixel) for pixel in alone.reshape(-1, 3)}) == 1
