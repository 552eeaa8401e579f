"""Places from files, frames and regions: what belongs to the user comes back, and no row vanishes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from pyproj import Transformer

from rs_embed import (
    BBox,
    PointBuffer,
    RSEmbedError,
    SpecError,
    TemporalSpec,
    export_embeddings,
    open_dataset,
    plan_export,
)
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import read_places
from rs_embed.export.land import on_land
from rs_embed.export.regions import read_region, region_places
from rs_embed.export.schedule import schedule
from rs_embed.grid import place_geobox, utm_epsg

CHIP = ReadOptions(chip_m=640)


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_gives_squares_and_keeps_what_is_the_users(tmp_path):
    text = "\ufeffname,Longitude,LAT,label,code,height,note\na,15,48,water,007,12.5,\nb,16,49,forest,010,,x y\n"
    found = read_places(write_csv(tmp_path / "p.csv", text), ReadOptions(chip_m=640, id_column="name"))
    assert [row.id for row in found.rows] == ["a", "b"]
    assert [row.place for row in found.rows] == [PointBuffer(15, 48, 320), PointBuffer(16, 49, 320)]
    assert found.columns.to_pydict() == {
        "label": ["water", "forest"],
        "code": ["007", "010"],  # a number would lose its zeros
        "height": [12.5, None],
        "note": ["", "x y"],
    }


def test_without_an_id_the_rows_number_is_the_id(tmp_path):
    found = read_places(write_csv(tmp_path / "p.csv", "lon,lat\n15,48\n16,49\n"), CHIP)
    assert [row.id for row in found.rows] == ["0", "1"]
    assert found.columns.num_rows == 2


def test_bad_rows_say_where_and_why_and_stay(tmp_path):
    text = "id,lon,lat\na,15,48\nb,x,48\na,15,48\nd,200,48\ne,15\nf,15,48,9\n\ng,15,48\n"
    found = read_places(write_csv(tmp_path / "p.csv", text), CHIP)
    told = {row.where: row.error for row in found.bad}
    assert set(told) == {"line 3", "line 4", "line 5", "line 6", "line 7"}
    assert told["line 3"] == "lon='x', lat='48' are no numbers: write them as 13.72 and -8.21"
    assert told["line 4"] == "the id 'a' stands there twice"
    assert "200" in told["line 5"]
    assert told["line 6"] == "it has 2 values for 3 columns"
    assert [row.number for row in found.rows] == list(range(7))


def test_rows_may_have_their_own_time_range(tmp_path):
    text = "lon,lat,start,end\n15,48,2022-06-01,2022-07-01\n15,48,2022-07-01,2022-06-01\n15,48,,\n"
    first, second, third = read_places(write_csv(tmp_path / "p.csv", text), CHIP).rows
    assert (first.start, first.end) == ("2022-06-01", "2022-07-01")
    assert "is reversed" in second.error
    assert (third.start, third.error) == (None, None)


def test_a_csv_in_another_crs(tmp_path):
    file = write_csv(tmp_path / "p.csv", "x,y\n500000,5316300\n")
    [row] = read_places(file, ReadOptions(chip_m=640, crs="EPSG:32633")).rows
    assert row.place.lon == pytest.approx(15.0)
    assert row.place.lat == pytest.approx(48.0, abs=0.01)
    with pytest.raises(SpecError, match="EPSG:1"):
        read_places(file, ReadOptions(chip_m=640, crs="EPSG:1"))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "a,b\n1,2\n", "has no column lon or longitude; it has a, b"),
        ("p.csv", "lon,lat\n", "has no places"),
        ("p.txt", "", "places come from .csv, .geojson"),
        ("p.geojson", "{", "cannot be read"),
        ("p.geojson", "{}", "no GeoJSON FeatureCollection"),
        ("p.parquet", "no", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_places_is_one_error(tmp_path, name, text, says):
    with pytest.raises(SpecError, match=says):
        read_places(write_csv(tmp_path / name, text), CHIP)
    with pytest.raises(SpecError, match="no such file"):
        read_places(tmp_path / "missing.csv", CHIP)


def test_a_polygon_is_the_square_on_its_centroid_never_its_envelope(tmp_path):
    long = shapely.box(15, 48, 15.4, 48.1)
    features = [
        {
            "type": "Feature",
            "id": 7,
            "geometry": shapely.geometry.mapping(long),
            "properties": {"crop": "maize", "n": 3},
        },
        {"type": "Feature", "geometry": None, "properties": {"crop": "rye", "n": "many"}},
    ]
    file = write_csv(tmp_path / "p.geojson", json.dumps({"type": "FeatureCollection", "features": features}))
    found = read_places(file, CHIP)
    assert found.rows[0].id == "7"
    assert found.rows[0].place.centre == pytest.approx((15.2, 48.05))
    assert found.rows[0].place.buffer_m == 320
    assert found.rows[1].error == "it has no geometry"
    assert found.columns.to_pydict() == {"crop": ["maize", "rye"], "n": ["3", '"many"']}


def test_geoparquet_and_a_geodataframe_in_another_crs_give_the_same(tmp_path):
    import geopandas

    frame = geopandas.GeoDataFrame(
        {"id": ["a", "b"], "label": pa.array([1, 2], pa.int16()).to_numpy(), "when": ["x", None]},
        geometry=geopandas.points_from_xy([500_000, 520_000], [5_316_300, 5_320_000]),
        crs="EPSG:32633",
    )
    frame.to_parquet(tmp_path / "p.parquet", write_covering_bbox=True)
    stored, given = read_places(tmp_path / "p.parquet", CHIP), read_places(frame, CHIP)
    assert [r.place for r in stored.rows] == [r.place for r in given.rows]
    assert stored.rows[0].place.lon == pytest.approx(15.0)
    assert stored.columns.column_names == ["label", "when"]  # neither geometry nor its bbox
    assert stored.columns.schema.field("label").type == pa.int16()
    assert given.columns.to_pydict() == stored.columns.to_pydict()
    with pytest.raises(SpecError, match="has no CRS"):
        read_places(frame.set_crs(None, allow_override=True), CHIP)


@pytest.mark.parametrize("ending", ["gpkg", "fgb", "shp"])
def test_formats_of_gdal_give_the_same_as_a_geodataframe(tmp_path, ending):
    import geopandas

    frame = geopandas.GeoDataFrame(
        {"id": ["007", "b"], "label": [1, 2], "big": [2**53 + 1, 5], "when": ["2022-06-01", None]},
        geometry=geopandas.points_from_xy([500_000, 520_000], [5_316_300, 5_320_000]),
        crs="EPSG:32633",
    )
    frame.to_file(tmp_path / f"p.{ending}", engine="pyogrio")
    stored, given = read_places(tmp_path / f"p.{ending}", CHIP), read_places(frame, CHIP)
    assert {r.id: r.place for r in stored.rows} == {r.id: r.place for r in given.rows}
    assert sorted(stored.columns.to_pylist(), key=lambda row: row["label"]) == given.columns.to_pylist()


def test_a_file_of_gdal_that_is_not_clear_is_one_error(tmp_path):
    import geopandas

    frame = geopandas.GeoDataFrame({"a": [1]}, geometry=[shapely.Point(15, 48)], crs="EPSG:4326")
    for layer in ("fields", "forests"):
        frame.to_file(tmp_path / "two.gpkg", layer=layer, engine="pyogrio")
    with pytest.raises(SpecError, match=r"has 2 layers \(fields, forests\)"):
        read_places(tmp_path / "two.gpkg", CHIP)
    frame.to_file(tmp_path / "p.shp", engine="pyogrio")
    (tmp_path / "p.prj").unlink()
    with pytest.raises(SpecError, match=r"p\.shp has no CRS: a shapefile needs its \.prj file"):
        read_places(tmp_path / "p.shp", CHIP)
    with pytest.raises(SpecError, match="cannot be read"):
        read_places(write_csv(tmp_path / "p.gpkg", "no"), CHIP)


def test_a_table_without_geometry_is_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    with pytest.raises(SpecError, match="no geometry column 'geometry'; it has a"):
        read_places(tmp_path / "p.parquet", CHIP)


def test_places_in_python_are_taken_as_they_are():
    places = [BBox(15, 48, 15.1, 48.1), PointBuffer(1, 2, 300)]
    found = read_places(places, ReadOptions())
    assert [row.place for row in found.rows] == places
    with pytest.raises(SpecError, match="places come from"):
        read_places([1, 2], ReadOptions())


def test_a_file_of_points_needs_a_size(tmp_path):
    with pytest.raises(SpecError, match="a size is needed"):
        read_places(write_csv(tmp_path / "p.csv", "lon,lat\n1,2\n"), ReadOptions())


# --- regions -------------------------------------------------------------------------------------------


def test_a_region_is_cut_on_multiples_of_the_chip():
    region = shapely.box(14.9, 47.98, 15.1, 48.02)
    found = region_places(region, 640)
    for row in found.rows:
        grid = place_geobox(row.place, 10)
        assert grid.shape == (64, 64)
        assert grid.affine.c % 640 == 0
        assert grid.affine.f % 640 == 0
        assert region.contains(shapely.Point(row.place.lon, row.place.lat))
    ids = [row.id for row in found.rows]
    assert len(set(ids)) == len(ids)
    west, east = (
        region_places(shapely.box(14.9, 47.98, 15, 48.02), 640),
        region_places(shapely.box(15, 47.98, 15.1, 48.02), 640),
    )
    assert {r.id for r in west.rows} | {r.id for r in east.rows} == set(ids)  # regions side by side align
    assert not {r.id for r in west.rows} & {r.id for r in east.rows}


def test_a_region_over_a_zone_border_gives_each_chip_to_the_zone_of_its_centre():
    found = region_places(shapely.box(11.95, 47.98, 12.05, 48.02), 640)
    zones = {row.id[:3] for row in found.rows}
    assert zones == {"32N", "33N"}
    for row in found.rows:
        assert utm_epsg(row.place.lon, row.place.lat) == 32600 + int(row.id[:2])
    area = 0.1 * 111_320 * np.cos(np.deg2rad(48)) * 0.04 * 111_200
    assert len(found.rows) == pytest.approx(area / 640**2, rel=0.05)


@pytest.mark.parametrize(
    ("bounds", "zones"), [((4, 59, 7, 59.05), {"32N"}), ((-1, -0.02, 1, 0.02), {"30N", "30S", "31N", "31S"})]
)
def test_regions_where_zones_are_odd(bounds, zones):
    assert {row.id[:3] for row in region_places(shapely.box(*bounds), 2560).rows} == zones


def test_a_region_from_a_file_and_one_that_holds_no_chip(tmp_path):
    ring = shapely.geometry.mapping(shapely.box(15, 48, 15.01, 48.01))
    file = write_csv(tmp_path / "r.geojson", json.dumps({"type": "Feature", "geometry": ring, "properties": {}}))
    assert region_places(read_region(file), 320).rows
    with pytest.raises(SpecError, match="holds the centre of no chip"):
        region_places(read_region(file), 100_000)
    with pytest.raises(SpecError, match="has no polygon"):
        read_region(write_csv(tmp_path / "x.geojson", "{}"))
    with pytest.raises(SpecError, match="needs the size of its chips"):
        plan_export(BBox(15, 48, 15.1, 48.1), backend="sample")


# --- places as they are found in the world ------------------------------------------------------------

POINT = {
    "type": "Feature",
    "properties": {"id": "a", "n": 1},
    "geometry": {"type": "Point", "coordinates": [13.7, 48.2]},
}
HERE = PointBuffer(13.7, 48.2, 320)


def write_features(path: Path, *features: object, **members: object) -> Path:
    document = {"type": "FeatureCollection", "features": list(features), **members}
    path.write_text(json.dumps(document))
    return path


def square(*boxes: tuple[float, float, float, float]) -> dict:
    shapes = shapely.MultiPolygon([shapely.box(*box) for box in boxes])
    return {"type": "Feature", "properties": {"id": "s"}, "geometry": shapely.geometry.mapping(shapes)}


def test_what_lies_on_both_sides_of_180_has_its_centre_there(tmp_path):
    cut = square((179.9, -17, 180, -16.9), (-180, -17, -179.9, -16.9))
    past = square((179.9, -17, 180.1, -16.9))
    uneven = square((179.9, -17, 180, -16.9), (-180, -17, -179.7, -16.9))
    found = read_places(write_features(tmp_path / "f.geojson", cut, {**past, "id": "p"}, {**uneven, "id": "u"}), CHIP)
    lons = [row.place.lon for row in found.rows]
    assert [abs(lon) for lon in lons[:2]] == pytest.approx([180, 180])
    assert lons[2] == pytest.approx(-179.9)
    assert [row.place.lat for row in found.rows] == pytest.approx([-16.95] * 3)


def test_a_geojson_file_may_begin_with_a_byte_order_mark(tmp_path):
    file = write_features(tmp_path / "bom.geojson", POINT)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read_places(file, CHIP).rows[0].place == HERE
    region = write_features(tmp_path / "region.geojson", square((15, 48, 15.01, 48.01)))
    region.write_text(region.read_text(), encoding="utf-8-sig")
    assert read_region(region).bounds == (15, 48, 15.01, 48.01)


def test_a_feature_that_is_none_is_a_bad_row(tmp_path):
    rows = read_places(write_features(tmp_path / "f.geojson", POINT, None, {**POINT, "id": "b"}), CHIP).rows
    assert [row.place for row in rows] == [HERE, None, HERE]
    assert (rows[1].where, rows[1].error) == ("feature 1", "it has no geometry")


def test_whole_numbers_over_64_bits_stay_as_text(tmp_path):
    huge = {**POINT, "properties": {"id": "a", "n": 2**70, "m": -(2**63)}}
    found = read_places(write_features(tmp_path / "f.geojson", huge), CHIP)
    assert found.rows[0].place == HERE
    assert found.columns["n"].to_pylist() == [str(2**70)]
    assert found.columns["m"].to_pylist() == [-(2**63)]


def test_an_old_geojson_file_in_metres_names_its_crs(tmp_path):
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(13.7, 48.2)
    metres = {**POINT, "geometry": {"type": "Point", "coordinates": [x, y]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    [row] = read_places(write_features(tmp_path / "f.geojson", metres, crs=crs), CHIP).rows
    assert (row.place.lon, row.place.lat) == pytest.approx((13.7, 48.2), abs=1e-9)
    [row] = read_places(write_features(tmp_path / "g.geojson", metres), CHIP).rows
    assert "outside -180…180" in row.error
    unknown = write_features(tmp_path / "h.geojson", metres, crs={"properties": {"name": "no such thing"}})
    with pytest.raises(SpecError, match=r"crs .*no such thing.* is not known"):
        read_places(unknown, CHIP)


@pytest.mark.parametrize("kind", ["Point", "LineString", "Polygon", "MultiPoint", "MultiLineString", "MultiPolygon"])
def test_geoarrow_geometries_are_read_as_wkb_is(tmp_path, kind):
    geopandas = pytest.importorskip("geopandas")
    ring = shapely.Polygon(shapely.box(15, 48, 15.4, 48.2).exterior, [shapely.box(15.1, 48.1, 15.2, 48.15).exterior])
    line = shapely.LineString(ring.exterior.coords[:3])
    one = {"Point": shapely.Point(15, 48), "LineString": line, "Polygon": ring}
    base = one[kind.removeprefix("Multi")]
    moved = [shapely.affinity.translate(base, step, 0) for step in (0.0, 1.0, 3.0)]
    shapes = moved if kind in one else [getattr(shapely, kind)(moved[:n]) for n in (1, 2, 3)]
    frame = geopandas.GeoDataFrame({"id": list("abc")}, geometry=shapes, crs=4326)
    places = []
    for encoding in ("WKB", "geoarrow"):
        frame.to_parquet(tmp_path / f"{encoding}.parquet", geometry_encoding=encoding)
        places.append([row.place for row in read_places(tmp_path / f"{encoding}.parquet", CHIP).rows])
    assert places[0] == places[1]
    assert None not in places[0]


def test_missing_geometries_in_geoarrow_are_bad_rows(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    for name, shapes in {"p": [shapely.Point(13.7, 48.2), None], "q": [shapely.box(13, 48, 14, 49), None]}.items():
        frame = geopandas.GeoDataFrame({"id": ["a", "b"]}, geometry=shapes, crs=4326)
        frame.to_parquet(tmp_path / f"{name}.parquet", geometry_encoding="geoarrow")
        good, bad = read_places(tmp_path / f"{name}.parquet", CHIP).rows
        assert good.place
        assert bad.error


def test_further_geometry_columns_are_kept_as_wkb(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.GeoDataFrame({"id": ["a"]}, geometry=[shapely.Point(13.7, 48.2)], crs=4326)
    frame["other"] = geopandas.GeoSeries([shapely.box(13, 48, 14, 49)], crs=4326)
    frame.to_parquet(tmp_path / "two.parquet")
    for source in (frame, tmp_path / "two.parquet"):
        found = read_places(source, CHIP)
        assert found.rows[0].place == HERE
        assert shapely.from_wkb(found.columns["other"][0].as_py()).equals(frame["other"][0])


def test_a_day_without_the_other_takes_it_from_the_run_and_a_bad_one_costs_its_row(tmp_path):
    text = "id,lon,lat,start\na,13.7,48.2,2022-06-01\nb,13.7,48.2,June\nc,13.7,48.2,2023-01-01\nd,13.7,48.2,\n"
    found = read_places(write_csv(tmp_path / "p.csv", text), CHIP)
    assert [row.error is None for row in found.rows] == [True, False, True, True]
    rows = schedule(found, TemporalSpec.range("2022-05-01", "2022-07-01"), None)
    times = {int(place): rows.windows[window] for place, window in zip(rows.place_of, rows.window_of, strict=True)}
    assert {place: (time.start, time.end) for place, time in times.items()} == {
        0: ("2022-06-01", "2022-07-01"),
        3: ("2022-05-01", "2022-07-01"),
    }
    assert rows.faults[1] == "start must be a day as YYYY-MM-DD, got 'June'"
    assert "the time range 2023-01-01 to 2022-07-01 is reversed" in rows.faults[2]
    with pytest.raises(SpecError, match=r"none of the 4 row\(s\).*line 3: start must be a day"):
        schedule(found, None, None)


def test_a_region_in_metres_is_that_in_degrees(tmp_path):
    lonlat = shapely.box(15.0, 48.0, 15.1, 48.1)
    to_metres = Transformer.from_crs(4326, 3035, always_xy=True)
    corners = shapely.segmentize(lonlat, 0.001)
    metres = shapely.transform(corners, to_metres.transform, interleaved=False)
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(metres)}
    crs = {"type": "name", "properties": {"name": "EPSG:3035"}}
    found = region_places(read_region(write_features(tmp_path / "m.geojson", feature, crs=crs)), 640)
    assert [row.id for row in found.rows] == [row.id for row in region_places(lonlat, 640).rows]
    with pytest.raises(SpecError, match=r"are no degrees.*name its CRS"):
        read_region(write_features(tmp_path / "n.geojson", feature))


def test_a_self_crossing_polygon_is_the_area_that_it_encloses(tmp_path, caplog):
    bow = {"type": "Polygon", "coordinates": [[[15, 48], [15.2, 48.2], [15.2, 48], [15, 48.2], [15, 48]]]}
    region = read_region(write_features(tmp_path / "b.geojson", {"type": "Feature", "properties": {}, "geometry": bow}))
    assert region.is_valid
    assert "b.geojson: 1 outline(s) cross themselves, the first in feature 0" in caplog.text
    assert region.area == pytest.approx(0.02)
    assert region_places(region, 640).rows
    same = region_places(shapely.Polygon(bow["coordinates"][0]), 640)  # also when it is passed in Python
    assert {row.id for row in same.rows} == {row.id for row in region_places(region, 640).rows}


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    time = TemporalSpec.range("2022-06-01", "2022-07-01")
    for out in (file, file / "deeper"):
        with pytest.raises(SpecError, match="is a file; name a folder"):
            export_embeddings("clip_eurosat_s2rgb", [HERE], out, temporal=time)
    assert file.read_text() == "mine"
    with pytest.raises(RSEmbedError, match="is no dataset"):
        len(open_dataset(file))


@pytest.mark.parametrize("features", [None, 5, "x", [None], [{"type": "Feature", "geometry": [1]}]])
def test_a_region_whose_features_are_none_is_one_error(tmp_path, features):
    (tmp_path / "region.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.raises(SpecError, match="has no polygon"):
        read_region(tmp_path / "region.geojson")


# --- text tables as spreadsheets and countries write them ---------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    "text",
    [
        "id,lon,lat,n,h\na,13.7,48.2,Grün,1.5\n",
        'id,lon,lat,n,h\na,"13,7","48,2",Grün,"1,5"\n',
        "id;lon;lat;n;h\na;13,7;48,2;Grün;1,5\n",
        "sep=;\r\nid;lon;lat;n;h\r\na;13.7;48.2;Grün;1.5\r\n;;;;\r\n",
        "id\tlat\tlon\tn\th\na\t48.2\t13.7\tGrün\t1.5\n",
        "\n\nid|LON|Lat|n|h\na| 13.7|48.2 |Grün|1.5|\n",
    ],
)
def test_a_text_table_gives_the_same_in_every_dialect_and_encoding(tmp_path, text, encoding):
    (tmp_path / "p.csv").write_bytes(text.encode(encoding))
    found = read_places(tmp_path / "p.csv", CHIP)
    assert [(row.id, row.place, row.error) for row in found.rows] == [("a", HERE, None)]
    assert found.columns.to_pydict() == {"n": ["Grün"], "h": [1.5]}


def test_a_table_that_is_no_utf_8_is_read_as_windows_1252_and_said(tmp_path, caplog):
    (tmp_path / "p.csv").write_bytes("id;lon;lat;n\na;13,7;48,2;Grün 5 €\n".encode("cp1252"))
    found = read_places(tmp_path / "p.csv", CHIP)
    assert found.columns.to_pydict() == {"n": ["Grün 5 €"]}
    assert "read as Windows-1252 ('Grün 5 €'); save it as UTF-8" in caplog.text
    for wrong in (b"lon,lat,n\n1,2,\xfc\x81\n", b"\xff\xfel\0o\0n\0\0\xdc1"):
        (tmp_path / "p.csv").write_bytes(wrong)
        with pytest.raises(SpecError, match="save it as UTF-8"):
            read_places(tmp_path / "p.csv", CHIP)


def test_a_decimal_comma_is_one_only_where_no_coordinate_has_a_point(tmp_path):
    file = write_csv(tmp_path / "p.csv", "id;lon;lat;h\na;13,7;48.2;1,5\nb;13.7;48.2;2,5\n")
    bad, good = read_places(file, CHIP).rows
    assert bad.error == "lon='13,7', lat='48.2' are no numbers: write them as 13.72 and -8.21"
    assert good.place == HERE
    assert read_places(file, CHIP).columns["h"].to_pylist() == ["1,5", "2,5"]  # unknown: stays as it is
    [row] = read_places(write_csv(tmp_path / "c.csv", "lon,lat\n13,7,48,2\n"), CHIP).rows
    assert "4 values for 2 columns: decimal commas need semicolons" in row.error


@pytest.mark.parametrize(("x", "y"), [("500,000", "5,316,300"), ("500.000", "5.316.300"), ("500,000", "5316300")])
def test_numbers_that_may_have_thousands_separators_are_one_error(tmp_path, x, y):
    file = write_csv(tmp_path / "p.csv", f"x;y\n{x};{y}\n")
    with pytest.raises(SpecError, match=rf"is '{x}' a decimal number or one of thousands\? Write coordinates without"):
        read_places(file, ReadOptions(chip_m=640, crs="EPSG:32633"))


def test_in_metres_the_columns_x_and_y_win_over_degrees(tmp_path):
    file = write_csv(tmp_path / "p.csv", "lon;lat;x;y\n14;48;500000,0;5316300,5\n")
    [row] = read_places(file, ReadOptions(chip_m=640, crs="EPSG:32633")).rows
    assert row.place.lon == pytest.approx(15.0)
    assert read_places(file, CHIP).rows[0].place == PointBuffer(14, 48, 320)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,lon,lat,lon\na,1,2,3\n", "has the column 'lon' twice: rename one of them"),
        ('lon,lat,n\n1,2,"open\n3,4,x\n', r"p.csv, line 3: .* \(is a quote closed\?\)"),
        ("lon,lat,a;lon;lat\n1,2,3\n", "may be separated by commas or semicolons: keep one of them"),
        ("13.7,48.2\n13.8,48.3\n", "it has 13.7, 48.2: name its columns in the first line"),
        ("", "it has none: name its columns"),
    ],
)
def test_a_table_that_is_not_clear_is_one_error(tmp_path, text, says):
    with pytest.raises(SpecError, match=says):
        read_places(write_csv(tmp_path / "p.csv", text), CHIP)


@pytest.mark.parametrize("lon", ["1_3.7", "13.7°E", "13°42'0\"E", "nan", "0x1", ""])
def test_what_python_takes_for_a_number_but_people_do_not_is_a_bad_row(tmp_path, lon):
    cell = lon.replace('"', '""')
    [row] = read_places(write_csv(tmp_path / "p.csv", f'lon,lat\n"{cell}",48.2\n'), CHIP).rows
    assert "are no numbers: write them as 13.72" in row.error


# --- geometries of every kind --------------------------------------------------------------------------


def test_the_kinds_of_geojson_are_read_alike(tmp_path):
    plain = json.dumps(POINT)
    texts = [plain, f"{plain}\n", json.dumps({"type": "FeatureCollection", "features": [POINT]})]
    texts += [plain.replace("48.2]", "48.2, 510.5]"), f"\x1e{plain}\n\x1e{plain.replace('13.7', '14')}\n"]
    collection = {"type": "GeometryCollection", "geometries": [POINT["geometry"]]}
    texts.append(json.dumps({**POINT, "geometry": collection}))
    for text in texts:
        rows = read_places(write_csv(tmp_path / "p.geojson", text), CHIP).rows
        assert rows[0].place == HERE
        assert len(rows) == (2 if "\x1e" in text else 1)
    (tmp_path / "p.geojson").write_bytes(plain.encode("utf-16"))
    assert read_places(tmp_path / "p.geojson", CHIP).rows[0].place == HERE
    (tmp_path / "p.geojson").write_bytes(b'{"n": "\xfc"}')
    with pytest.raises(SpecError, match="save it as UTF-8"):
        read_places(tmp_path / "p.geojson", CHIP)
    with pytest.raises(SpecError, match="nested too deep"):
        read_places(write_csv(tmp_path / "p.geojson", "[" * 100_000), CHIP)


def test_the_centroid_of_a_self_crossing_polygon_is_that_of_its_area_and_it_is_said(tmp_path, caplog):
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 1)])
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(bow)}
    found = read_places(write_features(tmp_path / "b.geojson", {**POINT, "id": "p"}, feature), CHIP)
    assert found.rows[1].place.centre == pytest.approx(shapely.make_valid(bow).centroid.coords[0])
    assert "b.geojson: 1 outline(s) cross themselves, the first in feature 1" in caplog.text


_KML = """<?xml version="1.0"?><kml xmlns="http://www.opengis.net/kml/2.2"><Document>
<Folder><name>f</name><Placemark><name>p1</name><Point><coordinates>13.7,48.2,0</coordinates></Point>
</Placemark></Folder>
<Folder><name>g</name><Placemark><name>p2</name><LineString><coordinates>14,48 15,48</coordinates></LineString>
</Placemark></Folder></Document></kml>"""


def test_all_folders_of_a_kml_file_are_read(tmp_path):
    pytest.importorskip("pyogrio")
    (tmp_path / "p.kml").write_text(_KML)
    with zipfile.ZipFile(tmp_path / "p.kmz", "w") as archive:
        archive.write(tmp_path / "p.kml", "doc.kml")
    for name in ("p.kml", "p.kmz"):
        found = read_places(tmp_path / name, ReadOptions(chip_m=640, id_column="Name"))
        assert {row.id: row.place for row in found.rows} == {"p1": HERE, "p2": PointBuffer(14.5, 48, 320)}
        assert found.columns.column_names == ["id", "description"]


@pytest.mark.parametrize("ending", ["kml", "gpkg", "shp", "fgb"])
def test_a_file_that_names_files_elsewhere_is_not_opened(tmp_path, ending):
    pytest.importorskip("pyogrio")
    write_features(tmp_path / "secret.geojson", POINT)
    inner = f'<OGRVRTLayer name="secret"><SrcDataSource>{tmp_path / "secret.geojson"}</SrcDataSource></OGRVRTLayer>'
    file = write_csv(tmp_path / f"p.{ending}", f"<OGRVRTDataSource>{inner}</OGRVRTDataSource>")
    with pytest.raises(SpecError, match=rf"its content is no \.{ending}"):
        read_places(file, CHIP)


def test_columns_of_a_frame_with_several_types_come_as_json_and_ids_as_text():
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.GeoDataFrame(
        {"id": ["a", 2], "o": ["x", 1], "n": [2**70, None], "l": [{"a": 1}, [1]]},
        geometry=[shapely.Point(13.7, 48.2)] * 2,
        crs=4326,
    )
    found = read_places(frame, CHIP)
    assert [row.id for row in found.rows] == ["a", "2"]
    assert found.columns.to_pydict() == {"o": ['"x"', "1"], "n": [str(2**70), None], "l": ['{"a": 1}', "[1]"]}
    assert read_places(frame.geometry, CHIP).rows[1].place == HERE
    twice = frame.set_axis(["id", "o", "o", "l", "geometry"], axis=1)
    for wrong, says in (
        (twice, "'o' twice"),
        (frame[:0], "no places"),
        (frame.drop(columns="geometry"), "no geometry"),
    ):
        wrong = geopandas.GeoDataFrame(wrong)
        with pytest.raises(SpecError, match=says):
            read_places(wrong, CHIP)


@pytest.mark.parametrize(
    ("geo", "says"),
    [
        ("[1]", "its metadata `geo` is no GeoParquet"),
        ("{", "its metadata `geo` is no GeoParquet"),
        ('{"columns": {"geometry": {"crs": null}}}', "has no CRS: set it"),
        ('{"columns": {"geometry": {"crs": "nope"}}}', "the CRS 'nope' is not known"),
    ],
)
def test_geoparquet_whose_metadata_are_wrong_is_one_error(tmp_path, geo, says):
    table = pa.table({"geometry": [shapely.Point(13.7, 48.2).wkb]}).replace_schema_metadata({"geo": geo})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(SpecError, match=says):
        read_places(tmp_path / "p.parquet", CHIP)


def test_parquet_with_two_columns_of_coordinates_needs_no_geometry(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "lon": [13.7], "lat": [48.2], "n": [1]}), tmp_path / "p.parquet")
    found = read_places(tmp_path / "p.parquet", CHIP)
    assert (found.rows[0].id, found.rows[0].place) == ("a", HERE)
    assert found.columns.to_pydict() == {"n": [1]}


# --- swapped coordinates -------------------------------------------------------------------------------


def test_the_land_mask_knows_continents_islands_and_seas():
    land = [(13.7, 48.2), (-60, -5), (179.5, 67), (-180, 67), (175.8, -40.3), (-157.9, 21.4), (0, -90), (33, -25)]
    sea = [(48.2, 13.7 - 1.2), (-30, 30), (0, 90), (180, 0), (-180, -60), (5, 2)]
    assert on_land(*zip(*land, strict=True)).all()
    assert not on_land(*zip(*sea, strict=True)).any()
    assert not on_land([181, 0, np.nan], [0, 91, 0]).any()


@pytest.mark.parametrize(
    ("places", "is_said"),
    [
        ([(52.5, 13.4), (53.1, 8.8)], True),  # Berlin, Bremen
        ([(13.4, 52.5), (8.8, 53.1)], False),
        ([(52.5, 13.4), (8.8, 53.1)], False),  # one lies on land
        ([(3.0, 54.5)], False),  # the North Sea, whose swap is sea too
        ([(146.0, -17.5)], False),  # the Great Barrier Reef, whose swap is no place
    ],
)
def test_places_in_the_sea_whose_swap_is_on_land_are_said(tmp_path, caplog, places, is_said):
    text = "lon,lat\n" + "".join(f"{lon},{lat}\n" for lon, lat in places)
    read_places(write_csv(tmp_path / "p.csv", text), CHIP)
    assert ("with longitude and latitude swapped" in caplog.text) == is_said
