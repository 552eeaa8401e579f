from __future__ import annotations

import json
import os
import pickle
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from fakes import write_raster
from local_archive import fetch_local
from rs_embed import LocalProvider, NoImageryError, PointBuffer, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.registry import resolve

PLACE = PointBuffer(15.0, 48.0, 300)
GEOBOX = place_geobox(PLACE, 10)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
WIDER = Affine(10, 0, GEOBOX.affine.c - 200, 0, -10, GEOBOX.affine.f + 200)
"""Of a 100 x 100 px file with the place in its middle."""


def band(value: int, dtype: str = "uint16") -> np.ndarray:
    return np.full((1, 100, 100), value, dtype)


def fetch(folder: Path, sensor: SensorSpec | None = None, temporal: TemporalSpec = JUNE) -> Patch:
    return fetch_local(folder, PatchRequest(GEOBOX, temporal, sensor or SensorSpec()))


def write_safe(root: Path, product: str, *, values: tuple[int, int, int] = (2300, 2200, 2100), scl: int = 4) -> Path:
    """The files of a SAFE product that count, B04 also at 20 m as in a real one."""
    granule = root / f"{product}.SAFE" / "GRANULE" / "L2A_T33UVP" / "IMG_DATA"
    stem = f"T33UVP_{product.split('_')[2]}"
    for name, value in zip(("B04", "B03", "B02"), values, strict=True):
        write_raster(granule / "R10m" / f"{stem}_{name}_10m.tif", band(value), transform=WIDER, nodata=0)
    coarse = Affine(20, 0, WIDER.c, 0, -20, WIDER.f)
    write_raster(granule / "R20m" / f"{stem}_B04_20m.tif", band(9)[:, :50, :50], transform=coarse, nodata=0)
    write_raster(granule / "R20m" / f"{stem}_SCL_20m.tif", band(scl, "uint8")[:, :50, :50], transform=coarse, nodata=0)
    return root


def medians(patch: Patch) -> list[float]:
    return [float(np.median(b)) for b in patch.dn]


