from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray
from pyproj import CRS

from local_archive import fetch_local
from rs_embed import LocalProvider, PointBuffer, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest

GEOBOX = place_geobox(PointBuffer(15.0, 48.0, 300), 10)
PX = 100
DAYS = np.array(["2021-06-03T10:10:31", "2021-06-13T10:10:31", "2021-06-23T10:10:31"], "datetime64[ns]")
ALWAYS = TemporalSpec.range("2015-01-01", "2026-01-01")
STORED = {"B04": 2300, "B03": 2200, "B02": 2100}


def write_cube(path: Path, dataset: xarray.Dataset, encoding: dict[str, dict[str, object]] | None = None) -> Path:
    """Write variables of (time, y, x) with the grid that has the place in its middle, as odc-stac and openEO do."""
    x = GEOBOX.affine.c - 200 + 10 * (np.arange(PX) + 0.5)
    y = GEOBOX.affine.f + 200 - 10 * (np.arange(PX) + 0.5)
    dataset = dataset.assign_coords(
        x=("x", x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        y=("y", y, {"standard_name": "projection_y_coordinate", "units": "m"}),
        spatial_ref=((), 0, CRS.from_epsg(32633).to_cf()),
    )
    for variable in dataset.data_vars.values():
        variable.attrs["grid_mapping"] = "spatial_ref"
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = "scipy" if path.name.startswith("classic") else "h5netcdf"
    dataset.to_netcdf(path, engine=engine, encoding=encoding)
    return path


def cube(dtype: str = "uint16", **attrs: object) -> xarray.Dataset:
    """Three dates whose DN rise by 10 a date, so that the median is the second one."""
    steps = np.arange(-10, 20, 10)[:, None, None] + np.zeros((1, PX, PX))
    variables = {name: (("time", "y", "x"), (value + steps).astype(dtype), attrs) for name, value in STORED.items()}
    return xarray.Dataset(variables, {"time": DAYS})


def fetch(path: Path, sensor: SensorSpec | None = None, temporal: TemporalSpec = ALWAYS) -> Patch:
    return fetch_local(path, PatchRequest(GEOBOX, temporal, sensor or SensorSpec()))


def medians(patch: Patch) -> list[float]:
    return [round(float(np.nanmedian(b)), 2) for b in patch.dn]


@pytest.mark.parametrize("name", ["fields.nc", "häß #1/with space.nc", "classic.nc"])
def test_each_time_step_of_a_netcdf_is_a_scene_in_a_folder_or_alone(tmp_path, name):
    path = write_cube(tmp_path / name, cube("int16"))
    for location in (tmp_path, path):
        patch = fetch(location)
        assert medians(patch) == [2300, 2200, 2100]
        assert [s.datetime for s in patch.scenes] == [
            "2021-06-23T10:10:31Z",
            "2021-06-13T10:10:31Z",
            "2021-06-03T10:10:31Z",
        ]
    one = fetch(path, temporal=TemporalSpec.range("2021-06-03", "2021-06-13"))
    assert medians(one) == [2290, 2190, 2090]


def test_a_series_of_one_step_is_a_scene(tmp_path):
    write_cube(tmp_path / "variables.nc", cube().isel(time=[1]))
    stacked = cube().isel(time=[2]).to_array("bands").rename("reflectance").transpose("time", "bands", "y", "x")
    write_cube(tmp_path / "dimension.nc", stacked.to_dataset())
    assert [s.acquired.day for s in LocalProvider(tmp_path).scenes] == [23, 13]
    assert medians(fetch(tmp_path)) == [2305, 2205, 2105]


@pytest.mark.parametrize("order", [("time", "bands", "y", "x"), ("bands", "time", "y", "x")])
def test_bands_may_be_a_dimension(tmp_path, order):
    stacked = cube().to_array("bands").rename("reflectance").transpose(*order)
    write_cube(tmp_path / "stack.nc", stacked.to_dataset())
    assert medians(fetch(tmp_path)) == [2300, 2200, 2100]


def test_rows_from_south_to_north_are_turned(tmp_path):
    ramp = cube()
    rows = 1000 + np.arange(PX)[None, :, None] + np.zeros((3, 1, PX))
    ramp["B04"] = (("time", "y", "x"), rows.astype("uint16"))
    write_cube(tmp_path / "down" / "a.nc", ramp)
    flipped = write_cube(tmp_path / "up" / "a.nc", ramp)
    with xarray.open_dataset(flipped, engine="h5netcdf") as dataset:
        turned = dataset.isel(y=slice(None, None, -1)).load()
    for variable in turned.data_vars.values():
        variable.encoding.pop("grid_mapping", None)
        variable.attrs["grid_mapping"] = "spatial_ref"
    turned.to_netcdf(flipped, engine="h5netcdf")
    np.testing.assert_array_equal(fetch(tmp_path / "up").dn, fetch(tmp_path / "down").dn)
    assert fetch(tmp_path / "up").dn[0, 0, 0] == 1020


def test_packed_reflectance_is_unpacked_by_its_scale_and_offset(tmp_path):
    packing = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": -32_000}
    reflectance = (cube("float64") / 10_000).where(lambda ds: ds.x > 3)
    write_cube(tmp_path / "packed.nc", reflectance, dict.fromkeys(STORED, packing))
    patch = fetch(tmp_path)
    assert medians(patch) == [2300, 2200, 2100]
    assert patch.scenes[0].dn_offset == -1000


def test_reflectance_in_floats_is_scaled_to_dn(tmp_path):
    """Sentinel Hub and openEO write 0…1 in float32, NaN where nothing was seen, and no tags."""
    reflectance = (cube("float64") / 10_000).where(lambda ds: ds.x > 3).astype("float32")
    write_cube(tmp_path / "a.nc", reflectance)
    patch = fetch(tmp_path)
    assert medians(patch) == [2300, 2200, 2100]
    assert "are reflectance" in patch.scenes[0].dn_offset_reason


def test_empty_pixels_are_not_observed_whichever_way_they_are_marked(tmp_path):
    """`_FillValue`, odc-stac's `nodata`, NaN, netCDF's default for unsigned types (65535), and Sentinel-2's 0."""
    holes = np.zeros((3, PX, PX), bool)
    holes[:, 30:50] = True  # rows 10 to 29 of the place

    def holed(dtype: str, empty: float, **attrs: object) -> xarray.Dataset:
        full = cube(dtype, **attrs)
        return full.map(lambda v: v.where(~holes, empty).astype(dtype).assign_attrs(v.attrs))

    fill = {name: {"_FillValue": -1} for name in STORED}
    cubes = {
        "fill": (holed("int16", -1), fill),
        "nodata": (holed("uint16", 777, nodata=777), None),
        "nan": (holed("float32", np.nan), None),
        "default": (holed("uint16", 65_535), None),
        "zero": (holed("uint16", 0), None),
    }
    for name, (dataset, encoding) in cubes.items():
        write_cube(tmp_path / name / "a.nc", dataset, encoding)
        patch = fetch(tmp_path / name)
        expected = np.ones(GEOBOX.shape, bool)
        expected[10:30] = False
        np.testing.assert_array_equal(patch.valid, expected, err_msg=name)
        assert medians(patch) == [2300, 2200, 2100]


def test_the_scene_classification_of_a_series_masks_clouds(tmp_path):
    dataset = cube()
    dataset["SCL"] = (("time", "y", "x"), np.repeat([9, 9, 4], PX * PX).reshape(3, PX, PX).astype("uint8"))
    dataset["CLM"] = dataset["SCL"]
    write_cube(tmp_path / "a.nc", dataset)
    masked = fetch(tmp_path, SensorSpec(cloud_mask="scl"))
    assert medians(masked) == [2310, 2210, 2110]
    assert masked.clear_frac == 1.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("S2-L2A-B04", "S2-L2A-B03", "S2-L2A-B02"), ["B2", "B3", "B4"]),
        (("red", "green", "blue"), ["B2", "B3", "B4"]),
        (("TOC-B04_10M", "TOC-B03_10M", "SCENECLASSIFICATION_20M"), ["B3", "B4", "SCL"]),
    ],
)
def test_variables_have_the_names_that_exports_give_them(tmp_path, names, expected):
    write_cube(tmp_path / "a.nc", cube().rename(dict(zip(STORED, names, strict=True))))
    [first, *_] = LocalProvider(tmp_path).scenes
    assert sorted(first.files) == expected


