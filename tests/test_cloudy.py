"""A cloudy composite never looks like a clean one: vectors, inspections, heat maps, pictures and exports say so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from PIL import Image

from fakes import FakeProvider, patch_of, write_raster
from rs_embed import (
    BBox,
    PointBuffer,
    SensorSpec,
    TemporalSpec,
    export_embeddings,
    fetch_patch,
    get_embedding,
    heat_map,
    inspect_provider_patch,
    open_dataset,
)
from rs_embed.cli.main import main
from rs_embed.composite import SceneImage, shown_clear_frac
from rs_embed.grid import place_geobox, transformer
from rs_embed.inspection import imagery_warnings
from rs_embed.providers.base import PatchRequest

MODEL = "clip_eurosat_s2rgb"
AUTUMN = TemporalSpec.range("2023-10-01", "2024-01-01")
ALL_SCENES = SensorSpec(cloudy_pct=100)
MASKED = SensorSpec(cloudy_pct=100, cloud_mask="scl")
REMEDIES = ("cloud_mask='scl'", "max_scenes")
BANDS = ("B04", "B03", "B02", "SCL")


@dataclasses.dataclass(frozen=True)
class Series:
    """A folder of dates over one place in zone 31N."""

    backend: str
    place: PointBuffer


def write_series(root: Path, bands: dict[str, np.ndarray], days: list[str], transform: Affine) -> Series:
    for i, day in enumerate(days):
        product = f"S2A_MSIL2A_{day}T101031_N0509_R022_T31UFS_{day}T140000"
        images = root / f"{product}.SAFE" / "GRANULE" / "L2A_T31UFS" / "IMG_DATA"
        for name in BANDS:
            kind = np.uint8 if name == "SCL" else np.uint16
            values = bands[name][i : i + 1].astype(kind)
            path = images / f"T31UFS_{day}T101031_{name}_10m.tif"
            write_raster(path, values, transform=transform, crs="EPSG:32631", nodata=0)
    height, width = bands["SCL"].shape[1:]
    lon, lat = transformer(32631, 4326).transform(*(transform * (width / 2, height / 2)))
    return Series(f"local:{root}", PointBuffer(lon, lat, 200))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Series:
    """Cloud on 16 of 19 dates, of the real series' size; the offset of 2022 is still in."""
    rng = np.random.default_rng(0)
    cloudy = np.array([i not in (1, 4, 17) for i in range(19)])[:, None, None]
    ground = {name: rng.integers(1500, 1800, (19, 52, 46)) for name in BANDS[:3]}
    bands = {name: np.where(cloudy, values + 4000, values) for name, values in ground.items()}
    bands["SCL"] = np.broadcast_to(np.where(cloudy, 9, 4), (19, 52, 46))
    days = [f"2023{10 + i // 8}{1 + i % 8:02d}" for i in range(19)]
    return write_series(tmp_path_factory.mktemp("made_up"), bands, days, Affine(10, 0, 588_000, 0, -10, 5_685_000))


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory) -> Series:
    """The 19 real dates, as a folder; their DN have no offset, which is added here as in products of today."""
    with xr.open_dataset(shared / "time_series" / "l2a_scl_19_dates.nc") as data:
        bands = {name: data[f"S2-L2A-{name}"].values for name in BANDS}
        bands |= {name: np.where(bands[name] > 50_000, 0, bands[name]) for name in BANDS}
        bands |= {name: np.where(bands[name] > 0, bands[name] + 1000, 0) for name in BANDS[:3]}
        days = [str(day)[:10].replace("-", "") for day in data["t"].values]
        transform = Affine(10, 0, float(data["x"][0]) - 5, 0, -10, float(data["y"][0]) + 5)
    return write_series(tmp_path_factory.mktemp("real"), bands, days, transform)


@pytest.fixture(params=["made_up", "real"])
def series(request) -> Series:
    return request.getfixturevalue(request.param)


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def kinds(texts) -> set[str]:
    return {text.partition(":")[0] for text in texts}


def test_the_real_median_of_all_dates_is_cloud_and_says_so(real):
    cloudy, clear = (fetch_patch(real.place, AUTUMN, sensor, real.backend) for sensor in (ALL_SCENES, MASKED))
    assert [round(float(np.nanmedian(band))) for band in cloudy.dn] == pytest.approx([4596, 4624, 4940], rel=0.05)
    assert [round(float(np.nanmedian(band))) for band in clear.dn] == pytest.approx([575, 670, 522], rel=0.05)
    assert (cloudy.clear_frac, cloudy.n_clear) == (1.0, 2.0)  # true, and no comfort
    assert cloudy.shown_clear_frac < 0.05
    assert clear.shown_clear_frac == 1.0


def test_vectors_and_inspections_tell_a_cloudy_median(series, tmp_path):
    asked = {"spatial": series.place, "temporal": AUTUMN, "backend": series.backend}
    meta = get_embedding(MODEL, **asked, sensor=ALL_SCENES).meta
    assert meta["shown_clear_frac"] < 0.05
    assert meta["clear_frac"] == 1.0
    assert any("mostly not clear" in text and all(r in text for r in REMEDIES) for text in meta["warnings"])
    sensor = dataclasses.replace(ALL_SCENES, check_save_dir=str(tmp_path))
    result = inspect_provider_patch(**asked, sensor=sensor)
    report = result["report"]
    assert not result["ok"]
    assert not report["ok"]
    assert any("cloud or shadow" in issue for issue in report["issues"])
    assert "mostly not clear" in kinds(report["warnings"])
    assert report["shown_clear_frac"] == meta["shown_clear_frac"]
    with Image.open(result["artifacts"]["quicklook"]) as picture:
        note = np.asarray(picture)[512:]
    assert note.size  # words below the picture
    assert note.max() > 200
    json.dumps(result, allow_nan=False)


