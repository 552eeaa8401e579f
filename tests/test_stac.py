"""STAC providers against a real STAC API and a real server with ranges, both on loopback."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.shutil import copy as copy_raster

from archive_server import FileServer, Tile, serve_archive, serve_files, serve_stac, write_items, write_scene
from fakes import write_checkpoint
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, StacProvider, TemporalSpec, get_embedding
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest, Provider
from rs_embed.providers.cache import CachedProvider
from rs_embed.providers.registry import resolve
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import drop_duplicates
from rs_embed.providers.stac.catalogs import CATALOGS, StacCatalog
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.providers.stac.offsets import dark_pixels, has_offset

HOME = Tile("33UVP", 32633, 499_980, 5_300_040)
EAST = Tile("33UWP", 32633, 499_980 + 15_360 - 980, 5_300_040)  # overlaps its neighbour, as tiles do
ZONE32 = Tile("32UQU", 32632, 933_000, 5_326_000)
"""The same ground as HOME's west side, in the neighbouring zone."""
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
TO_LONLAT = Transformer.from_crs(32633, 4326, always_xy=True)


def request(x: float, y: float, sensor: SensorSpec | None = None, buffer_m: float = 640) -> PatchRequest:
    """A place by metres from HOME's upper left corner, right and down."""
    lon, lat = TO_LONLAT.transform(HOME.left + x, HOME.top - y)
    return PatchRequest(place_geobox(PointBuffer(lon, lat, buffer_m), 10), JUNE, sensor or SensorSpec())


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files and items of three dates on two tiles, and one in the neighbouring zone."""
    root = tmp_path_factory.mktemp("archive")
    url = "http://files"
    items = [
        write_scene(root, url, HOME, f"2022-06-{d:02d}", seed=d, cloudy_share=0.1 * i)
        for i, d in enumerate((3, 13, 23))
    ]
    items += [write_scene(root, url, EAST, "2022-06-03", seed=50)]
    items += [write_scene(root, url, HOME, "2022-06-08", seed=60, cloud=80.0)]
    return root, items


@pytest.fixture
def archive(stored, tmp_path):
    """The provider over a running archive, and the server of its files."""
    root, items = stored
    with serve_archive(root, items, tmp_path) as (api, files):
        yield StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",))), files


def fetch(provider: StacProvider, requests: list[PatchRequest]) -> list[Patch | ProviderError]:
    found = dict(provider.fetch(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[i] for i in range(len(requests))]


def by_rasterio(root: Path, folder: str, asked: PatchRequest, name: str = "B04") -> np.ndarray:
    """What rasterio says lies under each target centre, 0 outside."""
    height, width = asked.geobox.shape
    x, y = asked.geobox.affine * np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    with rasterio.open(root / folder / f"{name}.tif") as file:
        if file.crs.to_epsg() != asked.geobox.crs.epsg:
            x, y = Transformer.from_crs(asked.geobox.crs.epsg, file.crs.to_epsg(), always_xy=True).transform(x, y)
        cols, rows = ~file.transform * (x, y)
        rows, cols = np.floor(rows).astype(int), np.floor(cols).astype(int)
        inside = (rows >= 0) & (rows < file.height) & (cols >= 0) & (cols < file.width)
        values = file.read(1)
    return np.where(inside, values[np.clip(rows, 0, values.shape[0] - 1), np.clip(cols, 0, values.shape[1] - 1)], 0)


def expected_median(root: Path, items, asked: PatchRequest, name: str = "B04") -> np.ndarray:
    """Median over the scenes under the cloud limit, offset taken off, NaN where nothing was observed."""
    stack = []
    for item in items:
        if item["properties"]["eo:cloud_cover"] <= asked.sensor.cloudy_pct:
            every = [by_rasterio(root, item["id"], asked, n) for n in ("B04", "B03", "B02")]
            stored = by_rasterio(root, item["id"], asked, name).astype(float)
            stack.append(np.where(np.min(every, axis=0) > 0, np.maximum(stored - 1000, 1), np.nan))
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmedian(stack, axis=0)


def test_it_is_a_provider(archive):
    assert isinstance(archive[0], Provider)


def test_patches_equal_rasterio_inside_a_tile_and_across_two(archive, stored):
    provider, _ = archive
    requests = [
        request(3000, 3000),
        request(5120, 5120),
        request(15_300, 4000),
        request(700, 700),
        request(9000, 12_000),
    ]
    for asked, patch in zip(requests, fetch(provider, requests), strict=True):
        assert isinstance(patch, Patch)
        for band, name in enumerate(("B04", "B03", "B02")):
            np.testing.assert_array_equal(patch.dn[band], expected_median(*stored, asked, name))
    assert [len(p.scenes) for p in fetch(provider, requests[:3])] == [3, 3, 4]


def test_a_scene_of_the_neighbouring_zone_is_read_by_the_exact_transform(stored, tmp_path):
    root, _ = stored
    lon, lat = TO_LONLAT.transform(HOME.left + 2000, HOME.top - 3000)
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    tile = replace(ZONE32, left=round(x, -1) - 5000, top=round(y, -1) + 5000, side_px=1024)
    with serve_files(FileServer(root)) as files:
        item = write_scene(root, files.url, tile, "2022-06-18", seed=70)
        with serve_stac(write_items(tmp_path / "items.json", [item])) as api:
            provider = StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",)))
            asked = request(2000, 3000)
            [patch] = fetch(provider, [asked])
    assert isinstance(patch, Patch)
    np.testing.assert_array_equal(patch.dn[0], by_rasterio(root, item["id"], asked) - 1000.0)
    # GDAL approximates the transform between two corners, which moves a few pixels by one
    other = by_odc(root, item, asked)
    assert 0 < np.mean(other - 1000.0 != patch.dn[0]) <= 0.03


def by_odc(root: Path, item: dict[str, object], asked: PatchRequest) -> np.ndarray:
    """What odc-stac loads of one item's red band."""
    import warnings

    import odc.stac
    import pystac

    assets = {"red": {"href": str(root / str(item["id"]) / "B04.tif"), "type": "image/tiff"}}
    properties = item["properties"] | {"proj:epsg": 32632}
    extensions = ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"]
    found = pystac.Item.from_dict(item | {"assets": assets, "properties": properties, "stac_extensions": extensions})
    config = {"sentinel-2-l2a": {"assets": {"*": {"data_type": "uint16", "nodata": 0}}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return odc.stac.load([found], bands=["red"], geobox=asked.geobox, stac_cfg=config, chunks=None)["red"].values[0]


def test_each_needed_block_is_fetched_once_for_all_places(archive):
    provider, files = archive
    requests = [request(2000 + 700 * i, 3000 + 400 * j) for i in range(8) for j in range(5)]
    assert all(isinstance(p, Patch) for p in fetch(provider, requests))
    assert max(files.requests.values()) == 1  # headers and blocks alike
    headers = [key for key in files.requests if key[1].startswith("0-")]
    assert len(headers) == 4 * 3  # three bands and the classification of three dates


def test_provenance_says_what_was_used(archive):
    provider, _ = archive
    [patch] = fetch(provider, [request(3000, 3000)])
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-23", "2022-06-13", "2022-06-03"]
    assert {s.dn_offset for s in patch.scenes} == {-1000.0}
    assert {s.dn_offset_reason for s in patch.scenes} == {"processing baseline 05.09"}
    assert patch.source == "test: sentinel-2-l2a"
    assert patch.clear_frac is not None
    assert patch.n_clear == 3


def test_the_scene_mask_leaves_clouds_out(archive, stored):
    provider, _ = archive
    asked = request(3000, 3000, SensorSpec(cloud_mask="scl"))
    [masked] = fetch(provider, [asked])
    assert np.nanmax(masked.dn) < 3000 + 1  # clouds are 8500 here
    [plain] = fetch(provider, [replace(asked, sensor=SensorSpec(composite="mosaic"))])
    assert np.nanmax(plain.dn) == 8500


def test_a_mosaic_reads_the_newest_scene_and_only_what_it_leaves(archive, stored):
    provider, files = archive
    root, items = stored
    inside, corner = (
        request(6000, 6000, SensorSpec(composite="mosaic")),
        request(400, 500, SensorSpec(composite="mosaic")),
    )
    [whole] = fetch(provider, [inside])
    np.testing.assert_array_equal(whole.dn[0], np.maximum(by_rasterio(root, items[2]["id"], inside) - 1000.0, 1))
    assert [s.datetime[:10] for s in whole.scenes] == ["2022-06-23"]
    assert {path.split("/")[1][11:19] for path, _ in files.requests} == {"20220623"}
    whole, holed = fetch(provider, [inside, corner])  # the corner of the tile is missing in every date
    assert len(whole.scenes) == 1
    assert len(holed.scenes) == 3
    assert np.isnan(holed.dn).any()


def test_the_least_cloudy_scenes_and_the_cloud_filter(archive):
    provider, _ = archive
    [one] = fetch(provider, [request(3000, 3000, SensorSpec(max_scenes=1))])
    assert len(one.scenes) == 1
    [every] = fetch(provider, [request(3000, 3000, SensorSpec(cloudy_pct=100))])
    assert len(every.scenes) == 4
    [none] = fetch(provider, [request(3000, 3000, SensorSpec(cloudy_pct=1))])
    assert isinstance(none, NoImageryError)
    assert "4 scene(s) before the cloud filter and 0 after" in str(none)


def test_a_place_or_time_without_scenes_says_so(archive):
    provider, _ = archive
    far = PatchRequest(place_geobox(PointBuffer(100, 10, 640), 10), JUNE, SensorSpec())
    later = replace(request(3000, 3000), temporal=TemporalSpec.range("2022-07-01", "2022-08-01"))
    for asked in (far, later):
        [error] = fetch(provider, [asked])
        assert isinstance(error, NoImageryError)
        assert "0 scene(s) before the cloud filter" in str(error)
    assert provider.plan([request(3000, 3000), far]).places_without_scene == (1,)


def test_a_plan_counts_what_a_fetch_reads_and_reads_no_pixel(archive):
    provider, files = archive
    asked = [request(3000, 3000), request(15_300, 4000)]
    plan = provider.plan(asked)
    assert (plan.places, plan.scenes_of, plan.places_without_scene) == (2, (3, 4), ())
    assert plan.covered == (1.0, 1.0)
    # both lie in blocks of 1024 px as a catalog's mostly are: one for the first place, two for the second on HOME
    assert plan.blocks == (3 + 1) * 4 + 3 * 4
    assert plan.requests == plan.blocks + 4 * 4
    assert plan.read_bytes == round(1024 * 1024 * 7 * (3 * 1.3 + 0.1))
    assert not files.requests


def test_a_plan_takes_the_size_of_a_file_from_its_item():
    scene = item_scene(
        assets={
            "red": {"href": "https://host/B04.tif", "file:size": 161_480_000, "proj:code": "EPSG:32633"},
            "green": {"href": "https://host/B03.tif"},
        },
        properties={"proj:shape": [10980, 10980], "proj:transform": [10, 0, 499_980, 0, -10, 5_300_040]},
    )
    from rs_embed.providers.stac.provider import _block_bytes

    assert scene.files["B4"].grid.crs == 32633
    assert scene.files["B3"].grid is None
    assert _block_bytes("B4", scene.files["B4"]) == pytest.approx(161_480_000 / 10980**2 * 0.75 * 1024**2)


def test_a_place_half_outside_of_its_scenes_is_told_by_the_plan(archive):
    provider, _ = archive
    plan = provider.plan([request(0, 3000)])
    assert plan.covered[0] == pytest.approx(0.5, abs=0.05)


def test_blocks_side_by_side_come_with_one_request(stored, tmp_path):
    root, items = stored
    wide = request(7680, 3000, buffer_m=7000)  # three blocks of 512 px from west to east
    with serve_archive(root, items[:1], tmp_path) as (api, files):
        provider = StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",)))
        [patch] = fetch(provider, [wide])
        assert isinstance(patch, Patch)
        np.testing.assert_array_equal(patch.dn[0], expected_median(root, items[:1], wide))
        blocks = [span for path, span in files.requests if path.endswith("B04.tif") and not span.startswith("0-")]
        assert len(blocks) == 2  # two rows


def test_a_catalog_with_the_fields_extension_is_asked_for_no_more_than_is_read(stored, tmp_path):
    """A catalog that says it knows the extension, in front of the real one, which does not."""
    import requests as http

    _, items = stored
    bodies: list[dict[str, object]] = []

    class Front(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            landing = http.get(f"{api}{self.path}").json()
            landing["conformsTo"].append("https://api.stacspec.org/v1.0.0/item-search#fields")
            self._send(json.dumps(landing).replace(api, front))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append(body)
            self._send(http.post(f"{api}{self.path}", json=body | {"fields": None}).text)

        def _send(self, text):
            self.send_response(200)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    with serve_stac(write_items(tmp_path / "items.json", items)) as api:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
        front = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            provider = StacProvider(StacCatalog(name="test", url=front, collections=("sentinel-2-l2a",)))
            assert provider.plan([request(3000, 3000)]).scenes_of == (3,)
            assert provider.plan([request(3000, 3100)]).scenes_of == (3,)
        finally:
            server.shutdown()
            server.server_close()
    assert "assets.scl" in bodies[0]["fields"]["include"]
    assert "assets.red" in bodies[0]["fields"]["include"]
    assert "assets.nir" not in bodies[0]["fields"]["include"]
    assert len(bodies) == 2  # the second place lies outside of what the first one asked for


def test_what_was_searched_is_not_searched_again(archive):
    provider, _ = archive
    asked = [request(3000, 3000), request(9000, 9000)]
    provider.plan(asked)
    searcher = provider._searcher
    provider.plan([request(6000, 6000)])  # inside of what was searched
    assert len(searcher._recent._listings) == 1


# --- the offset against the pixels -------------------------------------------------------------------


def one_scene(tmp_path: Path, asked: PatchRequest, offset: str = "item", **how) -> Patch:
    with serve_files(FileServer(tmp_path)) as files:
        item = write_scene(tmp_path, files.url, HOME, "2022-06-03", seed=1, overviews="AUTO", **how)
        with serve_stac(write_items(tmp_path / "items.json", [item])) as api:
            catalog = StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",))
            [patch] = fetch(StacProvider(catalog, offset=offset), [asked])
            assert max(files.requests.values()) == 1
    assert isinstance(patch, Patch)
    return patch


def test_an_offset_that_the_pixels_confirm_is_no_matter(tmp_path):
    patch = one_scene(tmp_path, request(3000, 3000), darkest=1001)
    assert patch.scenes[0].dn_offset == -1000
    assert patch.warnings == ()


def test_an_offset_that_is_already_out_is_warned_of_and_can_be_kept_out(tmp_path):
    """The item says baseline 05.09, and the pixels are dark: the archive has subtracted without saying so."""
    asked = request(3000, 3000)
    patch = one_scene(tmp_path, asked, darkest=1)
    assert patch.scenes[0].dn_offset == -1000
    [warning] = patch.warnings
    assert "are under DN 900, as if the offset of 2022 is already out" in warning
    decided = one_scene(tmp_path, asked, "pixels", darkest=1)
    assert decided.warnings == ()
    assert decided.scenes[0].dn_offset == 0
    assert "the pixels: " in decided.scenes[0].dn_offset_reason
    assert np.nanmedian(decided.dn) == pytest.approx(1500, abs=60)


def test_an_offset_that_is_still_in_is_seen_by_a_second_band(tmp_path):
    """The item says that it was subtracted, and no pixel of two bands is under 1000."""
    asked = request(3000, 3000)
    with serve_files(FileServer(tmp_path)) as files:
        item = write_scene(tmp_path, files.url, HOME, "2022-06-03", seed=1, overviews="AUTO", darkest=1040)
        item["properties"]["earthsearch:boa_offset_applied"] = True
        with serve_stac(write_items(tmp_path / "items.json", [item])) as api:
            catalog = StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",))
            [told] = fetch(StacProvider(catalog), [asked])
            [decided] = fetch(StacProvider(catalog, offset="pixels"), [asked])
    assert "begin at DN 104" in told.warnings[0]
    assert told.scenes[0].dn_offset == 0
    assert decided.scenes[0].dn_offset == -1000
    np.testing.assert_array_equal(decided.dn, told.dn - 1000)


@pytest.mark.parametrize(("shift", "seen"), [(0, False), (1000, None)])
def test_real_cogs_and_a_shifted_copy(shared, shift, seen):
    """A desert at 100 m: dark enough in blue to show that the offset is out; with 1000 added, red does not tell."""
    ends = []
    for band in ("B02", "B04"):
        [path] = (shared / "earth_search_cogs").glob(f"*{band}.tif")
        with rasterio.open(path) as file:
            values = file.read(1, out_shape=(file.height // 4, file.width // 4))
        ends.append(dark_pixels(np.where(values > 0, values + shift, 0).astype(np.uint16)))
    assert has_offset(ends) is seen


@pytest.mark.parametrize(("shift", "seen"), [(0, False), (1000, True)])
def test_real_ground_with_vegetation_and_a_shifted_copy(shared, shift, seen):
    ends = []
    with rasterio.open(shared / "time_series" / "openEO_2023-06-01Z.tif") as file:
        for index in (3, 1):
            values = file.read(index)
            ends.append(dark_pixels(np.where(values > 0, values + shift, 0).astype(np.uint16)))
    assert has_offset(ends) is seen


def test_the_real_cog_of_a_harmonised_archive_is_not_shifted_twice(shared, tmp_path):
    """Its item is made to claim baseline 05.10: the real pixels say that nothing is left to subtract."""
    document = json.loads((shared / "stac" / "earth_search_l2a_0214.json").read_text())
    item = document["features"][0] if "features" in document else document
    with serve_files(FileServer(shared / "earth_search_cogs")) as files:
        for key, asset in item["assets"].items():
            name = {"red": "B04", "green": "B03", "blue": "B02", "scl": "SCL"}.get(key)
            [path] = (shared / "earth_search_cogs").glob(f"*{name}.tif") if name else [None]
            asset["href"] = f"{files.url}/{path.name}" if path else "https://host/other.jp2"
            asset.pop("raster:bands", None)
        item["properties"]["s2:processing_baseline"] = "05.10"
        item["properties"].pop("earthsearch:boa_offset_applied", None)
        item["links"] = []
        with serve_stac(write_items(tmp_path / "items.json", [item])) as api:
            catalog = StacCatalog(name="test", url=api, collections=(item["collection"],))
            lon, lat = Transformer.from_crs(32629, 4326, always_xy=True).transform(250_000, 2_750_000)
            place = place_geobox(PointBuffer(lon, lat, 6400), 100)
            asked = PatchRequest(place, TemporalSpec.range("2020-02-01", "2020-03-01"), SensorSpec(scale_m=100))
            [told] = fetch(StacProvider(catalog), [asked])
            [decided] = fetch(StacProvider(catalog, offset="pixels"), [asked])
    assert "already out" in told.warnings[0]
    assert decided.scenes[0].dn_offset == 0
    with rasterio.open(next((shared / "earth_search_cogs").glob("*B04.tif"))) as file:
        row, col = file.index(*(place.affine * (0.5, 0.5)))
        np.testing.assert_array_equal(decided.dn[0], file.read(1)[row : row + 128, col : col + 128])


def test_one_file_with_several_bands_gives_each_its_own(tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.integers(1001, 4000, (3, 600, 600)).astype(np.uint16)
    for interleave in ("BAND", "PIXEL"):
        root = tmp_path / interleave
        with rasterio.MemoryFile() as memory:
            profile = {"count": 3, "height": 600, "width": 600, "dtype": "uint16", "nodata": 0}
            with memory.open(driver="GTiff", crs="EPSG:32633", transform=HOME.transform, **profile) as file:
                file.write(stack)
            root.mkdir()
            with memory.open() as file:
                options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "DEFLATE"}
                copy_raster(file, root / "stack.tif", driver="GTiff", interleave=interleave, **options)
        with serve_files(FileServer(root)) as files:
            bands = [{"name": name} for name in ("B02", "B03", "B04")]
            ring = [[14, 47], [16, 47], [16, 49], [14, 49], [14, 47]]
            outline = {"type": "Polygon", "coordinates": [ring]}
            asset = {"href": f"{files.url}/stack.tif", "eo:bands": bands}
            item = item_document(assets={"data": asset}, geometry=outline)
            with serve_stac(write_items(root / "items.json", [item])) as api:
                provider = StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",)))
                [patch] = fetch(provider, [request(3000, 3000)])
        assert isinstance(patch, Patch)
        top, left = (round(v) for v in (~HOME.transform * (patch.geobox.affine.c, patch.geobox.affine.f))[::-1])
        expected = stack[::-1, top : top + 128, left : left + 128] - 1000.0
        np.testing.assert_array_equal(patch.dn, expected)


TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE"}


@pytest.mark.parametrize(
    "options",
    [{**TILED, "nbits": 15}, {**TILED, "sparse_ok": True}, {"compress": "LZW"}],
    ids=["15 bits, as Planetary Computer has them", "empty blocks left out", "strips"],
)
def test_any_valid_tiff_of_a_catalog_is_swept_like_a_cog(stored, tmp_path, options):
    """Half of the place lies on a block that is empty."""
    root, items = stored
    asked = request(5120, 5000)
    for path in (root / str(items[0]["id"])).iterdir():
        with rasterio.open(path) as file:
            values, profile = file.read(), file.profile
        values[:, :512, :512] = 0
        profile = {k: profile[k] for k in ("height", "width", "count", "dtype", "crs", "transform", "nodata")}
        profile |= options if path.name.startswith("B") else TILED
        to = tmp_path / path.relative_to(root)
        to.parent.mkdir(exist_ok=True)
        with rasterio.open(to, "w", driver="GTiff", **profile) as file:
            file.write(values)
    with serve_archive(tmp_path, items[:1], tmp_path) as (api, _):
        provider = StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",)))
        [patch] = fetch(provider, [asked])
    assert isinstance(patch, Patch)
    assert patch.dropped == ()
    assert 0.4 < patch.valid.mean() < 0.8
    np.testing.assert_array_equal(patch.dn[0], expected_median(tmp_path, items[:1], asked))


def test_closing_early_stops_the_reader(archive):
    provider, _ = archive
    results = provider.fetch([request(2000 + 300 * i, 3000) for i in range(40)])
    next(results)
    results.close()
    deadline = time.monotonic() + 10
    while any(t.name == "rs-embed-background" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(t.name == "rs-embed-background" for t in threading.enumerate())


# --- faults ------------------------------------------------------------------------------------------


def test_faults_that_pass_change_nothing(archive):
    provider, files = archive
    requests = [request(2000 + 900 * i, 3000) for i in range(10)]
    calm = fetch(provider, requests)
    files.error_share, files.reset_share, files.corrupt_share = 0.10, 0.05, 0.02
    for a, b in zip(calm, fetch(provider, requests), strict=True):
        np.testing.assert_array_equal(a.dn, b.dn)
        assert b.dropped == ()


def test_a_header_that_arrives_corrupt_is_asked_for_again(stored):
    import asyncio

    from rs_embed.errors import FetchError
    from rs_embed.providers.http import RangeReader
    from rs_embed.providers.stac.cog import open_cog

    root, items = stored
    body = (root / str(items[0]["id"]) / "B04.tif").read_bytes()

    class Flaky(RangeReader):
        """A file whose first answers are noise."""

        def __init__(self, bad: int) -> None:
            super().__init__(client=None, in_flight=asyncio.Semaphore(1))  # type: ignore[arg-type]
            self.bad = bad

        async def get_range_async(self, path, *, start, end=None, length=None):
            self.bad -= 1
            stop = end if end is not None else start + length
            return bytes(stop - start) if self.bad >= 0 else body[start:stop]

    assert asyncio.run(open_cog(Flaky(2), "http://host/B04.tif")).grid.width == HOME.side_px
    with pytest.raises(FetchError, match="its header cannot be read"):
        asyncio.run(open_cog(Flaky(99), "http://host/B04.tif"))


@pytest.mark.parametrize(("statuses", "says"), [([404] * 9, "404 (1 attempt(s))"), ([403] * 9, "403 (1 attempt(s))")])
def test_a_dead_file_drops_its_scene_and_no_other(archive, statuses, says):
    provider, files = archive
    dead = "20220613_l2a_0509/B03.tif"
    files.status_of[dead] = statuses
    [patch] = fetch(provider, [request(3000, 3000)])
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-23", "2022-06-03"]
    [dropped] = patch.dropped
    assert "20220613" in dropped.id
    assert says in dropped.reason
    assert "127.0.0.1" in dropped.reason


def test_a_busy_server_is_waited_for(archive):
    provider, files = archive
    files.status_of["20220603_l2a_0509/B04.tif"] = [429]
    started = time.monotonic()
    [patch] = fetch(provider, [request(3000, 3000)])
    assert len(patch.scenes) == 3
    assert time.monotonic() - started >= 1  # what Retry-After said


def test_a_place_left_with_nothing_fails_alone(archive):
    provider, files = archive
    for day in ("03", "13", "23"):
        files.status_of[f"S2A_T33UVP_202206{day}_l2a_0509/B04.tif"] = [404] * 9
    here, east = fetch(provider, [request(3000, 3000), request(16_500, 4000)])
    assert isinstance(here, ProviderError)
    assert not isinstance(here, NoImageryError)
    assert "404" in str(here)
    assert isinstance(east, Patch)


def test_a_catalog_that_is_down_is_one_error_in_time():
    provider = resolve("stac:http://127.0.0.1:9/stac#sentinel-2-l2a")
    started = time.monotonic()
    with pytest.raises(ProviderError, match=r"the catalog 127\.0\.0\.1 cannot be reached.*'local:<folder>'"):
        list(provider.fetch([request(3000, 3000)]))
    assert time.monotonic() - started < 20


def signed_catalog(api: str, tokens: FileServer) -> StacCatalog:
    return StacCatalog(
        name="signed",
        url=api,
        collections=("sentinel-2-l2a",),
        sas_token_url=f"{tokens.url}/sas",
        signed_hosts="127.0.0.1",
    )


def test_signed_files_are_read_with_one_token_a_container_that_never_shows(stored, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    """Files that want a token, as Planetary Computer's do."""
    root, items = stored
    with serve_files(FileServer(root)) as files, serve_files(FileServer(tmp_path)) as tokens:
        files.token = "sig=fresh"
        moved = json.loads(json.dumps(items[:3]).replace("http://files", files.url))
        for item in moved:
            token = tmp_path / "sas" / "127" / item["id"]
            token.parent.mkdir(parents=True, exist_ok=True)
            token.write_text(json.dumps({"token": "sig=fresh", "msft:expiry": "2099-01-01T00:00:00Z"}))
        with serve_stac(write_items(tmp_path / "items.json", moved)) as api:
            catalog = signed_catalog(api, tokens)
            [patch] = fetch(StacProvider(catalog), [request(3000, 3000)])
    assert isinstance(patch, Patch)
    assert len(patch.scenes) == 3
    assert "sig=" not in repr(patch)
    assert "sig=" not in caplog.text
    assert set(files.queries) == {"sig=fresh"}
    assert len(tokens.queries) == 3  # one for each container, reused


def test_a_token_that_the_server_refuses_is_renewed(stored, tmp_path):
    root, items = stored
    with serve_files(FileServer(root)) as files, serve_files(FileServer(tmp_path)) as tokens:
        files.token = "sig=second"
        moved = json.loads(json.dumps(items[:1]).replace("http://files", files.url))
        token = tmp_path / "sas" / "127" / moved[0]["id"]
        token.parent.mkdir(parents=True)
        token.write_text(json.dumps({"token": "sig=first", "msft:expiry": "2099-01-01T00:00:00Z"}))
        with serve_stac(write_items(tmp_path / "items.json", moved)) as api:
            catalog = signed_catalog(api, tokens)
            results = StacProvider(catalog).fetch([request(3000, 3000)])
            threading.Timer(0.3, token.write_text, [token.read_text().replace("first", "second")]).start()
            files.delay_s = 0.5  # the first answers come when there is a second token
            [(_, patch)] = results
    assert isinstance(patch, Patch)
    assert {"sig=first", "sig=second"} <= set(files.queries)


# --- catalogs ----------------------------------------------------------------------------------------


def item_document(**changes) -> dict[str, object]:
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "links": [],
        "id": "S2A_T33UVP_20220603T101031_L2A",
        "collection": "sentinel-2-l2a",
        "bbox": [14, 47, 16, 49],
        "geometry": None,
        "properties": {
            "datetime": "2022-06-03T10:10:31.024Z",
            "grid:code": "MGRS-33UVP",
            "s2:processing_baseline": "04.00",
        },
        "assets": {"red": {"href": "https://host/B04.tif"}},
    }
    properties = item["properties"] | changes.pop("properties", {})
    return item | changes | {"properties": properties}


def item_scene(**changes) -> Scene:
    return scene_of_item(item_document(**changes), str)


def test_one_scene_in_two_collections_is_taken_once():
    both = ("sentinel-2-c1-l2a", "sentinel-2-l2a")
    old, new = item_scene(), item_scene(id="reprocessed", properties={"s2:processing_baseline": "05.10"})
    c1 = item_scene(id="c1", collection="sentinel-2-c1-l2a", properties={"datetime": "2022-06-03T10:10:31.9Z"})
    other = item_scene(id="other", properties={"grid:code": "MGRS-33UWP"})
    untiled = item_scene(id="S2A_33UVP_20220603_0_L2A", properties={"grid:code": None, "s2:mgrs_tile": None})
    assert [s.id for s in drop_duplicates([old, new], both)] == ["reprocessed"]
    assert [s.id for s in drop_duplicates([old, c1], both)] == ["c1"]
    assert [s.id for s in drop_duplicates([c1, new], both)] == ["reprocessed"]
    assert len(drop_duplicates([old, other], both)) == 2
    assert [s.id for s in drop_duplicates([untiled, c1], both)] == ["c1"]


@pytest.mark.parametrize(
    ("file", "bands"),
    [
        ("e84_v1_filter_1.json", {"B4", "B3", "B2", "SCL"}),
        ("earth_search_c1_13TDE_10_dates.json", {"B4", "B3", "B2", "SCL"}),
        ("pc_0510_2024.json", {"B4", "B3", "B2", "SCL"}),
    ],
)
def test_real_items_are_read_as_cogs_and_nothing_else(shared, file, bands):
    from rs_embed.providers.stac.search import file_address

    document = json.loads((shared / "stac" / file).read_text())
    items = [
        i for i in (document if isinstance(document, list) else document["features"]) if i["collection"].endswith("l2a")
    ]
    assert items
    for item in items:
        scene = scene_of_item(item, file_address)
        assert bands <= set(scene.files)
        assert all(f.path.endswith(".tif") and "?" not in f.path for f in scene.files.values())
        assert scene.cloud_pct is not None


def test_the_keyless_one_liner_fails_in_time_and_in_one_line_without_a_network():
    """`auto` on a machine whose proxy leads nowhere, which is as good as offline."""
    arguments = ["embed", "--model", "clip_eurosat_s2rgb", "--point", "121.5", "31.2", "--buffer-m", "2048"]
    code = f"from rs_embed.cli.main import main; main({[*arguments, '--start', '2022-06-01', '--end', '2022-09-01']})"
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | nowhere)
    assert time.monotonic() - started < 20
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "earth-search.aws.element84.com cannot be reached" in done.stderr


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("stac:", "stac:<api url>#<collection>"),
        ("stac:https://host/v1", "#<collection>"),
        ("stac:ftp://host/v1#c", "http or https"),
        ("stac:file:///etc/passwd#c", "http or https"),
        ("earth-search?offset=guess", "offset must be 'item' or 'pixels'"),
    ],
)
def test_an_address_that_is_no_api_is_refused(backend, says):
    with pytest.raises(ProviderError, match=says):
        resolve(backend)


def test_a_password_in_an_address_is_not_in_the_providers_name():
    provider = resolve("stac:https://user:secret@host:8443/v1?key=hidden#sentinel-2-l2a")
    assert provider.name == "stac:https://host:8443/v1#sentinel-2-l2a"


def test_a_provider_is_built_as_an_object_and_travels_without_its_credentials_showing():
    provider = StacProvider("https://user:secret@host/v1", collection="sentinel-2-l2a", offset="pixels")
    assert provider.name == "stac:https://host/v1#sentinel-2-l2a?offset=pixels"
    assert repr(provider) == "StacProvider('stac:https://host/v1#sentinel-2-l2a', offset='pixels')"
    assert "secret" not in repr(provider.catalog)
    copy = pickle.loads(pickle.dumps(provider))
    assert (copy.catalog, copy.offset) == (provider.catalog, "pixels")
    assert StacProvider("earth-search").catalog.collections == ("sentinel-2-c1-l2a", "sentinel-2-l2a")
    assert StacProvider("earth-search", "sentinel-2-l2a").catalog.collections == ("sentinel-2-l2a",)
    for arguments in (("https://host/v1",), ("elsewhere", "sentinel-2-l2a")):
        with pytest.raises(ProviderError, match="must be earth-search, planetary-computer, cdse, or an http or https"):
            StacProvider(*arguments)
    with pytest.raises(ProviderError, match="got 'guess'"):
        StacProvider("earth-search", offset="guess")


def test_the_known_catalogs_are_there():
    assert set(CATALOGS) == {"earth-search", "planetary-computer", "cdse"}
    assert resolve("auto").name == "earth-search"
    assert resolve("earth-search?offset=pixels").name == "earth-search?offset=pixels"


def test_a_place_of_the_archive_to_a_vector(archive):
    provider, _ = archive
    lon, lat = TO_LONLAT.transform(HOME.left + 3000, HOME.top - 3000)
    found = get_embedding("clip_eurosat_s2rgb", spatial=PointBuffer(lon, lat, 640), temporal=JUNE, backend=provider)
    assert found.data.shape == (192,)
    assert found.meta["n_scenes"] == 3
    assert "http" not in json.dumps(found.meta["scenes"])


def test_a_second_model_reads_no_network_where_there_is_a_cache(archive, tmp_path):
    provider, files = archive
    cached = CachedProvider(provider, tmp_path / "cache", 10**9)
    lon, lat = TO_LONLAT.transform(HOME.left + 3000, HOME.top - 3000)
    asked = {"spatial": PointBuffer(lon, lat, 640), "temporal": JUNE, "backend": cached}
    first = get_embedding("clip_eurosat_s2rgb", **asked)
    files.requests.clear()
    model = write_checkpoint(tmp_path / "other")
    second = get_embedding("remoteclip_s2rgb", checkpoint=str(model), **asked)
    assert not files.requests
    assert second.meta["scenes"] == first.meta["scenes"]
    assert second.data.shape != first.data.shape
