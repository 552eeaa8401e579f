"""Every row of the table of `docs/local-files.md`, against a folder of that layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pystac
import pytest
import rasterio
import xarray

from fakes import write_raster
from rs_embed import LocalProvider, ProviderError, SensorSpec
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from safe_products import LONG, RGB, write_jp2, write_safe, zip_folder
from test_local_products import ALWAYS, GEOBOX, WIDER
from test_local_series import cube, write_cube

DOCUMENT = Path(__file__).parents[1] / "docs" / "local-files.md"
EMPTY = slice(30, 50)
"""Rows of each file that hold nodata: rows 10 to 29 of the place."""
OLD, NEW = "S2A_MSIL2A_20210603T101031_N0300_R022_T33UVP_20210603T140000", "N0500_R022_T33UVP_20230203T140000"


def holed(value: int, nodata: int = 0) -> np.ndarray:
    image = np.full((1, 100, 100), value, np.uint16)
    image[:, EMPTY] = nodata
    return image


def compact(root: Path) -> None:
    write_safe(root, WIDER, offsets={"B2": -1000, "B3": -900, "B4": -800}, quantification=20_000, empty_rows=EMPTY)


def long_names(root: Path) -> None:
    tiles = ("33UVP", "33UWP")
    granules = tuple(f"S2A_USER_MSI_L2A_TL_SGS__20160504T163055_A004524_T{tile}_N02.02" for tile in tiles)
    write_safe(root, WIDER, product=LONG, granules=granules, baseline="02.02", quantification=20_000, empty_rows=EMPTY)


def names_alone(root: Path) -> None:
    write_safe(root, WIDER, metadata=False, empty_rows=EMPTY)


def zipped(root: Path) -> None:
    folder = write_safe(
        root.parent / "unpacked", WIDER, offsets=dict.fromkeys(("B2", "B3", "B4"), -900), empty_rows=EMPTY
    )
    zip_folder(folder, root / f"{folder.name}.zip")


def l1c(root: Path) -> None:
    product = root / "S2A_MSIL1C_20220603T101031_N0400_R022_T33UVP_20220603T140000.SAFE"
    for name, value in RGB.items():
        path = product / "GRANULE" / "L1C_T33UVP_A036282" / "IMG_DATA" / f"T33UVP_20220603T101031_{name}.jp2"
        write_jp2(path, holed(value), WIDER)
    rows = "".join(f'<RADIO_ADD_OFFSET band_id="{i}">-900</RADIO_ADD_OFFSET>' for i in range(13))
    text = f"<a><QUANTIFICATION_VALUE>10000</QUANTIFICATION_VALUE><l>{rows}</l></a>"
    (product / "MTD_MSIL1C.xml").write_text(text)


def items(root: Path) -> list[pystac.Item]:
    west, south, east, north = 14.9, 47.9, 15.1, 48.1
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    facts = {"s2:processing_baseline": "05.09", "eo:cloud_cover": 5.0}
    outline = {"type": "Polygon", "coordinates": [ring]}
    item = pystac.Item("scene", outline, [west, south, east, north], datetime(2022, 6, 3, tzinfo=UTC), facts)
    for key, name in (("red", "B04"), ("green", "B03"), ("B02", "B02")):
        path = write_raster(root / f"x_{name}.tif", holed(RGB[name], 7), transform=WIDER, nodata=7)
        item.add_asset(key, pystac.Asset(str(path)))
    return [item]


def static_catalog(root: Path) -> None:
    catalog = pystac.Catalog("archive", "test")
    catalog.add_items(items(root.parent / "elsewhere"))
    catalog.normalize_and_save(str(root), pystac.CatalogType.SELF_CONTAINED)


def folder_of_items(root: Path) -> None:
    for item in items(root):
        (root / f"{item.id}.json").write_text(json.dumps(item.to_dict()))


def band_files(root: Path) -> None:
    for name, value in RGB.items():
        write_raster(
            root / f"x_20220603_{name}.tif", holed(value, 7), transform=WIDER, nodata=7, scale=1e-4, offset=-0.1
        )
    write_raster(root / "x_20220603_SCL.tif", np.full((1, 100, 100), 4, np.uint8), transform=WIDER)


def described_bands(root: Path) -> None:
    stack = np.concatenate([holed(value) for value in (*RGB.values(), 4)])
    write_raster(root / "x_20210603.tif", stack, transform=WIDER, descriptions=("red", "B03 (560 nm)", "B2", "SCL"))


def variables(root: Path) -> None:
    packing = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": -1}
    series = cube("float64").where(~empty_rows(cube())) / 10_000
    series["SCL"] = xarray.full_like(cube()["B04"], 4).astype("uint8")
    write_cube(root / "series.nc", series, dict.fromkeys(RGB, packing))


def dimension(root: Path) -> None:
    series = cube("int16").where(~empty_rows(cube()), 0).astype("int16")
    write_cube(root / "series.nc", series.to_array("bands").rename("reflectance").to_dataset())


def empty_rows(series: xarray.Dataset) -> xarray.DataArray:
    return xarray.zeros_like(series["B04"], bool) | xarray.DataArray(np.isin(np.arange(100), range(30, 50)), dims="y")


def two_baselines(root: Path) -> None:
    for product, shift in ((OLD, 5000), (OLD[:27] + NEW, 1000)):
        for name, value in RGB.items():
            write_raster(root / f"{product}_{name}.tif", holed(value + shift), transform=WIDER)


def nameless(root: Path) -> None:
    write_raster(root / "x_20210603.tif", np.concatenate([holed(v) for v in RGB.values()]), transform=WIDER)


def pictures(root: Path) -> None:
    picture = np.full((3, 100, 100), 90, np.uint8)
    for name in ("TCI", "PVI", "MSK_DETFOO_B02", "AOT", "WVP", "thumbnail"):
        write_raster(root / f"T33UVP_20210603T101031_{name}.tif", picture, transform=WIDER)
    write_raster(root / "x_20210603.tif", picture, transform=WIDER, descriptions=("B04", "B03", "B02"))


def virtual(root: Path) -> None:
    for name in RGB:
        path = write_raster(root.parent / f"x_20210603_{name}.tif", holed(9), transform=WIDER)
        source = f"<SimpleSource><SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        band = f'<VRTRasterBand dataType="UInt16" band="1">{source}</VRTRasterBand>'
        grid = "<SRS>EPSG:32633</SRS><GeoTransform>500000, 10, 0, 5300000, 0, -10</GeoTransform>"
        text = f'<VRTDataset rasterXSize="100" rasterYSize="100">{grid}{band}</VRTDataset>'
        (root / f"x_20210603_{name}.vrt").write_text(text)
        (root / f"x_20210613_{name}.tif").write_text(text)


def other_missions(root: Path) -> None:
    for stem in ("LC08_L2SP_190027_20210603_20210610_02_T1_SR", "HLS.S30.T33UVP.20210603", "MOD09GA.20210603"):
        for name in RGB:
            write_raster(root / f"{stem}_{name}.tif", holed(9), transform=WIDER)
    item = items(root / "elsewhere")[0].to_dict() | {"collection": "landsat-c2-l2"}
    item["properties"] = {"datetime": "2021-06-03T10:10:31Z", "platform": "landsat-8"}
    (root / "elsewhere" / "item.json").write_text(json.dumps(item))


class Expected(NamedTuple):
    write: Callable[[Path], None]
    medians: tuple[int, ...] = ()  # where 2300, 2200, 2100 are stored; none where the layout is left out
    scenes: int = 1
    sensor: SensorSpec = SensorSpec()


L1C = SensorSpec(collection="sentinel-2-l1c")
EXPECTED = {
    "SAFE of L2A, compact names": Expected(compact, (750, 650, 550)),  # (2300 - 800) / 2, …
    "SAFE of L2A, long names": Expected(long_names, (1150, 1100, 1050), scenes=2),
    "SAFE of L2A without its metadata files": Expected(names_alone, (1300, 1200, 1100)),
    "SAFE of L2A in a zip archive": Expected(zipped, (1400, 1300, 1200)),
    "SAFE of L1C": Expected(l1c, (1400, 1300, 1200), sensor=L1C),
    "static STAC catalog": Expected(static_catalog, (1300, 1200, 1100)),
    "STAC items in a folder": Expected(folder_of_items, (1300, 1200, 1100)),
    "one file a band": Expected(band_files, (1300, 1200, 1100)),
    "one file with all bands": Expected(described_bands, (2300, 2200, 2100)),
    "netCDF with a time axis, bands as variables": Expected(variables, (2300, 2200, 2100), scenes=3),
    "netCDF with a time axis, bands as a dimension": Expected(dimension, (2300, 2200, 2100), scenes=3),
    "two baselines of one acquisition": Expected(two_baselines, (2300, 2200, 2100)),
    "raster with several bands": Expected(nameless),
    "pictures, masks and layers": Expected(pictures),
    "virtual rasters": Expected(virtual),
    "rasters and items of another mission": Expected(other_missions),
}


def table() -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def expected(layout: str) -> Expected:
    [name] = [name for name in EXPECTED if layout.startswith(name)]
    return EXPECTED[name]


def test_every_layout_that_is_tested_is_in_the_table():
    assert len(table()) == len(EXPECTED)
    assert {id(expected(row[0])) for row in table()} == {id(case) for case in EXPECTED.values()}


@pytest.mark.parametrize("row", table(), ids=lambda row: re.sub(r"\W+", "-", row[0])[:40])
def test_a_layout_is_read_as_the_table_says(tmp_path, row):
    layout, found, bands, _, nodata, read_by = row
    case, folder = expected(layout), tmp_path / "x"
    folder.mkdir()
    case.write(folder)
    if not case.medians:
        assert found == "left out"
        with pytest.raises(ProviderError, match="no usable Sentinel-2 scene"):
            LocalProvider(folder)
        return
    provider = LocalProvider(folder)
    assert found.startswith("1 scene")
    assert len(provider.scenes) == case.scenes
    for scene in provider.scenes:
        assert set(scene.files) - {"SCL"} == {"B2", "B3", "B4"}
        assert "SCL" not in scene.files or "SCL" in bands or "scl" in bands
        assert ("/vsizip/" in scene.files["B4"].path) == ("/vsizip/" in read_by)
        with rasterio.open(scene.files["B4"].path) as file:
            assert read_by.removeprefix("GDAL, ").split()[0] == file.driver
    [(_, patch)] = provider.fetch([PatchRequest(GEOBOX, ALWAYS, case.sensor)])
    assert isinstance(patch, Patch)
    assert tuple(round(float(np.nanmedian(band))) for band in patch.dn) == case.medians
    observed = np.ones(GEOBOX.shape, bool)
    observed[10:30] = False
    np.testing.assert_array_equal(patch.valid, observed, err_msg=f"nodata: {nodata}")