def test_a_safe_product_is_harmonised_by_the_baseline_in_its_name(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000")
    patch = fetch(root)
    assert medians(patch) == [1300, 1200, 1100]
    [scene] = patch.scenes
    assert scene.processing_baseline == "04.00"
    assert scene.dn_offset == -1000
    assert scene.datetime.startswith("2022-06-03T10:10:31")
    assert patch.clear_frac == 1.0


def test_an_older_baseline_has_no_offset(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0301_R022_T33UVP_20220603T140000")
    assert medians(fetch(root)) == [2300, 2200, 2100]


def test_dark_pixels_stay_valid_when_the_offset_is_taken_off(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000", values=(900, 1, 1300))
    patch = fetch(root)
    assert medians(patch) == [1, 1, 300]
    assert patch.valid.all()


def test_several_products_are_a_median_over_dates(tmp_path):
    for day, value in (("03", 2000), ("13", 3000), ("23", 9000)):
        product = f"S2A_MSIL2A_202206{day}T101031_N0400_R022_T33UVP_202206{day}T140000"
        write_safe(tmp_path, product, values=(value, value, value))
    patch = fetch(tmp_path)
    assert medians(patch) == [2000, 2000, 2000]
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-23", "2022-06-13", "2022-06-03"]
    assert medians(fetch(tmp_path, SensorSpec(composite="mosaic"))) == [8000, 8000, 8000]  # the latest on top
    half = fetch(tmp_path, temporal=TemporalSpec.range("2022-06-03", "2022-06-23"))
    assert medians(half) == [1500, 1500, 1500]  # end not included; an even number of dates


def test_the_scene_mask_leaves_clouds_out(tmp_path):
    for day, value, scl in (("03", 2000, 4), ("13", 9000, 9), ("23", 9000, 8)):
        product = f"S2A_MSIL2A_202206{day}T101031_N0400_R022_T33UVP_202206{day}T140000"
        write_safe(tmp_path, product, values=(value,) * 3, scl=scl)
    assert medians(fetch(tmp_path)) == [8000, 8000, 8000]
    masked = fetch(tmp_path, SensorSpec(cloud_mask="scl"))
    assert medians(masked) == [1000, 1000, 1000]
    assert (masked.clear_frac, masked.n_clear) == (1.0, 1.0)


def test_nothing_clear_is_no_imagery(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000", scl=9)
    with pytest.raises(NoImageryError, match="none has a valid pixel"):
        fetch(root, SensorSpec(cloud_mask="scl"))


def test_a_mask_without_classification_is_an_error(tmp_path):
    names = ("B04", "B03", "B02")
    write_raster(tmp_path / "2022-06-03.tif", np.concatenate([band(1)] * 3), transform=WIDER, descriptions=names)
    with pytest.raises(ProviderError, match=r"no band SCL.*without cloud_mask"):
        fetch(tmp_path, SensorSpec(cloud_mask="scl"))


def test_one_file_with_named_bands_in_any_order(tmp_path):
    stack = np.concatenate([band(100), band(200), band(300), band(400)])
    path = tmp_path / "S2B_MSIL2A_20220603T101031_N0301_R022_T33UVP_20220603T140000.tif"
    write_raster(path, stack, transform=WIDER, descriptions=("B02", "B03", "B04", "B08"))
    assert medians(fetch(tmp_path)) == [300, 200, 100]


def test_three_bands_without_names_are_refused_until_descriptions_or_an_item_name_them(tmp_path):
    path, stack = tmp_path / "chip_20220603.tif", np.concatenate([band(1), band(2), band(3)])
    write_raster(path, stack, transform=WIDER)
    with pytest.raises(ProviderError, match=r"chip_20220603\.tif has 3 bands without .*descriptions.*STAC item"):
        fetch(tmp_path)
    item = make_item(tmp_path / "elsewhere", "chip", 3, 2000).to_dict(include_self_link=False)
    shutil.rmtree(tmp_path / "elsewhere")
    item["assets"] = {"image": {"href": path.name, "eo:bands": [{"name": n} for n in ("B02", "B03", "B04")]}}
    item["properties"]["s2:processing_baseline"] = "03.01"
    (tmp_path / "chip.json").write_text(json.dumps(item))
    assert medians(fetch(tmp_path)) == [3, 2, 1]
    (tmp_path / "chip.json").unlink()
    write_raster(path, stack, transform=WIDER, descriptions=("B04", "B03", "B02"))
    patch = fetch(tmp_path)
    assert medians(patch) == [1, 2, 3]
    assert any("offset" in w and "unknown" in w for w in patch.warnings)  # 2022-06, and nothing tells the baseline
    assert patch.scenes[0].dn_offset is None


def test_scale_and_offset_tags_of_the_file_are_used_where_nothing_else_tells(tmp_path):
    for name, value in (("B04", 2300), ("B03", 2200), ("B02", 2100)):
        path = tmp_path / f"scene_20220603_{name}.tif"
        write_raster(path, band(value), transform=WIDER, scale=0.0001, offset=-0.1)
    patch = fetch(tmp_path)
    assert medians(patch) == [1300, 1200, 1100]
    assert "file scale" in patch.scenes[0].dn_offset_reason


def test_an_unobserved_pixel_is_nan_and_never_black(tmp_path):
    holed = band(2000)
    holed[0, 20:40] = 0
    for name in ("B04", "B03", "B02"):
        write_raster(tmp_path / f"x_20220603_{name}.tif", holed, transform=WIDER)
    patch = fetch(tmp_path)
    assert np.isnan(patch.dn[:, :20]).all()
    assert not np.isnan(patch.dn[:, 20:]).any()


def test_a_scene_that_cannot_be_read_is_dropped_and_named(tmp_path):
    for day in ("03", "13"):
        write_safe(tmp_path, f"S2A_MSIL2A_202206{day}T101031_N0400_R022_T33UVP_202206{day}T140000")
    broken = next(tmp_path.rglob("T33UVP_20220603T101031_B03_10m.tif"))
    broken.write_bytes(broken.read_bytes()[:9000])
    patch = fetch(tmp_path)
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-13"]
    [dropped] = patch.dropped
    assert "20220603" in dropped.id
    assert "B03" in dropped.reason


def test_nothing_found_names_the_nearest_scene(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000")
    with pytest.raises(NoImageryError, match=r"0 scene.*2022-07-01.*seen on 2022-06-03.*widen the time range"):
        fetch(root, temporal=TemporalSpec.range("2022-07-01", "2022-08-01"))
    provider = resolve(f"local:{root}")
    far = place_geobox(PointBuffer(15.0, 50.0, 300), 10)
    [(_, error)] = provider.fetch([PatchRequest(far, JUNE, SensorSpec())])
    assert isinstance(error, NoImageryError)
    assert "222 km away" in str(error)
    assert "2022-06-03" in str(error)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *[("missing", "no such folder"), ("empty", "no raster"), ("undated", "no date")],
        *[("unnamed", "without Sentinel-2"), ("unplaced", r"scan_20220603_B04\.tif has no georeference")],
    ],
)
def test_a_folder_that_is_no_archive_says_why(tmp_path, name, says):
    folder = tmp_path / name
    if name != "missing":
        folder.mkdir()
    if name == "undated":
        write_raster(folder / "picture.tif", np.concatenate([band(1)] * 3), transform=WIDER)
    if name == "unplaced":
        with pytest.warns(NotGeoreferencedWarning):
            write_raster(folder / "scan_20220603_B04.tif", band(1), transform=Affine.identity(), crs=None)
    if name == "unnamed":
        write_raster(folder / "20220603.tif", np.concatenate([band(1)] * 5), transform=WIDER)
    with pytest.raises(ProviderError, match=says):
        fetch(folder)


def make_item(folder: Path, identifier: str, day: int, value: int, cloud: float | None = 5.0) -> pystac.Item:
    """A STAC item as Earth Search writes it, with local files."""
    properties = {"s2:processing_baseline": "05.09"} | ({} if cloud is None else {"eo:cloud_cover": cloud})
    west, south, east, north = 14.9, 47.9, 15.1, 48.1
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    item = pystac.Item(
        identifier,
        {"type": "Polygon", "coordinates": [ring]},
        [west, south, east, north],
        datetime(2022, 6, day, tzinfo=UTC),
        properties,
    )
    for key, name in (("red", "B04"), ("green", "B03"), ("blue", "B02")):
        path = write_raster(folder / f"{identifier}_{name}.tif", band(value), transform=WIDER, nodata=0)
        item.add_asset(key, pystac.Asset(str(path), media_type=pystac.MediaType.COG, roles=["data"]))
    return item


def test_a_static_catalog_that_pystac_wrote(tmp_path):
    catalog = pystac.Catalog("archive", "test")
    for day, value, cloud in ((3, 2000, 5.0), (13, 3000, 29.0), (23, 9000, 80.0)):
        catalog.add_item(make_item(tmp_path / "files", f"scene-{day}", day, value, cloud))
    catalog.normalize_and_save(str(tmp_path / "stac"), pystac.CatalogType.SELF_CONTAINED)
    for location in (tmp_path / "stac", tmp_path / "stac" / "catalog.json"):
        patch = fetch(location)
        assert [s.id for s in patch.scenes] == ["scene-13", "scene-3"]  # the cloudy one is filtered
        assert medians(patch) == [1500, 1500, 1500]
        assert patch.scenes[0].cloud_pct == 29.0
    assert [s.id for s in fetch(tmp_path / "stac", SensorSpec(max_scenes=1)).scenes] == ["scene-3"]
    with pytest.raises(NoImageryError, match=r"3 scene\(s\) before the cloud filter and 0 after.*now 1"):
        fetch(tmp_path / "stac", SensorSpec(cloudy_pct=1))


def test_items_beside_their_files_are_used_and_relative(tmp_path):
    item = make_item(tmp_path, "scene-3", 3, 2000)
    document = item.to_dict(include_self_link=False)
    for asset in document["assets"].values():
        asset["href"] = Path(asset["href"]).name
    (tmp_path / "scene-3.json").write_text(json.dumps(document))
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    assert medians(fetch(moved)) == [1000, 1000, 1000]


def test_an_item_without_cloud_cover_is_kept_and_says_so(tmp_path):
    item = make_item(tmp_path, "scene-3", 3, 2000, cloud=None)
    (tmp_path / "scene-3.json").write_text(json.dumps(item.to_dict()))
    patch = fetch(tmp_path)
    assert patch.scenes[0].cloud_pct is None
    assert any("cloudy_pct=30 could not be applied" in w for w in patch.warnings)


def test_a_broken_item_beside_good_ones_is_reported(tmp_path, caplog):
    item = make_item(tmp_path, "scene-3", 3, 2000)
    (tmp_path / "scene-3.json").write_text(json.dumps(item.to_dict()))
    document = item.to_dict() | {"id": "broken", "assets": {}}
    (tmp_path / "broken.json").write_text(json.dumps(document))
    assert len(fetch(tmp_path).scenes) == 1
    assert "broken.json" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"collection": "landsat-c2-l2", "platform": "landsat-8"}, "of landsat-8, and not of Sentinel-2"),
        ({"collection": "landsat-c2-l2"}, "collection 'landsat-c2-l2', and nothing in it says Sentinel-2 L2A"),
        ({"collection": "hls2-s30", "platform": "sentinel-2a"}, "collection 'hls2-s30'"),
        ({"instruments": ["oli", "tirs"]}, "of oli, and not of Sentinel-2"),
    ],
)
def test_an_item_of_another_product_is_not_composited(tmp_path, change, reason):
    """Landsat's assets are `red`, `green`, `blue` too."""
    for day in (3, 13):
        item = make_item(tmp_path, f"scene-{day}", day, 1000 * day).to_dict(include_self_link=False)
        if day == 13:
            item["properties"] = {k: v for k, v in item["properties"].items() if not k.startswith("s2:")} | change
            item["collection"] = item["properties"].pop("collection", None)
        (tmp_path / f"scene-{day}.json").write_text(json.dumps(item))
    patch = fetch(tmp_path)
    assert medians(patch) == [2000, 2000, 2000]
    assert [s.id for s in patch.scenes] == ["scene-3"]
    assert any(reason in warning for warning in patch.warnings)


