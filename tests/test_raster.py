from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from fakes import write_raster
from local_archive import read_onto
from rs_embed import PointBuffer, ProviderError
from rs_embed.grid import place_geobox
from rs_embed.providers.raster import read_header

PLACE = PointBuffer(15.0, 48.0, 300)  # on the central meridian of zone 33
GEOBOX = place_geobox(PLACE, 10)
LEFT, TOP = GEOBOX.affine.c, GEOBOX.affine.f


def values(height: int = 100, width: int = 100, dtype: str = "uint16", bands: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 9000, (bands, height, width)).astype(dtype)


def by_rasterio(path, geobox, index: int = 1) -> np.ndarray:
    """The value of the source pixel under each target centre, asked of rasterio one by one; NaN outside."""
    height, width = geobox.shape
    cols, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = geobox.affine * (cols, rows)
    with rasterio.open(path) as file:
        if file.crs.to_epsg() != geobox.crs.epsg:
            x, y = Transformer.from_crs(geobox.crs.epsg, file.crs.to_epsg(), always_xy=True).transform(x, y)
        out = np.full(x.shape, np.nan)
        data = file.read(index)
        for at in np.ndindex(*x.shape):
            row, col = file.index(x[at], y[at])
            if 0 <= row < file.height and 0 <= col < file.width:
                out[at] = data[row, col]
    return out


def read(path, geobox=GEOBOX, index: int = 1) -> np.ndarray:
    pixels = read_onto(path, index, geobox)
    return np.where(pixels.valid, pixels.values[0].astype(float), np.nan)


def test_a_file_on_the_same_grid_is_read_as_it_is(tmp_path):
    stored = values()
    path = write_raster(tmp_path / "a.tif", stored, transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200))
    np.testing.assert_array_equal(read(path), stored[0, 20:80, 20:80])


@pytest.mark.parametrize(
    "transform",
    [
        Affine(10, 0, LEFT - 203, 0, -10, TOP + 197),  # not aligned
        Affine(20, 0, LEFT - 200, 0, -20, TOP + 200),  # coarser
        Affine(7, 0, LEFT - 30, 0, -13, TOP + 30),  # oblong pixels
        Affine(10, 0, LEFT - 200, 0, 10, TOP - 800),  # south-up
        Affine(9.7, 1.3, LEFT - 201.37, 1.3, -9.7, TOP + 98.61),  # rotated
    ],
)
def test_any_transform_gives_the_pixel_under_each_centre(tmp_path, transform):
    path = write_raster(tmp_path / "a.tif", values(), transform=transform)
    np.testing.assert_array_equal(read(path), by_rasterio(path, GEOBOX))


@pytest.mark.parametrize("epsg", [32632, 32634, 3035, 3857])
def test_another_crs_is_read_by_the_exact_transform(tmp_path, epsg):
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(PLACE.lon, PLACE.lat)
    path = write_raster(
        tmp_path / "a.tif", values(200, 200), transform=Affine(10, 0, x - 1000, 0, -10, y + 1000), crs=f"EPSG:{epsg}"
    )
    np.testing.assert_array_equal(read(path), by_rasterio(path, GEOBOX))
    assert not np.isnan(read(path)).any()


def test_the_answer_does_not_depend_on_the_window(tmp_path):
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(PLACE.lon, PLACE.lat)
    path = write_raster(
        tmp_path / "a.tif", values(200, 200), transform=Affine(10, 0, x - 1000, 0, -10, y + 1000), crs="EPSG:32632"
    )
    whole = read(path)
    np.testing.assert_array_equal(read(path, GEOBOX[17:40, 5:50]), whole[17:40, 5:50])


def test_a_place_partly_outside_is_invalid_there(tmp_path):
    path = write_raster(tmp_path / "a.tif", values(), transform=Affine(10, 0, LEFT + 250, 0, -10, TOP - 100))
    got = read(path)
    np.testing.assert_array_equal(got, by_rasterio(path, GEOBOX))
    assert np.isnan(got[:10]).all()
    assert np.isnan(got[:, :25]).all()
    assert not np.isnan(got[10:, 25:]).any()


def test_a_place_wholly_outside_is_invalid(tmp_path):
    path = write_raster(tmp_path / "a.tif", values(), transform=Affine(10, 0, LEFT + 9000, 0, -10, TOP))
    assert np.isnan(read(path)).all()


