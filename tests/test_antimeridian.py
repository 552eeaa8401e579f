"""Across 180°: boxes, outlines, scenes, searches, regions and datasets, each against a globe without a seam."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from fastapi.testclient import TestClient
from hypothesis import assume, given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import mapping, shape

from archive_server import Tile, serve_archive, write_scene
from fakes import FakeProvider
from rs_embed import (
    BBox,
    EmbeddingIndex,
    PointBuffer,
    SensorSpec,
    SpecError,
    TemporalSpec,
    export_embeddings,
    fetch_patch,
    lonlat,
    open_dataset,
    outlines,
)
from rs_embed.cli.main import main
from rs_embed.export.regions import as_region, region_places
from rs_embed.grid import lonlat_bounds, place_geobox, utm_epsg
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.listings import group_by_search
from rs_embed.providers.registry import resolve
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.web.server import create_app

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
TO_ZONE_60 = Transformer.from_crs(4326, 32760, always_xy=True)
X, Y = TO_ZONE_60.transform(180, -17)
TILE = Tile("60KYF", 32760, round(X / 10) * 10 - 5120, round(Y / 10) * 10 + 5120, side_px=1024)
"""A tile of 10 km whose middle lies on 180°, in Fiji."""

# --- boxes ------------------------------------------------------------------------------------------

quarters = st.integers(-720, 720).map(lambda n: n / 4)
boxes = st.tuples(quarters, st.just(-10.0), quarters, st.just(10.0)).filter(lambda b: lonlat.width(b) > 0)


def cells(box: lonlat.Box) -> set[int]:
    """The quarter degrees of the equator under a box, counted around the globe."""
    start = round((box[0] + 180) * 4)
    return {(start + i) % 1440 for i in range(round(lonlat.width(box) * 4))}


@given(boxes, boxes)
def test_boxes_meet_where_they_share_a_cell_of_the_globe(one, other):
    assert bool(lonlat.meets(one, *other)) == bool(cells(one) & cells(other))
    columns = [np.array([value]) for value in other]
    assert bool(lonlat.meets(one, *columns)[0]) == bool(cells(one) & cells(other))


@given(st.lists(boxes, min_size=1, max_size=5))
def test_the_box_around_boxes_is_the_narrowest_of_all(found):
    around = lonlat.enclose(found)
    under = set().union(*map(cells, found))
    assert under <= cells(around)
    empty = widest = 0
    for i in range(2 * 1440):  # twice around
        empty = 0 if i % 1440 in under else empty + 1
        widest = max(widest, empty)
    assert len(cells(around)) == 1440 - widest


@given(boxes, quarters)
def test_the_middle_of_a_box_is_inside_and_its_polygon_has_its_width(box, lon):
    assert lonlat.contains(box, *lonlat.middle(box))
    assert outlines.polygon(box).area == pytest.approx(20 * lonlat.width(box))
    assert lonlat.contains(box, lon, 0) == outlines.polygon(box).buffer(1e-9).intersects(
        shapely.MultiPoint([(lon, 0), (lon - math.copysign(360, lon), 0)])
    )


# --- outlines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outline",
    [
        shapely.box(179, -17, 181, -16),
        shapely.box(-181, -17, -179, -16),
        shapely.Polygon([(179, -17), (-179, -17), (-179, -16), (179, -16)]),
        shapely.Polygon([(-179, -16), (-179, -17), (179, -17), (179, -16)]),
        shapely.MultiPolygon([shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)]),
    ],
    ids=["past 180", "past -180", "jumping", "jumping, clockwise", "cut"],
)
def test_an_outline_is_the_same_however_it_is_written(outline):
    found = outlines.split(outline)
    assert found.is_valid
    assert found.equals(shapely.MultiPolygon([shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)]))
    assert outlines.box_of(found) == (179, -17, -179, -16)
    lon, lat = outlines.centroid(outline)
    assert abs(lon) == pytest.approx(180)
    assert lat == pytest.approx(-16.5)


@given(st.floats(-179, 179), st.floats(-60, 60), st.floats(0.01, 80))
def test_what_does_not_cross_stays_as_it_is(lon, lat, width):
    assume(lon + width <= 180)
    outline = shapely.box(lon, lat, lon + width, lat + 1)
    assert outlines.split(outline) is outline
    assert outlines.box_of(outline) == outline.bounds
    assert outlines.centroid(outline) == pytest.approx(outline.centroid.coords[0])


def test_holes_lines_points_and_the_whole_world_are_kept():
    ring = shapely.Polygon(shapely.box(178, -18, 182, -14).exterior, [shapely.box(179, -17, 181, -15).exterior])
    assert outlines.split(ring).area == pytest.approx(16 - 4)
    assert outlines.split(shapely.LineString([(179, 0), (-179, 0)])).length == pytest.approx(2)
    assert outlines.split(shapely.Point(181, 3)).equals(shapely.Point(-179, 3))
    world = shapely.box(-180, -80, 180, 80)
    assert outlines.split(world).equals(world)
    assert outlines.centroid(shapely.MultiPoint([(179, 0), (-178, 0)])) == pytest.approx((-179.5, 0))


# --- scenes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("archive")
    return root, write_scene(root, "http://files", TILE, "2022-06-03", seed=1)


def as_catalogs_write_it(item: dict, kind: str) -> dict:
    """The item of the tile, with one of the ways in which catalogs describe what crosses 180°."""
    jumping = shape(item["geometry"])
    west, south, east, north = outlines.box_of(outlines.split(jumping))
    cut = {"geometry": mapping(outlines.split(jumping)), "bbox": [west, south, east, north]}
    change = {
        "RFC 7946": cut,
        "world-wide bbox": cut | {"bbox": [-180, south, 180, north]},
        "jumping": {"bbox": list(jumping.bounds)},
        "no geometry": {"geometry": None, "bbox": [west, south, east, north]},
    }
    return json.loads(json.dumps(item | change[kind]))


PLACES = [PointBuffer(179.96, -17, 640), PointBuffer(-179.99, -17, 640), PointBuffer(179.9999, -17, 640)]
"""West of 180°, east of it, and on it."""


def expected(root: Path, item: dict, place: PointBuffer) -> np.ndarray:
    """Red DN by the exact transform of each pixel's centre into the file's zone."""
    grid = place_geobox(place, 10)
    x, y = grid.affine * np.meshgrid(np.arange(grid.shape[1]) + 0.5, np.arange(grid.shape[0]) + 0.5)
    x, y = Transformer.from_crs(grid.crs.epsg, TILE.epsg).transform(x, y)
    with rasterio.open(root / item["id"] / "B04.tif") as file:
        col, row = ~file.transform * (x, y)
        return file.read(1)[np.floor(row + 1e-6).astype(int), np.floor(col + 1e-6).astype(int)] - 1000.0


@pytest.mark.parametrize("kind", ["RFC 7946", "world-wide bbox", "jumping", "no geometry"])
def test_an_item_over_180_is_read_on_both_sides_and_nowhere_else(archive, kind):
    scene = scene_of_item(as_catalogs_write_it(archive[1], kind), lambda href: href)
    assert lonlat.width(scene.bounds) < 0.2
    for place in PLACES:
        assert scene.meets(lonlat_bounds(place_geobox(place, 10)), JUNE)
    for lon in (0.0, 90.0, 179.0, -179.0):
        assert not scene.meets(lonlat_bounds(place_geobox(PointBuffer(lon, -17, 640), 10)), JUNE)


def test_a_real_api_and_local_files_give_the_same_on_both_sides(archive, tmp_path):
    root, item = archive
    described = as_catalogs_write_it(item, "RFC 7946")
    requests = [PatchRequest(place_geobox(place, 10), JUNE, SensorSpec()) for place in PLACES]
    local = tmp_path / "S2A_MSIL2A_20220603T101031_N0509_R022_T60KYF_20220603T140000.SAFE"
    local.mkdir()
    for name in ("B04", "B03", "B02"):
        (local / f"T60KYF_20220603T101031_{name}_10m.tif").symlink_to(root / item["id"] / f"{name}.tif")
    with serve_archive(root, [described], tmp_path) as (api, _):
        catalog = resolve(f"stac:{api}#sentinel-2-l2a")
        plan = catalog.plan(requests)
        found = dict(catalog.fetch(requests))
    assert plan.scenes_of == (1, 1, 1)
    assert plan.covered == (1, 1, 1)
    nearby = dict(resolve(f"local:{local}").fetch(requests))
    for i, place in enumerate(PLACES):
        for patch in (found[i], nearby[i]):
            assert isinstance(patch, Patch)
            np.testing.assert_array_equal(patch.dn[0], expected(root, item, place))


def test_places_on_both_sides_share_one_search():
    places = [PointBuffer(lon, -17, 640) for lon in (179.9, 179.99, 180, -179.99, -179.9)]
    requests = [PatchRequest(place_geobox(place, 10), JUNE, SensorSpec()) for place in places]
    [(search, positions)] = group_by_search(requests)
    assert sorted(positions) == [0, 1, 2, 3, 4]
    assert lonlat.width(search.bounds) < 0.3
    assert search.covers(replace(search, bounds=(179.95, -17, -179.95, -16.999)))
    assert not search.covers(replace(search, bounds=(-10.0, -17, 10.0, -16.999)))


# --- places -----------------------------------------------------------------------------------------


def test_a_box_across_180_is_one_place_of_its_true_size():
    box = BBox(179.99, -17.01, -179.99, -16.99)
    assert abs(box.centre[0]) == 180
    grid = place_geobox(box, 10)
    metres = 0.02 * 111_320 * math.cos(math.radians(17))
    assert grid.shape[1] * 10 == pytest.approx(metres, rel=0.04)
    west, _, east, _ = lonlat_bounds(grid)
    assert (west, east) == pytest.approx((179.99, -179.99), abs=1e-3)


def test_regions_across_180_have_chips_on_both_sides_once():
    cut = shapely.MultiPolygon([shapely.box(179.9, -17.1, 180, -17), shapely.box(-180, -17.1, -179.9, -17)])
    jumping = shapely.Polygon([(179.9, -17.1), (-179.9, -17.1), (-179.9, -17), (179.9, -17)])
    found = [
        {(row.id, row.place) for row in places.rows}
        for places in (
            region_places(cut, 640),
            region_places(shapely.box(179.9, -17.1, 180.1, -17), 640),
            region_places(jumping, 640),
            region_places(as_region(BBox(179.9, -17.1, -179.9, -17)), 640),
        )
    ]
    assert found[0] == found[1] == found[2] == found[3]
    places = [place for _, place in found[0]]
    sides = [place.lon > 0 for place in places]
    assert sum(sides) == pytest.approx(len(sides) / 2, abs=20)
    assert all(cut.contains(shapely.Point(place.lon, place.lat)) for place in places)
    area = 0.2 * 111_320 * math.cos(math.radians(17.05)) * 0.1 * 110_640
    assert len(places) == pytest.approx(area / 640**2, rel=0.05)
    assert {utm_epsg(place.lon, place.lat) for place in places} == {32760, 32701}


def test_a_region_beyond_utm_is_cut_or_refused(caplog):
    found = region_places(shapely.box(20, 83.9, 21, 84.5), 5000)
    assert found.rows
    assert all(row.place.lat <= 84 for row in found.rows)
    assert "84.5" in caplog.text
    assert "80°S…84°N" in caplog.text
    with pytest.raises(SpecError, match=r"beyond UTM .* latitudes 85 to 86"):
        region_places(shapely.box(20, 85, 21, 86), 5000)
    edge = place_geobox(PointBuffer(20, 84, 640), 10)  # its square pokes over
    assert lonlat_bounds(edge)[3] > 84


# --- datasets ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fiji") / "ds"
    places = [*PLACES, PointBuffer(0, -17, 640), BBox(179.995, -16.5, -179.995, -16.49)]
    export_embeddings(MODEL, places, out, temporal=JUNE, backend=FakeProvider())
    return out


def ids(rows) -> list[str]:
    return sorted(row["id"] if isinstance(row, dict) else row.id for row in rows)


AROUND, NEAR_ZERO = (179.9, -18, -179.9, -16), (-1, -18, 1, -16)
WEST, EAST = (179.98, -18, 180, -16), (-180, -18, -179.995, -16)


def test_rows_across_180_are_found_there_and_not_at_0(dataset):
    table = open_dataset(dataset)
    index = EmbeddingIndex(dataset)
    for box, expected_ids in ((AROUND, "0124"), (NEAR_ZERO, "3"), (WEST, "24"), (EAST, "124")):
        assert ids(table.filter(bbox=box)) == list(expected_ids)
        assert ids(index.places(bbox=box).hits) == list(expected_ids)
        assert ids(index.places(bbox=BBox(*box)).hits) == list(expected_ids)
    assert ids(index.places(bbox=(-180, -90, 180, 90)).hits) == list("01234")  # a filter has no end at UTM's


def test_files_of_places_across_180_are_as_rfc_7946_wants_them(dataset):
    [file] = (dataset / "embeddings").glob("*.parquet")
    frame = geopandas.read_parquet(file).set_index("id")
    assert frame.geometry.is_valid.all()
    assert frame.geometry["2"].geom_type == "MultiPolygon"
    assert max(geometry.area for geometry in frame.geometry) < 0.001  # none spans the globe
    boxes = {row["id"]: row["bbox"] for row in open_dataset(dataset)}
    for place in "24":
        assert boxes[place]["xmin"] > 179.9
        assert boxes[place]["xmax"] < -179.9
    geo = json.loads(pq.read_metadata(file).metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon", "MultiPolygon"]
    west, _, east, _ = geo["columns"]["geometry"]["bbox"]
    assert lonlat.width((west, 0, east, 1)) == pytest.approx(180.03, abs=0.02)  # from 0° or to it
    collection = json.loads((dataset / "collection.json").read_text())
    assert collection["extent"]["spatial"]["bbox"] == [geo["columns"]["geometry"]["bbox"]]


def test_hits_across_180_are_one_shape_on_a_map_and_cut_in_geojson(dataset):
    results = EmbeddingIndex(dataset).places(bbox=AROUND)
    by_id = {hit.id: hit for hit in results.hits}
    for place, hit in by_id.items():
        lons = [lon for lon, _ in hit.footprint]
        assert max(lons) - min(lons) < 0.02
        grid = place_geobox([*PLACES, None, BBox(179.995, -16.5, -179.995, -16.49)][int(place)], 10)
        box = grid.boundingbox
        corners = [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]
        to_lonlat = Transformer.from_crs(grid.crs.epsg, 4326, always_xy=True)
        for (lon, lat), corner in zip(hit.footprint, corners, strict=True):
            x, y = to_lonlat.transform(*corner)
            assert (lon - x) % 360 == pytest.approx(0, abs=1e-7) or (lon - x) % 360 == pytest.approx(360, abs=1e-7)
            assert lat == pytest.approx(y, abs=1e-7)
    features = results.to_geojson()["features"]
    kinds = {f["properties"]["id"]: f["geometry"]["type"] for f in features}
    assert kinds == {"0": "Polygon", "1": "Polygon", "2": "MultiPolygon", "4": "MultiPolygon"}
    assert all(shape(f["geometry"]).area < 0.001 for f in features)


@pytest.mark.parametrize(
    ("box", "says"),
    [((10, 0, 5, 1), "swap"), ((0, 0, 0, 1), "no area"), ((0, 0, math.nan, 1), "finite"), ((0, 0, 1), "W S E N")],
)
def test_a_filter_that_is_no_box_is_refused(dataset, box, says):
    for search in (open_dataset(dataset).filter, EmbeddingIndex(dataset).places):
        with pytest.raises(SpecError, match=says):
            search(bbox=box)


def test_a_patch_across_180_has_both_sides(archive, tmp_path):
    root, item = archive
    (tmp_path / "item.json").write_text(json.dumps(item).replace("http://files", str(root)))
    patch = fetch_patch(PLACES[2], JUNE, backend=f"local:{tmp_path}")
    assert patch.valid.all()
    np.testing.assert_array_equal(patch.dn[0], expected(root, item, PLACES[2]))


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert not end.value.code


def test_the_command_line_and_http_take_a_box_with_west_over_east(dataset, archive, tmp_path, capsys):
    client = TestClient(create_app(dataset), base_url="http://127.0.0.1")
    for box, expected_ids in ((AROUND, "0124"), (NEAR_ZERO, "3"), (EAST, "124")):
        found = client.get("/api/places", params={"bbox": ",".join(map(str, box))})
        assert ids(found.json()["results"]) == list(expected_ids)
        capsys.readouterr()
        run("search", str(dataset), "river", "--bbox", *map(str, box), "--json")
        assert ids(json.loads(capsys.readouterr().out)["results"]) == list(expected_ids)
    west, south, east, north = client.get("/api/dataset").json()["extent"]
    assert lonlat.width((west, south, east, north)) < 181
    assert client.get("/api/places", params={"bbox": "10,0,5,1"}).status_code == 400
    root, item = archive
    (tmp_path / "item.json").write_text(json.dumps(item).replace("http://files", str(root)))
    box = ["--bbox", "179.99", "-17.01", "-179.99", "-16.99", "--start", JUNE.start, "--end", JUNE.end]
    run("inspect", *box, "--backend", f"local:{tmp_path}", "--json")
    assert json.loads(capsys.readouterr().out)["report"]["valid_frac"] == 1.0
    run("plan", *box, "--chip", "640", "--backend", f"local:{tmp_path}", "--json")
    assert json.loads(capsys.readouterr().out)["places"] == pytest.approx(2129 * 2213 / 640**2, abs=4)