@pytest.mark.parametrize(
    "change",
    [
        {"collection": "sentinel-2-l2a"},
        {"collection": "sentinel-2-c1-l2a"},
        {"collection": "sentinel-s2-l2a-cogs", "platform": "sentinel-2a"},
        {"collection": "my-fields", "s2:processing_baseline": "05.09"},
        {"collection": "my-fields", "s2:product_type": "S2MSI2A"},
        {"constellation": "sentinel-2"},
        {},
    ],
)
def test_an_item_of_the_product_is_used_under_any_collections_name(tmp_path, change):
    item = make_item(tmp_path, "scene-3", 3, 2000).to_dict(include_self_link=False)
    item["properties"] = {"datetime": item["properties"]["datetime"], "processing:version": "05.09"} | change
    item["collection"] = item["properties"].pop("collection", None)
    (tmp_path / "scene-3.json").write_text(json.dumps(item))
    assert medians(fetch(tmp_path)) == [1000, 1000, 1000]


def test_an_item_of_l1c_is_used_only_when_it_is_asked_for(tmp_path):
    item = make_item(tmp_path, "scene-3", 3, 2000).to_dict(include_self_link=False) | {"collection": "sentinel-2-l1c"}
    (tmp_path / "scene-3.json").write_text(json.dumps(item))
    with pytest.raises(NoImageryError, match="L1C"):
        fetch(tmp_path)
    assert medians(fetch(tmp_path, SensorSpec(collection="sentinel-2-l1c"))) == [1000, 1000, 1000]


