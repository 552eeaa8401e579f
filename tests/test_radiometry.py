"""Stored values become DN by each band's own rule, or the scene is left out and the metadata says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from shapely import box

from archive_server import FileServer, serve_files, serve_stac, write_items
from fakes import write_raster
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.registry import resolve
from rs_embed.providers.scenes import Scene
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.sentinel2 import Radiometry, canonical_band

GEOBOX = place_geobox(PointBuffer(15.0, 48.0, 300), 10)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
TRANSFORM = Affine(10, 0, GEOBOX.affine.c - 200, 0, -10, GEOBOX.affine.f + 200)
STORED = {"B04": 2511, "B03": 2497, "B02": 2103}
BAD_DAY, GOOD_DAY = "03", "13"


def values(fill: float, dtype: str = "uint16", side: int = 100) -> np.ndarray:
    """A band that is nearly even, with a hole of zeros."""
    array = np.full((1, side, side), fill, dtype)
    array[:, 50:60, 50:60] = 0
    return array


def write_scene(
    folder: Path,
    day: str = BAD_DAY,
    *,
    stored: Callable[[str], np.ndarray] = lambda band: values(STORED[band]),
    change: Callable[[str, dict[str, Any]], object] = lambda band, asset: None,
    properties: dict[str, Any] | None = None,
    **raster: Any,
) -> dict[str, Any]:
    """A STAC item with one file a band; `change` edits each asset in place."""
    identifier = f"S2A_33UVP_202206{day}_0_L2A"
    item: dict[str, Any] = {"type": "Feature", "stac_version": "1.0.0", "id": identifier, "links": [], "assets": {}}
    item |= {
        "collection": "sentinel-2-l2a",
        "bbox": [14.9, 47.9, 15.1, 48.1],
        "geometry": box(14.9, 47.9, 15.1, 48.1).__geo_interface__,
    }
    item["properties"] = {"datetime": f"2022-06-{day}T10:10:31Z", "eo:cloud_cover": 5.0}
    item["properties"] |= {"s2:processing_baseline": "05.09"} if properties is None else properties
    for band in STORED:
        write_raster(folder / identifier / f"{band}.tif", stored(band), transform=TRANSFORM, **raster)
        asset = item["assets"][band] = {"href": f"./{identifier}/{band}.tif"}
        change(band, asset)
    (folder / f"{identifier}.json").write_text(json.dumps(item))
    return item


def fetch(folder: Path, sensor: SensorSpec | None = None) -> Patch | ProviderError:
    [(_, patch)] = resolve(f"local:{folder}").fetch([PatchRequest(GEOBOX, JUNE, sensor or SensorSpec(cloudy_pct=100))])
    return patch


def medians(patch: Patch) -> list[float]:
    return [float(np.nanmedian(band)) for band in patch.dn]


def both_fetch(folder: Path, items: list[dict[str, Any]]) -> list[Patch | ProviderError]:
    """From disk, and the same files swept from a catalog."""
    found = [fetch(folder)]
    with serve_files(FileServer(folder)) as files:
        moved = json.loads(json.dumps(items).replace('"./', f'"{files.url}/'))
        (folder / "moved").mkdir()
        with serve_stac(write_items(folder / "moved" / "all.json", moved)) as api:
            provider = resolve(f"stac:{api}#sentinel-2-l2a")
            [(_, patch)] = provider.fetch([PatchRequest(GEOBOX, JUNE, SensorSpec(cloudy_pct=100))])
    return [*found, patch]


def dropped(folder: Path) -> str:
    """Why the one scene of a folder is left out."""
    error = fetch(folder)
    assert isinstance(error, ProviderError)
    assert not isinstance(error, NoImageryError)  # it was seen, and is not used
    return str(error)


def test_offset_and_scale_are_each_bands_own(tmp_path):
    offsets = {"B04": -0.1, "B03": 0, "B02": -0.1}
    item = write_scene(
        tmp_path, change=lambda band, a: a.update({"raster:bands": [{"scale": 1e-4, "offset": offsets[band]}]})
    )
    for patch in both_fetch(tmp_path, [item]):
        assert medians(patch) == [1511, 2497, 1103]
        [scene] = patch.scenes
        assert scene.dn_offset is None
        assert scene.dn_offset_reason == (
            "by band: B4: -1000 (item scale 0.0001, offset -0.1); B3: 0 (item scale 0.0001, offset 0); "
            "B2: -1000 (item scale 0.0001, offset -0.1)"
        )
        assert patch.warnings == ()


STATED = {
    "raster:bands, STAC 1.0": lambda _, a: a.update({"raster:bands": [{"scale": 1e-4, "offset": 0}]}),
    "on the asset, STAC 1.1": lambda _, a: a.update({"raster:scale": 1e-4, "raster:offset": 0}),
    "in bands[], STAC 1.1": lambda _, a: a.update({"bands": [{"raster:scale": 1e-4, "raster:offset": 0}]}),
    "offset alone": lambda _, a: a.update({"raster:offset": 0.0}),
}


@pytest.mark.parametrize("put", STATED.values(), ids=list(STATED))
def test_an_offset_is_read_wherever_stac_puts_it(tmp_path, put):
    write_scene(tmp_path, change=put)
    patch = fetch(tmp_path)
    assert medians(patch) == [2511, 2497, 2103]
    assert patch.scenes[0].dn_offset == 0
    assert "item" in patch.scenes[0].dn_offset_reason


OPEN = {
    "null": lambda _, a: a.update({"raster:bands": [{"nodata": 0, "scale": None, "offset": None}]}),
    "null in STAC 1.1": lambda _, a: a.update({"raster:scale": None, "bands": [{"raster:offset": None}]}),
    "a null list": lambda _, a: a.update({"raster:bands": None}),
    "a list of null": lambda _, a: a.update({"raster:bands": [None]}),
    "a scale alone": lambda _, a: a.update({"raster:bands": [{"scale": 1e-4}]}),
    "1 and 0, which rio-stac writes for any file": lambda _, a: a.update({"raster:bands": [{"scale": 1, "offset": 0}]}),
}


@pytest.mark.parametrize("put", OPEN.values(), ids=list(OPEN))
def test_an_item_that_says_nothing_of_the_offset_leaves_it_to_the_baseline(tmp_path, put):
    items = [write_scene(tmp_path, change=put), write_scene(tmp_path, GOOD_DAY)]
    for patch in both_fetch(tmp_path, items):
        assert [(s.dn_offset, s.dn_offset_reason) for s in patch.scenes] == [(-1000, "processing baseline 05.09")] * 2
        assert medians(patch) == [1511, 1497, 1103]


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"scale": "0.0001", "offset": "-0.1"}, "the item states the scale '0.0001', which is no number: correct it"),
        ({"scale": 1e-4, "offset": [0]}, r"the item states the offset \[0\], which is no number"),
        ({"scale": 0, "offset": 0}, "the item states the scale 0: correct it"),
        ({"scale": True}, "the item states the scale True, which is no number"),
    ],
)
def test_a_scale_or_offset_that_is_no_number_drops_its_scene_and_no_other(tmp_path, stated, says):
    items = [write_scene(tmp_path, change=lambda _, a: a.update({"raster:bands": [stated]}))]
    items += [write_scene(tmp_path, GOOD_DAY)]
    for patch in both_fetch(tmp_path, items):
        assert [scene.id for scene in patch.scenes] == ["S2A_33UVP_20220613_0_L2A"]
        [scene] = patch.dropped
        assert scene.id == "S2A_33UVP_20220603_0_L2A"
        assert re.search(says, scene.reason)


@pytest.mark.parametrize("cloud", ["N/A", None, float("nan"), [1]])
def test_a_cloud_cover_that_is_no_number_loses_itself_and_not_the_scene(tmp_path, cloud):
    write_scene(tmp_path, properties={"eo:cloud_cover": cloud, "s2:processing_baseline": "05.09"})
    patch = fetch(tmp_path, SensorSpec())
    assert patch.scenes[0].cloud_pct is None
    assert any("cloudy_pct" in warning for warning in patch.warnings)


def test_of_several_assets_of_one_band_the_finest_native_one_is_read(tmp_path):
    item = write_scene(tmp_path)
    coarse = write_raster(tmp_path / "coarse.tif", values(9, side=17), transform=TRANSFORM * Affine.scale(6))
    assets = {}
    for name in STORED:
        assets[f"{name}_60m"] = {"href": f"./{coarse.name}", "gsd": 60}
        assets[f"{name}_10m"] = {"href": f"./{item['id']}/{name}.tif"}
        assets[f"{name}_20m"] = {"href": f"./{coarse.name}"}
    item["assets"] = {"TCI_10m": {"href": f"./{coarse.name}", "eo:bands": [{"name": b} for b in STORED]}} | assets
    (tmp_path / f"{item['id']}.json").write_text(json.dumps(item))
    for patch in both_fetch(tmp_path, [item]):
        assert medians(patch) == [1511, 1497, 1103]


@pytest.mark.parametrize(
    ("assets", "band", "wins"),
    [
        ({"B01_20m": {}, "B01_60m": {}}, "B1", "B01_60m"),  # what the sensor saw, not what was made of it
        ({"B05_60m": {}, "B05_20m": {}}, "B5", "B05_20m"),
        ({"SCL_60m": {}, "SCL_20m": {}}, "SCL", "SCL_20m"),
        ({"B04": {"gsd": 60}, "red": {"gsd": 10}}, "B4", "red"),
        (
            {"B04": {"proj:transform": [20, 0, 0, 0, -20, 0]}, "all": {"bands": [{"name": "B04", "gsd": 10}]}},
            "B4",
            "all",
        ),
        ({"all": {"eo:bands": [{"name": "red"}], "gsd": 10}, "red": {"gsd": 10}}, "B4", "red"),
        ({"jp2": {"eo:bands": [{"name": "red"}]}, "red": {}}, "B4", "red"),
        ({"overview": {"eo:bands": [{"name": "red"}]}, "B04_60m": {}}, "B4", "B04_60m"),
        (
            {"colour": {"eo:bands": [{"name": "red"}], "raster:bands": [{"data_type": "uint8"}]}, "B04_60m": {}},
            "B4",
            "B04_60m",
        ),
    ],
)
def test_the_asset_of_a_band_is_chosen_by_resolution_then_by_name(assets, band, wins):
    item = {"type": "Feature", "id": "x", "bbox": [0, 0, 1, 1], "properties": {"datetime": "2022-06-03T00:00:00Z"}}
    item["assets"] = {key: {"href": f"https://host/{key}.tif", **asset} for key, asset in assets.items()}
    assert scene_of_item(item, str).files[band].path == f"https://host/{wins}.tif"


def test_reflectance_in_floats_is_recognised_by_its_range_and_scaled(tmp_path):
    items = [write_scene(tmp_path, stored=lambda band: values(STORED[band] / 10_000, "float32"), nodata=float("nan"))]
    for patch in both_fetch(tmp_path, items):
        assert medians(patch) == [2511, 2497, 2103]
        [scene] = patch.scenes
        assert scene.dn_offset == 0
        assert scene.dn_offset_reason == "no offset is stated; floats up to 0.251 are reflectance"
        assert patch.valid.sum() == patch.valid.size - 100  # the hole


def test_reflectance_with_an_offset_of_its_own_keeps_it(tmp_path):
    write_scene(
        tmp_path,
        stored=lambda band: values(STORED[band] / 10_000, "float32"),
        change=lambda _, a: a.update({"raster:bands": [{"scale": 1, "offset": -0.1}]}),
    )
    assert medians(fetch(tmp_path)) == [1511, 1497, 1103]


def test_dn_in_floats_are_dn(tmp_path):
    write_scene(tmp_path, stored=lambda band: values(STORED[band], "float32"))
    patch = fetch(tmp_path)
    assert medians(patch) == [1511, 1497, 1103]
    assert patch.scenes[0].dn_offset_reason == "processing baseline 05.09"


def test_a_scale_of_the_file_counts_also_where_the_baseline_tells_the_offset(tmp_path):
    write_scene(tmp_path, stored=lambda band: values(STORED[band] // 2), scale=0.0002)
    patch = fetch(tmp_path)
    assert medians(patch) == [1510, 1496, 1102]
    assert patch.scenes[0].dn_offset_reason == "processing baseline 05.09; file scale 0.0002"


def test_a_picture_in_8_bits_is_never_reflectance(tmp_path):
    write_scene(tmp_path, stored=lambda band: values(STORED[band] // 100, "uint8"))
    assert "its B4 is stored in 8 bits: that is a picture, not reflectance" in dropped(tmp_path)


@pytest.mark.parametrize(
    ("fill", "dtype", "item_says"),
    [
        (900, "uint16", {}),  # all at or under the offset
        (0.25, "float32", {"scale": 1e-4, "offset": 0}),  # reflectance that is called DN
        (2500, "uint16", {"scale": 1, "offset": -1000}),  # DN that are called reflectance
        (2500, "uint16", {"scale": 0.01, "offset": 0}),
    ],
)
def test_a_scene_whose_dn_cannot_be_real_is_left_out(tmp_path, fill, dtype, item_says):
    write_scene(
        tmp_path, stored=lambda _: values(fill, dtype), change=lambda _, a: a.update({"raster:bands": [item_says]})
    )
    assert "its DN cannot be real, none is in 2…65,535" in dropped(tmp_path)


@pytest.mark.parametrize("tag", [65_535, None])
def test_zero_is_empty_and_so_is_what_file_or_item_declare(tmp_path, tag):
    """Zeros mark emptiness in any Sentinel-2 product, also under another tag."""

    def holes(band: str) -> np.ndarray:
        array = values(STORED[band])
        array[:, 60:70, 50:60] = 65_535
        return array

    item = write_scene(tmp_path, stored=holes, nodata=tag, change=lambda _, a: a.update({"nodata": 65_535}))
    for patch in both_fetch(tmp_path, [item]):
        assert patch.valid.sum() == patch.valid.size - 200
        assert medians(patch) == [1511, 1497, 1103]


def test_what_is_far_below_zero_in_floats_is_a_fill_value(tmp_path):
    def filled(band: str) -> np.ndarray:
        array = values(STORED[band] / 10_000, "float32")
        array[:, 60:70, 50:60], array[:, 70:80, 50:60] = -9999, np.inf
        return array

    patches = both_fetch(tmp_path, [write_scene(tmp_path, stored=filled)])
    for patch in patches:
        assert patch.valid.sum() == patch.valid.size - 300
        assert medians(patch) == [2511, 2497, 2103]


# --- the table of docs/catalogs.md -------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[1] / "docs" / "catalogs.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| source")
]
EARTH_SEARCH, SHORT = {"red": "B4", "green": "B3", "blue": "B2"}, {"B04": "B4", "B03": "B3", "B02": "B2"}
DATA_SPACE = {f"{key}_10m": band for key, band in SHORT.items()}


def item(
    bands: dict[str, str], baseline: str, asset: dict[str, Any] | None = None, *, id: str = "x", **properties: Any
) -> Scene:
    document = {"type": "Feature", "id": id, "bbox": [0, 0, 1, 1], "collection": "sentinel-2-l2a"}
    properties |= {"datetime": "2023-06-03T00:00:00Z"} | ({"s2:processing_baseline": baseline} if baseline else {})
    assets = {key: {"href": f"https://host/{key}.tif", **(asset or {})} for key in bands}
    return scene_of_item(document | {"properties": properties, "assets": assets}, str)


def old_raster(offset: float | None) -> dict[str, Any]:
    return {"raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": offset}]}


CASES: dict[str, list[tuple[Scene, float]]] = {
    "Earth Search v1, `sentinel-2-c1-l2a`": [
        (item(EARTH_SEARCH, "05.10", old_raster(-0.1)), -1000),
        (item(EARTH_SEARCH, "03.01", old_raster(0)), 0),
    ],
    "Earth Search v1, `sentinel-2-l2a`": [
        (item(EARTH_SEARCH, "05.11", old_raster(-0.1), **{"earthsearch:boa_offset_applied": True}), 0),
        (item(EARTH_SEARCH, "02.14", old_raster(0), **{"earthsearch:boa_offset_applied": False}), 0),
        (item(EARTH_SEARCH, "04.00", old_raster(-0.1), **{"earthsearch:boa_offset_applied": False}), -1000),
    ],
    "Earth Search v0, `sentinel-s2-l2a-cogs`": [
        (item(SHORT, "", **{"sentinel:boa_offset_applied": True, "sentinel:processing_baseline": "04.00"}), 0),
        (item(SHORT, "", **{"sentinel:boa_offset_applied": False, "sentinel:processing_baseline": "04.00"}), -1000),
        (item(SHORT, "", **{"sentinel:processing_baseline": "02.14"}), 0),
    ],
    "Planetary Computer, `sentinel-2-l2a`": [(item(SHORT, "05.10"), -1000), (item(SHORT, "02.12"), 0)],
    "Copernicus Data Space, `sentinel-2-l2a`": [
        (item(DATA_SPACE, "", id="S2A_MSIL2A_20230603T101031_N0509_R022_T33UVP_20230603T140000"), -1000),
        (item(DATA_SPACE, "", id="S2A_MSIL2A_20210603T101031_N0300_R022_T33UVP_20210603T140000"), 0),
    ],
    "Earth Engine, `COPERNICUS/S2_SR_HARMONIZED`": [
        (replace(item(SHORT, "05.10"), collection="COPERNICUS/S2_SR_HARMONIZED"), 0)
    ],
    "any API, STAC 1.0 items": [
        (item(SHORT, "05.10", old_raster(0)), 0),
        (item(SHORT, "05.10", old_raster(None)), -1000),
        (item(SHORT, "", id="S2A_MSIL2A_20230603T101031_N0509_R022_T33UVP_20230603T140000"), -1000),
    ],
    "any API, STAC 1.1 items": [
        (item(SHORT, "05.10", {"raster:scale": 0.0001, "raster:offset": 0}), 0),
        (item(SHORT, "", {"raster:offset": 0, "bands": [{"raster:offset": -0.1}]}), -1000),
        (item(SHORT, "05.10", {"raster:scale": 0.0001}), -1000),
    ],
}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_the_table_of_catalogs_holds(row):
    source, _, bands, _, _, _ = row
    if source.startswith("reflectance in floats"):
        assert item(SHORT, "05.10").radiometry("B4", 1.0, 0.0, largest_float=1.2) == Radiometry(
            10_000, 0, "no offset is stated; floats up to 1.2 are reflectance"
        )
        return
    for key in re.findall(r"`(\w+)`", bands):
        assert canonical_band(key) is not None or key in ("eo:bands", "bands")
    for scene, offset in CASES[source]:
        assert [scene.radiometry(band, 1.0, 0.0).offset for band in ("B4", "B3", "B2")] == [offset] * 3


def test_no_case_is_without_its_row():
    assert set(CASES) <= {row[0] for row in ROWS}