@pytest.mark.parametrize(
    ("dtype", "nodata", "empty"),
    [
        ("uint16", 0, 0),
        ("uint16", 65_535, 65_535),
        ("int16", 32_767, 32_767),
        ("int16", -32_768, -32_768),
        ("uint16", None, 0),  # Sentinel-2's own: DN 0 is no data where nothing is declared
        ("float32", np.nan, np.nan),
        ("float32", -9999.0, -9999.0),
        ("float32", None, np.nan),
    ],
)
def test_no_data_is_what_the_file_declares(tmp_path, dtype, nodata, empty):
    stored = values(dtype=dtype)
    stored[0, 30:40, 30:50] = empty
    path = write_raster(
        tmp_path / "a.tif", stored, transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200), nodata=nodata
    )
    valid = read_onto(path, 1, GEOBOX).valid
    expected = np.ones((60, 60), bool)
    expected[10:20, 10:30] = False
    np.testing.assert_array_equal(valid, expected)


def test_zero_is_empty_also_where_another_no_data_is_declared(tmp_path):
    stored = values()
    stored[0, 30, 30] = 0
    path = write_raster(
        tmp_path / "a.tif", stored, transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200), nodata=65_535
    )
    valid = read_onto(path, 1, GEOBOX).valid
    assert not valid[10, 10]
    assert valid.sum() == valid.size - 1


def test_an_internal_mask_is_honoured(tmp_path):
    mask = np.full((100, 100), 255, np.uint8)
    mask[30:40, 30:50] = 0
    path = write_raster(tmp_path / "a.tif", values(), transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200), mask=mask)
    valid = read_onto(path, 1, GEOBOX).valid
    assert not valid[10:20, 10:30].any()
    assert valid.sum() == 60 * 60 - 10 * 20


def test_scale_and_offset_tags_are_told(tmp_path):
    path = write_raster(
        tmp_path / "a.tif",
        values(),
        transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200),
        scale=0.0001,
        offset=-0.1,
    )
    pixels = read_onto(path, 1, GEOBOX)
    assert (pixels.scale, pixels.offset) == (0.0001, -0.1)


def test_a_large_grid_read_in_strips_equals_rasterio(tmp_path):
    stored = values(2100, 2100)
    geobox = place_geobox(PointBuffer(15.0, 48.0, 10_500), 10)
    path = write_raster(tmp_path / "a.tif", stored, transform=geobox.affine)
    np.testing.assert_array_equal(read(path, geobox), stored[0])


def test_a_place_that_takes_gigabytes_of_a_file_is_refused_before_they_are_read(tmp_path):
    grid = {"width": 200_000, "height": 200_000, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    layout = {"tiled": True, "SPARSE_OK": True, "BIGTIFF": "YES", "compress": "DEFLATE"}
    path = tmp_path / "drone.tif"
    with rasterio.open(path, "w", "GTiff", transform=Affine(0.01, 0, 5e5, 0, -0.01, 5.3e6), **grid, **layout):
        pass
    lon, lat = Transformer.from_crs(32633, 4326, always_xy=True).transform(501_000, 5_299_000)
    geobox = place_geobox(PointBuffer(lon, lat, 300), 10)
    with pytest.raises(ProviderError, match=r"200000 x 200000 px, and the place would take 6,\d+ MB of it"):
        read_onto(path, 1, geobox)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_without_georeference_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", count=1, height=4, width=4, dtype="uint8") as file:
        file.write(np.ones((1, 4, 4), np.uint8))
    with pytest.raises(ProviderError, match=r"no georeference.*input_chw"):
        read_header(str(path))


@pytest.mark.parametrize("content", [b"", b"not a raster", b"II*\x00\x08\x00\x00\x00"])
def test_a_file_that_is_no_raster_is_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.tif"
    path.write_bytes(content)
    with pytest.raises(ProviderError, match=r"broken\.tif"):
        read_onto(path, 1, GEOBOX)


def test_a_file_cut_short_is_an_error_not_black_pixels(tmp_path):
    path = write_raster(tmp_path / "cut.tif", values(), transform=Affine(10, 0, LEFT - 200, 0, -10, TOP + 200))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ProviderError, match=r"cut\.tif"):
        read_onto(path, 1, GEOBOX)


def test_a_header_tells_bands_and_bounds(tmp_path):
    path = write_raster(
        tmp_path / "a.tif",
        values(bands=3),
        transform=GEOBOX.affine,
        descriptions=("B04", "B03", "B02"),
    )
    header = read_header(str(path))
    assert (header.bands, header.descriptions, header.resolution_m) == (3, ("B04", "B03", "B02"), 10)
    west, south, east, north = header.bounds_lonlat
    assert west < PLACE.lon < east
    assert south < PLACE.lat < north