def test_two_baselines_of_one_acquisition_in_a_static_catalog_are_used_once(tmp_path):
    for baseline, value in (("03.00", 1300), ("05.00", 2500)):
        item = make_item(tmp_path, f"S2A_33UVP_{baseline}", 3, value).to_dict(include_self_link=False)
        item["properties"] |= {"s2:processing_baseline": baseline, "datetime": "2022-06-03T10:10:31Z"}
        (tmp_path / f"{baseline}.json").write_text(json.dumps(item | {"collection": "sentinel-2-l2a"}))
    patch = fetch(tmp_path)
    assert medians(patch) == [1500, 1500, 1500]
    assert [s.processing_baseline for s in patch.scenes] == ["05.00"]


def test_a_product_beside_an_item_of_other_files_is_used_too(tmp_path):
    item = make_item(tmp_path / "chips", "scene-13", 13, 4000)
    (tmp_path / "chips" / "scene-13.json").write_text(json.dumps(item.to_dict()))
    write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000")
    patch = fetch(tmp_path)
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-13", "2022-06-03"]


def test_a_broken_item_of_a_static_catalog_costs_only_itself(tmp_path, caplog):
    catalog = pystac.Catalog("archive", "test")
    for day in (3, 13):
        catalog.add_item(make_item(tmp_path / "files", f"scene-{day}", day, 1000 * day))
    catalog.normalize_and_save(str(tmp_path / "stac"), pystac.CatalogType.SELF_CONTAINED)
    next((tmp_path / "stac").rglob("scene-13.json")).write_text("{")
    assert [s.id for s in fetch(tmp_path / "stac").scenes] == ["scene-3"]
    assert "scene-13.json is not readable as JSON" in caplog.text