def test_the_masked_median_of_the_same_dates_is_clean_but_of_few_dates(series):
    asked = {"spatial": series.place, "temporal": AUTUMN, "backend": series.backend, "sensor": MASKED}
    result = inspect_provider_patch(**asked)
    assert result["ok"]
    assert result["report"]["shown_clear_frac"] == 1.0
    assert kinds(get_embedding(MODEL, **asked).meta["warnings"]) <= {"few clear scenes", "few pixels"}


def test_heat_maps_and_their_pictures_tell_a_cloudy_median(made_up, tmp_path, capsys):
    heat = heat_map(
        MODEL,
        "river",
        spatial=made_up.place,
        temporal=AUTUMN,
        sensor=ALL_SCENES,
        backend=made_up.backend,
        window_m=200,
    )
    assert "mostly not clear" in kinds(heat.meta["warnings"])
    assert heat.meta["shown_clear_frac"] == 0.0
    at = made_up.place
    common = ["--point", str(at.lon), str(at.lat), "--buffer-m", "200", "--cloudy-pct", "100"]
    common += ["--backend", made_up.backend, "--start", AUTUMN.start, "--end", AUTUMN.end]
    options = ["--model", MODEL, "--window-m", "200", "--plot", str(tmp_path / "h.png")]
    assert run(["heatmap", "river", *common, *options]) == 0
    assert "warning: mostly not clear" in capsys.readouterr().out
    assert run(["inspect", *common]) == 1
    assert "0.0% of these clear" in capsys.readouterr().out


def test_rows_of_an_export_and_its_run_tell_a_cloudy_median(made_up, tmp_path, caplog):
    places = [made_up.place]
    asked = {"temporal": AUTUMN, "backend": made_up.backend, "allow_small": True}
    summary = export_embeddings(MODEL, places, tmp_path / "ds", sensor=ALL_SCENES, **asked)
    [row] = open_dataset(tmp_path / "ds")
    assert (row["clear_frac"], row["n_clear"], row["shown_clear_frac"]) == (1.0, 3.0, 0.0)
    assert "mostly not clear" in kinds(row["warnings"])
    assert dict(summary.warnings)["mostly not clear"] == 1


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"clear_frac": 1.0, "n_clear": 6.0, "shown_clear_frac": 0.9}, set()),
        ({"clear_frac": 1.0, "n_clear": 6.0, "shown_clear_frac": 0.7}, {"partly not clear"}),
        ({"clear_frac": 1.0, "n_clear": 6.0, "shown_clear_frac": 0.5}, {"mostly not clear"}),
        ({"clear_frac": 1.0, "n_clear": 5.0}, set()),  # providers of others may not know what is shown
        ({"clear_frac": 1.0, "n_clear": 4.0}, {"mostly not clear"}),
        ({"clear_frac": 1.0, "n_clear": 2.0, "shown_clear_frac": 1.0}, {"few clear scenes"}),
        ({}, set()),
    ],
)
def test_warnings_count_what_is_shown_and_clear_scenes(facts, told):
    [(_, patch)] = FakeProvider().fetch([request_at()])
    patch = dataclasses.replace(patch, scenes=patch.scenes[:1] * 10, **facts)
    assert kinds(imagery_warnings(patch, ALL_SCENES)) == told


def request_at():
    return PatchRequest(place_geobox(BBox(3, 51, 3.01, 51.01), 10), AUTUMN, ALL_SCENES)


def test_a_place_that_is_mostly_unobserved_is_not_ok():
    request = request_at()
    patch = patch_of(request)
    rows = round(0.05 * patch.dn.shape[1])
    dn = patch.dn.copy()
    dn[:, rows:] = np.nan
    result = inspect_provider_patch(
        spatial=BBox(3, 51, 3.01, 51.01), temporal=AUTUMN, sensor=ALL_SCENES, backend=FakeProvider(dn=dn)
    )
    assert not result["ok"]
    assert any("of the pixels were observed" in issue for issue in result["report"]["issues"])
    assert "missing pixels" in kinds(result["report"]["warnings"])


def test_what_is_shown_is_counted_pixel_by_pixel():
    def image(valid: list[int], scl: list[int]) -> SceneImage:
        dn = np.ones((3, 1, len(valid)), np.float32)
        return SceneImage(dn, np.array([valid], bool), np.array([scl], np.uint8))

    # clear of seen: 2 of 3, 1 of 2 (their mean is half a cloud), 1 of 1 (the others saw nothing), 0 of 0
    images = [image([1, 1, 1, 0], [4, 4, 4, 0]), image([1, 1, 0, 0], [4, 9, 9, 0]), image([1, 0, 0, 0], [9, 4, 9, 0])]
    assert shown_clear_frac(images) == pytest.approx(2 / 3)
    assert shown_clear_frac(images, on_top=True) == 1.0
    assert shown_clear_frac(images[::-1], on_top=True) == pytest.approx(1 / 3)
    assert shown_clear_frac([i.masked() for i in images]) == 1.0
    assert shown_clear_frac([SceneImage(i.dn, i.valid) for i in images]) is None
