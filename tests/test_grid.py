from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info

from rs_embed import BBox, PointBuffer, SpecError
from rs_embed.grid import lonlat_bounds, place_geobox, utm_epsg, utm_epsgs


@given(st.integers(-17_999, 17_998), st.integers(-7_990, 8_389))
@settings(max_examples=60, deadline=None)
def test_the_zone_is_the_one_that_the_epsg_database_gives(lon, lat):
    lon, lat = lon / 100 + 0.005, lat / 100 + 0.005  # never on the border of two zones
    epsg = utm_epsg(lon, lat)
    if (56 <= lat < 64 and 0 <= lon < 12) or lat >= 72:
        return  # MGRS's exceptions, which the database does not have
    box = AreaOfInterest(lon, lat, lon, lat)
    assert epsg in {int(found.code) for found in query_utm_crs_info("WGS 84", box)}


@pytest.mark.parametrize(
    ("lon", "lat", "epsg"),
    [
        (180, 10, 32660),
        (-180, 10, 32601),
        (5, 60, 32632),  # Bergen: 32V is widened over 31V
        (2, 60, 32631),
        (8.9, 78, 32631),  # Svalbard: 32X, 34X, 36X do not exist
        (9.1, 78, 32633),
        (21.1, 78, 32635),
        (33.1, 78, 32637),
        (42.1, 78, 32638),
        (18.4, -33.9, 32734),
    ],
)
def test_zones_have_mgrs_exceptions(lon, lat, epsg):
    assert utm_epsg(lon, lat) == epsg


@given(st.floats(-170, 170), st.floats(-75, 80), st.floats(1, 3000), st.sampled_from([5.0, 10.0, 20.0]))
@settings(max_examples=60, deadline=None)
def test_a_squares_grid_follows_the_contracts_formula(lon, lat, buffer_m, scale_m):
    geobox = place_geobox(PointBuffer(lon, lat, buffer_m), scale_m)
    x, y = Transformer.from_crs(4326, utm_epsg(lon, lat), always_xy=True).transform(lon, lat)
    n = math.ceil(2 * buffer_m / scale_m - 1e-6)
    assert geobox.shape == (n, n)
    assert geobox.affine.c == scale_m * math.floor(x / scale_m - n / 2 + 0.5)
    assert geobox.affine.f == scale_m * math.floor(y / scale_m + n / 2 + 0.5)
    assert (geobox.affine.a, geobox.affine.e) == (scale_m, -scale_m)
    assert abs(geobox.affine.c + n * scale_m / 2 - x) <= scale_m / 2 + 1e-6  # centred to half a pixel


@given(st.floats(-170, 170), st.floats(-75, 80), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
@settings(max_examples=60, deadline=None)
def test_a_boxs_grid_covers_it_and_is_not_larger_than_needed(lon, lat, width, height):
    box = BBox(lon, lat, lon + width, lat + height)
    geobox = place_geobox(box, 10)
    epsg = utm_epsg(*box.centre)
    to_utm = Transformer.from_crs(4326, epsg, always_xy=True)
    corners = [to_utm.transform(x, y) for x in (lon, lon + width) for y in (lat, lat + height)]
    bounds = geobox.boundingbox
    assert all(bounds.left - 1e-4 <= x <= bounds.right + 1e-4 for x, _ in corners)
    assert all(bounds.bottom - 1e-4 <= y <= bounds.top + 1e-4 for _, y in corners)
    assert bounds.left % 10 == bounds.top % 10 == 0
    west, _, _, north = lonlat_bounds(geobox)
    assert west <= lon + 1e-6
    assert north >= lat + height - 1e-6


def test_a_box_on_whole_pixels_is_not_widened():
    to_lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    # on the central meridian a box in degrees has edges that are nearly straight in UTM
    west, south = to_lonlat.transform(499_990, 5_000_000)
    east, north = to_lonlat.transform(500_010, 5_000_020)
    geobox = place_geobox(BBox(west, south, east, north), 10)
    assert geobox.shape[0] <= 3
    assert geobox.shape[1] <= 3


def test_a_place_over_8192_px_is_refused_with_its_size_and_remedies():
    with pytest.raises(SpecError, match=r"8194 x 8194 px.*scale_m=10.*8192.*tile.*scale_m"):
        place_geobox(PointBuffer(10, 50, 40_970), 10)
    assert place_geobox(PointBuffer(10, 50, 40_960), 10).shape == (8192, 8192)


def test_the_same_place_gives_the_same_grid():
    assert place_geobox(PointBuffer(10, 50, 600), 10) == place_geobox(PointBuffer(10.0, 50.0, 600.0), 10.0)
    assert CRS.from_epsg(32632) == CRS.from_user_input(str(place_geobox(PointBuffer(10, 50, 600), 10).crs))


@pytest.mark.parametrize(
    ("place", "west", "east"),
    [
        (BBox(179.98, -17.0, 180.0, -16.98), 179.98, 180.0),
        (BBox(-180.0, 50.0, -179.98, 50.02), -180.0, -179.98),
    ],
)
def test_a_grid_on_the_antimeridian_does_not_span_the_globe(place, west, east):
    found = lonlat_bounds(place_geobox(place, 10))
    # The outline of a grid in UTM pokes over its box, here by a few pixels over 180°: west > east then.
    assert (found[0] - west + 180) % 360 - 180 == pytest.approx(0, abs=0.003)
    assert (found[2] - east + 180) % 360 - 180 == pytest.approx(0, abs=0.003)
    assert 0.02 < (found[2] - found[0]) % 360 < 0.03
    assert all(-180 <= lon <= 180 for lon in found[::2])


def test_zones_of_many_points_are_those_of_each():
    lon, lat = (axis.ravel() for axis in np.meshgrid(np.arange(-180, 181, 1.5), np.arange(-80, 84.1, 2)))
    assert utm_epsgs(lon, lat).tolist() == [utm_epsg(*point) for point in zip(lon.tolist(), lat.tolist(), strict=True)]
