from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from pyproj import Transformer

from fakes import write_raster
from local_archive import fetch_local
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.local.provider import LocalProvider
from rs_embed.providers.local.safe_metadata import read_metadata
from rs_embed.providers.scenes import Scene
from safe_products import COMPACT, LONG, RGB, product_xml, tile_xml, write_jp2, write_safe, zip_folder

GEOBOX = place_geobox(PointBuffer(15.0, 48.0, 300), 10)
WIDER = Affine(10, 0, GEOBOX.affine.c - 200, 0, -10, GEOBOX.affine.f + 200)
"""Of a 100 x 100 px file with the place in its middle."""
ALWAYS = TemporalSpec.range("2015-01-01", "2026-01-01")
L1C = SensorSpec(collection="sentinel-2-l1c")


def fetch(path: Path, sensor: SensorSpec | None = None, temporal: TemporalSpec = ALWAYS) -> Patch:
    return fetch_local(path, PatchRequest(GEOBOX, temporal, sensor or SensorSpec()))


def medians(patch: Patch) -> list[float]:
    return [float(np.median(b)) for b in patch.dn]


def only_scene(path: Path) -> Scene:
    [scene] = LocalProvider(path).scenes
    assert isinstance(scene, Scene)
    return scene


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete product of baseline 04.00, with the offset that its metadata states for every band."""
    offsets = dict.fromkeys(("B2", "B3", "B4"), -1000)
    return write_safe(tmp_path_factory.mktemp("archive"), WIDER, offsets=offsets)


@pytest.mark.parametrize("at", ["archive", "product", "granule", "images"])
def test_a_complete_product_is_one_scene_of_its_bands_wherever_it_is_opened(product, at):
    granule = next((product / "GRANULE").iterdir())
    folder = {"archive": product.parent, "product": product, "granule": granule, "images": granule / "IMG_DATA"}[at]
    scene = only_scene(folder)
    assert sorted(scene.files) == ["B2", "B3", "B4", "SCL"]  # no TCI, AOT, WVP, PVI or mask is a band
    assert "R10m" in scene.files["B4"].path  # the finest of three
    patch = fetch(folder)
    assert medians(patch) == [1300, 1200, 1100]
    assert patch.clear_frac == 1.0


def test_time_clouds_baseline_and_offset_are_those_of_the_metadata(product):
    scene = only_scene(product.parent)
    assert scene.id == COMPACT
    assert scene.acquired.isoformat() == "2022-06-03T10:10:31.024000+00:00"
    assert (scene.cloud_pct, scene.processing_baseline) == (4.25, "04.00")
    patch = fetch(product.parent)
    assert "product metadata scale 0.0001, offset -0.1" in patch.scenes[0].dn_offset_reason
    assert patch.warnings == ()  # cloud cover and offset are known
    assert patch.scenes[0].dn_offset == -1000
    with pytest.raises(NoImageryError, match="raise cloudy_pct"):
        fetch(product.parent, SensorSpec(cloudy_pct=4))


def test_a_renamed_product_is_still_known_by_its_metadata(product, tmp_path):
    shutil.copytree(product, tmp_path / "my tile")
    scene = only_scene(tmp_path)
    assert (scene.id, scene.processing_baseline) == ("my tile", "04.00")
    assert scene.acquired.isoformat() == "2022-06-03T10:10:31.024000+00:00"
    assert medians(fetch(tmp_path)) == [1300, 1200, 1100]


def test_a_zipped_product_reads_as_the_unpacked_one(product, tmp_path):
    folder = tmp_path / "häß {#1}.zip"
    path = zip_folder(product, folder / f"{COMPACT}.zip")
    packed = zip_folder(product, tmp_path / "packed again" / "x.zip", zipfile.ZIP_DEFLATED)
    for location in (folder, path, packed):
        zipped, unpacked = fetch(location), fetch(product)
        np.testing.assert_array_equal(zipped.dn, unpacked.dn)
        assert zipped.scenes == unpacked.scenes
    shutil.copytree(product, folder / product.name)  # unpacked, and the archive was kept
    assert not only_scene(folder).files["B4"].path.startswith("/vsizip/")


def test_a_product_whose_files_an_item_describes_is_used_once(product, tmp_path, monkeypatch):
    shutil.copytree(product, tmp_path / product.name)
    monkeypatch.chdir(tmp_path)
    images = sorted(Path(product.name).rglob("*_10m.jp2"))
    assets = {f.stem.split("_")[2]: {"href": str(f)} for f in images if "_B0" in f.name}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "mine", "collection": "sentinel-2-l2a", "assets": assets}
    item |= {"bbox": [14.9, 47.9, 15.1, 48.1], "geometry": None, "links": []}
    item["properties"] = {"datetime": "2022-06-03T10:15:59Z", "s2:processing_baseline": "04.00"}
    Path("item.json").write_text(json.dumps(item))
    for location in (Path(), tmp_path):
        assert [s.id for s in fetch(location).scenes] == ["mine"]


def test_a_product_with_long_names_has_a_scene_for_each_granule(tmp_path):
    """Before 2016-12 a product had many granules, and its files other names."""
    names = tuple(f"S2A_USER_MSI_L2A_TL_SGS__20160504T163055_A004524_T{tile}_N02.02" for tile in ("33UVP", "33UWP"))
    write_safe(tmp_path, WIDER, product=LONG, granules=names, baseline="02.02")
    scenes = LocalProvider(tmp_path).scenes
    assert [scene.id for scene in scenes] == [f"{LONG}/{name}" for name in names]
    assert {scene.acquired.isoformat() for scene in scenes} == {"2016-05-04T10:59:17.027000+00:00"}
    assert [(s.processing_baseline, s.cloud_pct) for s in scenes] == [("02.02", 4.25)] * 2
    assert medians(fetch(tmp_path)) == [2300, 2200, 2100]
    for file in tmp_path.rglob("*.xml"):
        file.unlink()  # the names tell as much, the time of their making is not taken for that of sensing
    assert {s.acquired.isoformat() for s in LocalProvider(tmp_path).scenes} == {"2016-05-04T10:59:17+00:00"}
    assert [s.processing_baseline for s in LocalProvider(tmp_path).scenes] == ["02.02"] * 2


@pytest.mark.parametrize(
    ("baseline", "offsets", "quantification", "expected"),
    [
        ("04.00", {"B2": -1000, "B3": -1000, "B4": -1000}, 10_000, [1300, 1200, 1100]),
        ("05.11", {"B2": -900, "B3": -900, "B4": -900}, 10_000, [1400, 1300, 1200]),
        ("03.01", None, 10_000, [2300, 2200, 2100]),
        ("02.04", None, 1_000, [23_000, 22_000, 21_000]),
        ("05.11", None, 10_000, [1300, 1200, 1100]),  # a list that is not there says nothing: the baseline does
    ],
)
def test_offset_and_quantification_are_those_of_the_product(tmp_path, baseline, offsets, quantification, expected):
    write_safe(tmp_path, WIDER, baseline=baseline, offsets=offsets, quantification=quantification)
    assert medians(fetch(tmp_path)) == expected


@pytest.mark.parametrize(
    "damage",
    [
        "<a",
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><a><PROCESSING_BASELINE>&x;</PROCESSING_BASELINE></a>',
        '<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;">]><a>&y;</a>',
        " " * (17 << 20),
    ],
    ids=["broken", "external-entity", "entities", "huge"],
)
def test_metadata_that_cannot_be_trusted_costs_only_itself(product, tmp_path, caplog, damage):
    shutil.copytree(product, tmp_path / product.name)
    (tmp_path / product.name / "MTD_MSIL2A.xml").write_text(damage)
    assert medians(fetch(tmp_path)) == [1300, 1200, 1100]  # by the baseline in the name
    assert "its names are used instead" in caplog.text


def test_values_that_make_no_sense_are_left_out():
    text = product_xml(COMPACT, "04.00", {"B2": -1000}, 10_000)
    for good, bad in (("04.00", "N/A"), ("10000<", "none<"), ("-1000", "nan"), ("2022-06-03T10:10:31.024Z", "then")):
        text = text.replace(good, bad)
    stated = read_metadata(text.encode(), tile_xml(4).replace(">4<", ">N/A<").encode())
    assert (stated.acquired, stated.quantification, dict(stated.offsets)) == (None, None, {})
    assert stated.cloud_pct == 55.5  # the product's, where the tile's is none
    assert stated.scale_and_offset("B2") is None


def test_two_baselines_of_one_acquisition_are_used_once_in_the_newest(tmp_path):
    old = "S2A_MSIL2A_20210603T101031_N0300_R022_T33UVP_20210603T140000"
    new = "S2A_MSIL2A_20210603T101031_N0500_R022_T33UVP_20230203T140000"
    stem = "T33UVP_20210603T101031"
    for name, red in ((old, 1300), (new, 2500)):
        values = {"B04": red, "B03": red - 100, "B02": red - 200}
        write_safe(tmp_path, WIDER, product=name, values=values, metadata=False, prefix=stem)
    patch = fetch(tmp_path)
    assert medians(patch) == [1500, 1400, 1300]
    assert [s.id for s in patch.scenes] == [new]


@pytest.mark.parametrize("with_outline", ["both", "old", "new", "none"])
def test_parts_of_an_overpass_are_both_used_and_doubles_once_whether_or_not_outlines_are_known(tmp_path, with_outline):
    """`Product_Footprint` is in the metadata; a product without it may fill its tile, or half of it."""
    outline = "48.004 14.994 48.004 15.006 47.996 15.006 47.996 14.994 48.004 14.994"
    for baseline, made, red in (("0300", "20210603T140000", 9000), ("0500", "20230203T140000", 2300)):
        name = f"S2A_MSIL2A_20210603T101031_N{baseline}_R022_T33UVP_{made}"
        values = {"B04": red, "B03": red, "B02": red}
        folder = write_safe(
            tmp_path, WIDER, product=name, values=values, metadata=False, prefix="T33UVP_20210603T101031"
        )
        if with_outline in ("both", "old" if baseline == "0300" else "new"):
            (folder / "MTD_MSIL2A.xml").write_text(f"<a><EXT_POS_LIST>{outline}</EXT_POS_LIST></a>")
    assert medians(fetch(tmp_path)) == [1300, 1300, 1300]
    part = tmp_path / "S2A_MSIL2A_20210603T101031_N0500_R022_T33UVP_20230203T150000.SAFE"
    shutil.copytree(tmp_path / "S2A_MSIL2A_20210603T101031_N0500_R022_T33UVP_20230203T140000.SAFE", part)
    expected = 1 if with_outline in ("both", "new") else 2  # outlines that are equal show a double
    assert len(fetch(tmp_path).scenes) == expected


def write_l1c(root: Path, day: str = "20220603") -> Path:
    folder = root / f"S2A_MSIL1C_{day}T101031_N0400_R022_T33UVP_{day}T140000.SAFE"
    for name, value in RGB.items():
        path = folder / "GRANULE" / "L1C_T33UVP_A036282" / "IMG_DATA" / f"T33UVP_{day}T101031_{name}.jp2"
        write_jp2(path, np.full((100, 100), value + 500, np.uint16), WIDER)
    return folder


def test_l1c_is_refused_by_name_and_read_when_it_is_asked_for(tmp_path):
    write_l1c(tmp_path)
    with pytest.raises(NoImageryError, match=r"Sentinel-2 L1C \(S2A_MSIL1C_2022.*sentinel-2-l1c"):
        fetch(tmp_path)
    assert medians(fetch(tmp_path, L1C)) == [1800, 1700, 1600]


def test_of_both_levels_in_a_folder_the_one_that_is_asked_for_is_used(product, tmp_path):
    shutil.copytree(product, tmp_path / product.name)
    write_l1c(tmp_path)
    assert medians(fetch(tmp_path)) == [1300, 1200, 1100]
    assert medians(fetch(tmp_path, L1C)) == [1800, 1700, 1600]
    with pytest.raises(NoImageryError, match=r"Sentinel-2 L2A .*none is L1C"):
        fetch(product, L1C)
    later = TemporalSpec.range("2022-06-10", "2022-07-01")
    write_l1c(tmp_path, "20220613")
    with pytest.raises(NoImageryError, match=r"1 scene\(s\) there are Sentinel-2 L1C \(S2A_MSIL1C_20220613"):
        fetch(tmp_path, temporal=later)


def test_a_band_without_content_costs_its_scene_and_is_named(product, tmp_path):
    write_safe(tmp_path, WIDER)
    later = write_safe(tmp_path, WIDER, product=COMPACT.replace("0603T", "0613T"), metadata=False, prefix="T33UVP_x")
    assert later.name != f"{COMPACT}.SAFE"
    for path in tmp_path.rglob("T33UVP_20220603*B0[234]_10m.jp2"):
        path.write_bytes(b"")
    patch = fetch(tmp_path)
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-13"]
    [dropped] = patch.dropped
    assert dropped.id == COMPACT
    assert re.search(r"B0[234]_10m\.jp2", dropped.reason)


def test_a_product_without_a_band_that_opens_is_left_out_with_the_reason(product, tmp_path):
    shutil.copytree(product, tmp_path / product.name)
    other = shutil.copytree(product, tmp_path / product.name.replace("0603T", "0613T"))
    for path in other.rglob("*.jp2"):
        path.write_bytes(b"")
    patch = fetch(tmp_path)
    assert medians(patch) == [1300, 1200, 1100]
    [warning] = patch.warnings
    assert "leaves out 1 product" in warning
    assert other.name.removesuffix(".SAFE") in warning


def test_pictures_and_masks_beside_bands_are_no_reflectance(tmp_path):
    """Products that were flattened into one folder, or downloaded file by file."""
    others = ("TCI", "PVI", "AOT", "WVP", "MSK_DETFOO_B02", "MSK_CLASSI_B00", "thumbnail", "visual", "CLDPRB")
    images = {name: np.full((1, 100, 100), value, np.uint16) for name, value in RGB.items()}
    for name, values in (images | dict.fromkeys(others, np.full((3, 100, 100), 90, np.uint8))).items():
        write_raster(tmp_path / f"S2A_33UVP_20210603_0_L2A_{name}.tif", values, transform=WIDER)
    scene = only_scene(tmp_path)
    assert sorted(scene.files) == ["B2", "B3", "B4"]
    assert medians(fetch(tmp_path)) == [2300, 2200, 2100]


def test_a_band_in_8_bits_costs_its_scene(tmp_path):
    for day, dtype in (("03", np.uint8), ("13", np.uint16)):
        for name in RGB:
            write_raster(tmp_path / f"x_202106{day}_{name}.tif", np.full((1, 100, 100), 90, dtype), transform=WIDER)
    patch = fetch(tmp_path)
    assert [s.datetime[:10] for s in patch.scenes] == ["2021-06-13"]
    assert "8 bits" in patch.dropped[0].reason


def test_a_picture_whose_bands_have_names_is_no_reflectance(tmp_path):
    picture = np.full((3, 100, 100), 90, np.uint8)
    write_raster(tmp_path / "rgb_20210603.tif", picture, transform=WIDER, descriptions=("B04", "B03", "B02"))
    with pytest.raises(ProviderError, match="8 bits a pixel"):
        fetch(tmp_path)


@pytest.mark.parametrize(
    "name", ["LC08_L2SP_190027_20210603_20210610_02_T1_SR_B4", "HLS.S30.T33UVP.2021154T101031.v2.0.20210603.B04"]
)
def test_rasters_of_another_mission_are_refused_by_name(tmp_path, name):
    write_raster(tmp_path / f"{name}.tif", np.full((1, 100, 100), 9, np.uint16), transform=WIDER)
    with pytest.raises(ProviderError, match=r"is of (LC08|HLS).* not of Sentinel-2"):
        fetch(tmp_path)


def test_stray_files_cost_only_themselves(product, tmp_path, caplog):
    shutil.copytree(product, tmp_path / product.name)
    (tmp_path / "notes.json").write_text("{broken")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "aoi.geojson").write_bytes(b'\xef\xbb\xbf{"type": "FeatureCollection", "features": null}')
    (tmp_path / "broken.zip").write_bytes(b"PK")
    (tmp_path / "._B04.tif").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "._item.json").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "S2A_20220603_B04.tif").write_bytes(b"\x00\x05\x16\x07\xff")
    image = next(tmp_path.rglob("*B04_10m.jp2"))
    image.with_name(f"._{image.name}").write_bytes(b"\x00\x05\x16\x07\xff")
    image.with_name(f"{image.name}.aux.xml").write_text("<PAMDataset></PAMDataset>")
    patch = fetch(tmp_path)
    assert medians(patch) == [1300, 1200, 1100]
    assert patch.warnings == ()
    assert all(name in caplog.text for name in ("notes.json", "deep.json", "broken.zip"))
    assert "._" not in caplog.text


@pytest.mark.parametrize("lon", [179.96, -179.99])
@pytest.mark.parametrize("layout", ["safe", "named"])
def test_a_granule_over_180_degrees_is_found_from_both_sides(tmp_path, layout, lon):
    x, y = Transformer.from_crs(4326, 32760, always_xy=True).transform(179.97, -17.0)
    grid = Affine(10, 0, round(x / 10) * 10 - 5120, 0, -10, round(y / 10) * 10 + 5120)
    name = "S2A_MSIL2A_20220603T221941_N0509_R029_T60KYF_20220604T010000"
    if layout == "safe":
        granule, stem = ("L2A_T60KYF_A036289_20220603T221938",), "T60KYF_20220603T221941"
        offsets = dict.fromkeys(("B2", "B3", "B4"), -1000)
        crs = "EPSG:32760"
        write_safe(tmp_path, grid, product=name, granules=granule, prefix=stem, offsets=offsets, crs=crs, px=1024)
    for band, value in RGB.items() if layout == "named" else ():
        path = tmp_path / f"{name}.SAFE" / f"T60KYF_20220603T221941_{band}_10m.tif"
        write_raster(path, np.full((1, 1024, 1024), value, np.uint16), transform=grid, crs="EPSG:32760")
    geobox = place_geobox(PointBuffer(lon, -17.0, 640), 10)
    [(_, patch)] = LocalProvider(tmp_path).fetch([PatchRequest(geobox, ALWAYS, SensorSpec())])
    assert isinstance(patch, Patch), patch
    assert patch.valid.all()
    assert medians(patch) == [1300, 1200, 1100]
