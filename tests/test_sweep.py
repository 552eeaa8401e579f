"""Places of local files are read together: what is opened, and that no place's pixels depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.shutil import copy as copy_raster

from fakes import write_raster
from local_archive import LEFT, SIDE_PX, TOP, fetch_local, read_onto
from rs_embed import LocalProvider, PointBuffer, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest

JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


def requests_of(n: int, sensor: SensorSpec) -> list[PatchRequest]:
    """Places at random on the archive's 6 km."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, SIDE_PX - 64, (n, 2))
    transforms = [Affine(10, 0, LEFT + 10 * col, 0, -10, TOP - 10 * row) for row, col in corners]
    return [PatchRequest(GeoBox((64, 64), transform, "EPSG:32633"), JUNE, sensor) for transform in transforms]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that GDAL opens."""
    names: list[str] = []
    real = rasterio.open

    def count(path, *arguments, **named):
        names.append(str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(rasterio, "open", count)
    return names


def write_bands(folder: Path, **options) -> Path:
    """One product of three bands, in some layout of TIFF."""
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    for seed, name in enumerate(("B04", "B03", "B02")):
        values = np.random.default_rng(seed).integers(1, 4000, (1, SIDE_PX, SIDE_PX)).astype(np.uint16)
        stored = write_raster(folder / "plain.tif", values, transform=transform, nodata=0)
        product = "S2A_MSIL2A_20210603T101031_N0300_R022_T33UVP_20210603T140000"
        copy_raster(stored, folder / f"{product}_{name}.tif", **TILED | options)
        stored.unlink()
    return folder


@pytest.mark.parametrize("composite", ["median", "mosaic"])
def test_places_read_together_are_those_read_one_by_one(tmp_path, composite):
    root = write_bands(tmp_path)
    year = TemporalSpec.range("2021-06-01", "2021-07-01")
    requests = [replace(r, temporal=year) for r in requests_of(12, SensorSpec(composite=composite))]
    together = dict(LocalProvider(root).fetch(requests))
    assert sorted(together) == list(range(12))
    for position, request in enumerate(requests[:4]):
        patch = together[position]
        assert isinstance(patch, Patch)
        np.testing.assert_array_equal(patch.dn, fetch_local(root, request).dn)


def test_what_many_places_open_does_not_grow_with_their_number(tmp_path, opened):
    root = write_bands(tmp_path, compress="lzw")  # which GDAL reads
    year = TemporalSpec.range("2021-06-01", "2021-07-01")
    counts = []
    for n in (20, 200):
        provider = LocalProvider(root)
        opened.clear()
        list(provider.fetch([replace(r, temporal=year) for r in requests_of(n, SensorSpec())]))
        counts.append(len(opened))
    assert counts[0] == counts[1] == 3 * (1 + 3)  # a header and three rows of blocks for each band


def test_a_time_series_is_opened_for_all_its_dates_at_once(tmp_path, opened):
    xarray = pytest.importorskip("xarray")
    days = np.arange("2022-06-01", "2022-06-13", dtype="datetime64[D]").astype("M8[ns]")
    rng = np.random.default_rng(0)
    x, y = LEFT + 5 + 10.0 * np.arange(80), TOP - 5 - 10.0 * np.arange(80)
    cubes = {n: rng.integers(1, 4000, (len(days), 80, 80)).astype(np.uint16) for n in ("B04", "B03", "B02")}
    axes = {"time": days, "y": y, "x": x}
    cube = xarray.Dataset({n: (("time", "y", "x"), v, {"grid_mapping": "crs"}) for n, v in cubes.items()}, axes)
    wkt = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    cube["crs"] = ((), 0, {"crs_wkt": wkt, "spatial_ref": wkt, "grid_mapping_name": "transverse_mercator"})
    cube["x"].attrs |= {"standard_name": "projection_x_coordinate", "units": "m"}
    cube["y"].attrs |= {"standard_name": "projection_y_coordinate", "units": "m"}
    cube.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    provider = LocalProvider(tmp_path)
    opened.clear()
    corners = ((0, 0), (8, 0), (0, 16), (16, 16))
    grids = [GeoBox((64, 64), Affine(10, 0, LEFT + 10 * c, 0, -10, TOP - 10 * r), "EPSG:32633") for r, c in corners]
    found = dict(provider.fetch([PatchRequest(grid, JUNE, SensorSpec()) for grid in grids]))
    assert len(opened) == 3 * 2  # a header and a block for each variable
    for position, (row, col) in enumerate(corners):
        patch = found[position]
        assert isinstance(patch, Patch)
        assert len(patch.scenes) == len(days)
        expected = np.stack([np.median(v[:, row : row + 64, col : col + 64], axis=0) for v in cubes.values()])
        np.testing.assert_array_equal(patch.dn, expected)


@pytest.mark.parametrize("layout", [TILED, {"driver": "GTiff"}])
def test_a_mask_in_a_file_beside_is_honoured(tmp_path, layout):
    """The fast reader sees one file: another one beside it sends both to GDAL."""
    values = np.random.default_rng(0).integers(1, 4000, (1, 256, 256)).astype(np.uint16)
    mask = values[0] % 3 != 0
    grid = Affine(10, 0, LEFT, 0, -10, TOP)
    size = {"height": 256, "width": 256, "count": 1, "dtype": "uint16", "crs": "EPSG:32633", "transform": grid}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(tmp_path / "a.tif", "w", **size, **layout) as file,
    ):
        file.write(values)
        file.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists()
    pixels = read_onto(tmp_path / "a.tif", 1, GeoBox((256, 256), grid, "EPSG:32633"))
    np.testing.assert_array_equal(pixels.valid, mask)


def test_a_large_place_in_another_zone_is_the_sum_of_its_parts(tmp_path):
    """Its coordinates are computed strip by strip."""
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(15.0, 48.0)
    values = np.random.default_rng(0).integers(1, 4000, (1, 900, 900)).astype(np.uint16)
    grid = Affine(10, 0, x - 4500, 0, -10, y + 4500)
    path = write_raster(tmp_path / "a.tif", values, transform=grid, crs="EPSG:32632")
    geobox = place_geobox(PointBuffer(15.0, 48.0, 4000), 10)  # 800 px, 640,000 pixels: three strips
    whole = read_onto(path, 1, geobox)
    assert whole.valid.mean() > 0.9
    for part in (np.s_[0:60, 100:400], np.s_[300:350, 0:800], np.s_[740:800, 500:800]):
        alone = read_onto(path, 1, geobox[part])
        np.testing.assert_array_equal(whole.valid[part], alone.valid)
        np.testing.assert_array_equal(whole.values[0][part], alone.values[0])