@pytest.mark.parametrize(
    "prefix",
    ["/vsicurl/", "file:///vsicurl/", "file:///vsicurl%2f", "/./vsicurl/", "../" * 20 + "vsicurl/", "/vsizip/vsicurl/"],
)
def test_an_address_of_gdal_in_disguise_is_no_file(tmp_path, prefix):
    item = make_item(tmp_path / "elsewhere", "scene-3", 3, 2000).to_dict(include_self_link=False)
    for asset in item["assets"].values():
        asset["href"] = f"{prefix}http://127.0.0.1:9/{Path(asset['href']).name}"
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "item.json").write_text(json.dumps(item))
    with pytest.raises(ProviderError, match="no asset is a Sentinel-2 band that can be read"):
        fetch(tmp_path / "items")


def test_pipes_loops_and_long_chains_of_links_do_no_harm(tmp_path):
    item = make_item(tmp_path / "files", "scene-3", 3, 2000)
    (tmp_path / "item.json").write_text(json.dumps(item.to_dict(include_self_link=False)))
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "x_20220603_B04.tif")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [s.id for s in fetch(tmp_path).scenes] == ["scene-3"]
    links = [[1, {"rel": "child"}, {"rel": "child", "href": f"{i + 1}.json"}] for i in range(2000)]
    links.append([{"rel": "item", "href": "item.json"}, {"rel": "child", "href": "catalog.json"}])
    for number, targets in enumerate(links):
        (tmp_path / (f"{number}.json" if number else "catalog.json")).write_text(json.dumps({"links": targets}))
    assert [s.id for s in fetch(tmp_path / "catalog.json").scenes] == ["scene-3"]


def test_real_earth_search_files_with_their_real_item(shared, tmp_path):
    for file in (shared / "earth_search_cogs").glob("*.tif"):
        shutil.copy(file, tmp_path)
    item = json.loads((shared / "stac" / "earth_search_l2a_0214.json").read_text())
    names = {"red": "B04", "green": "B03", "blue": "B02", "scl": "SCL"}
    item["assets"] = {
        key: asset | {"href": f"{item['id']}_{names[key]}.tif"} for key, asset in item["assets"].items() if key in names
    }
    (tmp_path / "item.json").write_text(json.dumps(item))
    west, south, east, north = item["bbox"]
    place = PointBuffer((west + east) / 2, (south + north) / 2, 5000)
    request = PatchRequest(place_geobox(place, 100), TemporalSpec.range("2020-02-19", "2020-02-20"), SensorSpec())
    [(_, patch)] = resolve(f"local:{tmp_path}").fetch([request])
    assert isinstance(patch, Patch)
    assert patch.scenes[0].id == item["id"]
    assert patch.scenes[0].dn_offset == 0
    assert patch.clear_frac is not None
    assert patch.valid.all()


def test_a_plan_counts_scenes_and_bytes_without_reading(tmp_path):
    root = write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000")
    provider = resolve(f"local:{root}")
    elsewhere = place_geobox(PointBuffer(20, 50, 300), 10)
    requests = [PatchRequest(g, JUNE, SensorSpec()) for g in (GEOBOX, elsewhere)]
    plan = provider.plan(requests)
    assert (plan.places, plan.scenes, plan.places_without_scene) == (2, 1, (1,))
    assert plan.read_bytes == 60 * 60 * (3 * 2 + 1)  # three bands of two bytes and the scene classification


def test_a_provider_can_be_built_as_an_object_and_travels_to_other_processes(tmp_path):
    write_safe(tmp_path, "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000")
    provider = LocalProvider(tmp_path)
    assert repr(provider) == f"LocalProvider({str(tmp_path)!r})"
    assert resolve(provider) is provider
    asked = [PatchRequest(GEOBOX, JUNE, SensorSpec())]
    for source in (provider, pickle.loads(pickle.dumps(provider))):
        [(_, patch)] = source.fetch(asked)
        assert medians(patch) == medians(fetch(tmp_path))
