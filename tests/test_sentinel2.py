from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from rs_embed.providers.stac.items import scene_of_item
from rs_embed.sentinel2 import (
    StatedScale,
    band_in_text,
    canonical_band,
    parse_product_name,
    processing_baseline,
    radiometry,
)


@pytest.mark.parametrize(
    ("name", "band"),
    [
        *[("B4", "B4"), ("B04", "B4"), ("b04", "B4"), ("red", "B4"), ("B8A", "B8A"), ("B11", "B11"), ("scl", "SCL")],
        *[("visual", None), ("B99", None), ("", None), ("B4A", None)],
    ],
)
def test_any_name_of_a_band_is_earth_engines(name, band):
    assert canonical_band(name) == band


@pytest.mark.parametrize(
    ("text", "band"),
    [
        *[("B04", "B4"), ("red", "B4"), ("S2-L2A-B04", "B4"), ("TOC-B8A_20M", "B8A"), ("B4, central wavelength", "B4")],
        *[("B03 (560 nm)", "B3"), ("SCENECLASSIFICATION_20M", "SCL"), ("reflectance of B11", "B11")],
        *[("B04_std", None), ("mask_B04_count", None), ("B10", None), ("NDVI", None), ("AB04", None), ("", None)],
    ],
)
def test_a_description_tells_its_band_and_a_statistic_of_one_does_not(text, band):
    assert band_in_text(text) == band


@pytest.mark.parametrize(
    ("name", "day", "baseline"),
    [
        ("S2A_MSIL2A_20220601T103031_N0400_R108_T32UQD_20220601T163022.SAFE", "2022-06-01", "04.00"),
        ("S2B_MSIL2A_20170924T93020_69_24", "2017-09-24", None),
        ("S2A_29RKH_20200219_0_L2A", "2020-02-19", None),
        ("S2C_MSIL1C_20250301T101031_N0511_R022_T33UVP_20250301T120000", "2025-03-01", "05.11"),
    ],
)
def test_a_product_name_tells_day_and_baseline(name, day, baseline):
    product = parse_product_name(f"folder/{name}")
    assert product is not None
    assert product.acquired.date().isoformat() == day
    assert product.baseline == baseline


@pytest.mark.parametrize("name", ["", "B04.tif", "S2A_MSIL2A_20229901T103031_N0400", "landsat_20220601"])
def test_other_names_tell_nothing(name):
    assert parse_product_name(name) is None


NEW, OLD = datetime(2023, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("facts", "gain", "offset"),
    [
        ({"collection": "COPERNICUS/S2_SR_HARMONIZED", "properties": {"s2:processing_baseline": "05.10"}}, 1, 0),
        (
            {
                "properties": {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.11"},
                "stated": StatedScale("item", 0.0001, -0.1),
            },
            1,
            0,
        ),
        ({"stated": StatedScale("item", 0.0001, -0.1)}, 1, -1000),
        ({"stated": StatedScale("item", 0.0001, 0), "properties": {"s2:processing_baseline": "05.10"}}, 1, 0),
        ({"properties": {"s2:processing_baseline": "04.00"}}, 1, -1000),
        ({"properties": {"s2:processing_baseline": "03.01"}, "acquired": NEW}, 1, 0),
        ({"names": ["S2A_MSIL2A_20230601T103031_N0509_R108_T32UQD_20230601T163022"]}, 1, -1000),
        ({"names": ["S2A_MSIL2A_20200601T103031_N0214_R108_T32UQD_20200601T163022"], "acquired": OLD}, 1, 0),
        ({"file_scale": 0.0001, "file_offset": -0.1, "acquired": NEW}, 1, -1000),
        ({"file_scale": 1.0, "file_offset": 0.0, "acquired": OLD}, 1, 0),
        ({"acquired": NEW}, 1, None),
        ({}, 1, None),
    ],
)
def test_the_first_rule_that_applies_decides_the_offset(facts, gain, offset):
    rule = radiometry(**facts)
    assert (rule.gain, rule.offset) == (gain, offset)
    assert rule.reason


def test_a_reflectance_file_becomes_dn():
    rule = radiometry(file_scale=1.0, file_offset=0.1)
    assert (rule.gain, rule.offset) == (10_000.0, 1000.0)


@pytest.mark.parametrize(
    ("file", "offset"),
    [
        ("e84_v1_filter_1.json", {0.0, -1000.0}),
        ("earth_search_c1_13TDE_10_dates.json", {-1000.0}),
        ("earth_search_l2a_0214.json", {0.0}),
        ("pc_0510_2024.json", {-1000.0}),
        ("pc_0400_2022.json", {-1000.0}),
    ],
)
def test_real_items_of_real_catalogs_are_harmonised_by_what_they_say(shared, file, offset):
    document = json.loads((shared / "stac" / file).read_text())
    items = document if isinstance(document, list) else document.get("features", [document])
    for item in (i for i in items if "sentinel-2" in i["collection"]):
        scene = scene_of_item(item, lambda href: href)
        for band in ("B4", "B3", "B2"):
            assert scene.radiometry(band, 1.0, 0.0).offset in offset
        assert processing_baseline(item["properties"], (item["id"],)) is not None