def test_a_file_without_a_time_axis_takes_the_date_in_its_name(tmp_path):
    write_cube(tmp_path / "mosaic_2021-06-13.nc", cube().isel(time=1).drop_vars("time"))
    [scene] = LocalProvider(tmp_path).scenes
    assert scene.acquired == datetime(2021, 6, 13, tzinfo=UTC)
    assert medians(fetch(tmp_path)) == [2300, 2200, 2100]


def no_time(path: Path) -> None:
    write_cube(path, cube().isel(time=1).drop_vars("time"))


def unnamed(path: Path) -> None:
    write_cube(path, cube().rename(dict(zip(STORED, ("var1", "var2", "var3"), strict=True))))


def transposed(path: Path) -> None:
    write_cube(path, cube().transpose("x", "y", "time"))


def odd_dimension(path: Path) -> None:
    write_cube(path, cube().rename(time="orbit").assign_coords(orbit=[22, 65, 108]))


def picture(path: Path) -> None:
    write_cube(path, cube().map(lambda v: (v // 100).astype("uint8")))


def odd_calendar(path: Path) -> None:
    dataset = cube().assign_coords(time=("time", [1, 2, 3], {"units": "days since 2021-01-01", "calendar": "martian"}))
    write_cube(path, dataset)


def no_grid(path: Path) -> None:
    cube().to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (no_time, "neither a time axis nor a date in its name"),
        (unnamed, r"no variable is a Sentinel-2 band \(it has var1, var2, var3\): name them B04"),
        (transposed, "dimensions must end in y, x"),
        (odd_dimension, "dimension 'orbit' is neither time"),
        (picture, "no variable is a Sentinel-2 band"),
        (odd_calendar, "time axis .*martian.* cannot be read"),
        (no_grid, "has no georeference"),
        (lambda path: path.write_bytes(b"CDF\x01broken"), "cannot be opened as netCDF"),
    ],
)
def test_a_netcdf_that_is_no_series_of_bands_says_why_and_costs_only_itself(tmp_path, write, reason):
    write(tmp_path / "odd.nc")
    with pytest.raises(ProviderError, match=rf"odd\.nc.*{reason}"):
        LocalProvider(tmp_path)
    write_cube(tmp_path / "good.nc", cube())
    assert medians(fetch(tmp_path)) == [2300, 2200, 2100]


def test_a_real_series_of_openeo_reads_with_its_mask(shared):
    """Classic netCDF without `_FillValue`, 19 dates, of which three are clear."""
    path = shared / "time_series" / "l2a_scl_19_dates.nc"
    provider = LocalProvider(path)
    assert len(provider.scenes) == 19
    west, south, east, north = provider.scenes[0].bounds
    place = place_geobox(PointBuffer((west + east) / 2, (south + north) / 2, 200), 10)
    found = {}
    for mask in (None, "scl"):
        request = PatchRequest(place, ALWAYS, SensorSpec(cloudy_pct=100, cloud_mask=mask))
        [(_, found[mask])] = provider.fetch([request])
    cloudy, clear = (found[mask].dn for mask in (None, "scl"))
    assert np.nanmedian(cloudy, axis=(1, 2)).min() > 4000
    assert np.nanmedian(clear, axis=(1, 2)).max() < 800


def test_real_series_of_openeo_have_holes_outside_of_their_polygon(shared):
    for number in (0, 1):
        provider = LocalProvider(shared / "time_series" / f"polygons_s2_cdse_openEO_{number}.nc")
        assert len(provider.scenes) == 19
        west, south, east, north = provider.scenes[0].bounds
        place = place_geobox(PointBuffer((west + east) / 2, (south + north) / 2, 300), 10)
        [(_, patch)] = provider.fetch([PatchRequest(place, ALWAYS, SensorSpec(cloudy_pct=100))])
        assert isinstance(patch, Patch)
        assert 0.1 < patch.valid.mean() < 0.9
        assert np.nanmin(patch.dn) > 0
        assert np.nanmax(patch.dn) < 20_000
