"""An odd item of a catalog, or a wrong value in it, costs itself alone: the two good scenes beside it are used."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from archive_server import Tile, write_dates
from hostile_server import World, serve_world
from rs_embed import PointBuffer, ProviderError, StacProvider, TemporalSpec, fetch_patch
from rs_embed.providers import http
from rs_embed.retry import HTTP_RANGE

HOME = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=512)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACE = PointBuffer(15.02, 47.83, 320)
NAN = float("nan")
SQUARE = [[13, 48], [14, 48], [14, 49], [13, 49], [13, 48]]

ITEMS: dict[str, dict[str, Any]] = {
    "no outline": {"geometry": {"type": "Polygon", "coordinates": []}},
    "an unknown geometry": {"geometry": {"type": "Nope"}},
    "a number for a geometry": {"geometry": 5},
    "a geometry without coordinates": {"geometry": {"type": "Polygon"}},
    "words for coordinates": {"geometry": {"type": "Point", "coordinates": ["x", 1]}},
    "an outline that crosses itself": {
        "geometry": {"type": "Polygon", "coordinates": [[[13, 48], [14, 49], [14, 48], [13, 49], [13, 48]]]}
    },
    "an outline of two points": {"geometry": {"type": "Polygon", "coordinates": [[[13, 48], [14, 49]]]}},
    "an outline of NaN": {"geometry": {"type": "Polygon", "coordinates": [[[NAN, NAN]] * 4]}},
    "heights in the outline": {"geometry": {"type": "Polygon", "coordinates": [[[*p, 100.0] for p in SQUARE]]}},
    "a short bbox": {"bbox": [1]},
    "words in the bbox": {"bbox": ["a"] * 4},
    "NaN in the bbox": {"bbox": [NAN] * 4},
    "a bbox with heights": {"bbox": [13, 48, 0, 16, 49, 100]},
    "no properties": {"properties": None},
    "a list of properties": {"properties": []},
    "a list of assets": {"assets": []},
    "a number of assets": {"assets": 5},
    "an id of another type": {"id": {"a": 1}},
    "no id": {"id": None},
    "control characters in the id": {"id": "\x1b]0;x\x07\x1b[2J"},
    "a collection of another type": {"collection": [1]},
    "another type": {"type": "x"},
}
PROPERTIES: dict[str, dict[str, Any]] = {
    "words for clouds": {"eo:cloud_cover": "many"},
    "NaN for clouds": {"eo:cloud_cover": NAN},
    "a list for clouds": {"eo:cloud_cover": [1]},
    "a number too large for clouds": {"eo:cloud_cover": 10**400},
    "a word for a time": {"datetime": "yesterday"},
    "no time": {"datetime": None},
    "a number for a time": {"datetime": 5},
    "a time after all times": {"datetime": "9999-12-31T23:59:59-23:59"},
    "a time before all times": {"datetime": "0001-01-01T00:00:00+23:59"},
    "no pixels": {"proj:shape": [0, 0]},
    "too many pixels": {"proj:shape": [1e9, 1e9], "proj:code": "EPSG:999999"},
    "words for pixels": {"proj:shape": ["a", "b"]},
    "a flat transform": {"proj:transform": [0] * 9},
    "a transform of NaN": {"proj:transform": [NAN] * 6},
    "a short transform": {"proj:transform": [1]},
    "a list for a baseline": {"s2:processing_baseline": []},
    "an unknown baseline": {"s2:processing_baseline": "99.99.99"},
    "an object for a name": {"s2:product_uri": {"x": 1}},
    "lists for a tile": {"grid:code": [1], "s2:mgrs_tile": {}},
    "a word for a flag": {"earthsearch:boa_offset_applied": "x"},
    "other types for times": {"created": 5, "updated": [], "s2:generation_time": {}},
}
RED: dict[str, dict[str, Any]] = {
    "a number for bands": {"raster:bands": 5},
    "numbers in bands": {"raster:bands": [5]},
    "words for a scale": {"raster:bands": [{"scale": "x", "offset": "y"}]},
    "no scale": {"raster:bands": [{"scale": None}]},
    "NaN for a scale": {"raster:bands": [{"scale": NAN}]},
    "a scale of 0": {"raster:bands": [{"scale": 0, "offset": 0}]},
    "no address": {"href": None},
    "half an IPv6 address": {"href": "http://[::1"},
    "an impossible port": {"href": "http://127.0.0.1:99999999/x.tif"},
    "no host": {"href": "http:///x.tif"},
    "dots for a host": {"href": "http://.../x.tif"},
    "a space in the host": {"href": "http://a b/x.tif"},
    "a snowman and a null in the host": {"href": "http://\u2603\u0000/x.tif"},
    "an overlong host": {"href": f"http://{'a' * 300}/x.tif"},
    "a line break in the address": {"href": "http://127.0.0.1:9/\r\nX: y.tif"},
    "a list for an address": {"href": ["http://127.0.0.1:9/x.tif"]},
    "a list for a size": {"file:size": [1]},
}
ASSETS: dict[str, dict[str, Any]] = {
    "a number for an asset": {"red": 5},
    "an empty asset": {"red": {}},
    "a number for an asset's bands": {"x": {"href": "http://127.0.0.1:9/x.tif", "eo:bands": 5}},
    "a word in an asset's bands": {"x": {"href": "http://127.0.0.1:9/x.tif", "eo:bands": ["a"]}},
    "a number in STAC 1.1's bands": {"x": {"href": "http://127.0.0.1:9/x.tif", "bands": [5]}},
    "ten thousand assets": {f"a{i}": {"href": f"http://127.0.0.1:9/x{i}.tif"} for i in range(10_000)},
}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """A host whose name is not found is asked for again for 15 s; here for one."""
    monkeypatch.setattr(http, "HTTP_RANGE", replace(HTTP_RANGE, deadline_s=1.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    with serve_world(World(root, write_dates(root, "http://world", HOME))) as world:
        yield world


def check(world: World, odd: Any) -> None:
    """Fetch beside the odd item, which stands in for the scene of 13 June."""
    first, _, last = items = list(world.items)
    world.items = [first, odd, last]
    try:
        patch = fetch_patch(PLACE, JUNE, backend=StacProvider(f"stac:{world.url}#sentinel-2-l2a"))
    finally:
        world.items = items
    used = [scene.datetime[:10] for scene in patch.scenes]
    assert [day for day in used if day != "2022-06-13"] == ["2022-06-23", "2022-06-03"]
    assert len(used) <= 3


@pytest.mark.parametrize("what", ITEMS)
def test_an_odd_item_costs_itself(world, what):
    check(world, copy.deepcopy(world.items[1]) | ITEMS[what])


@pytest.mark.parametrize("what", PROPERTIES)
def test_an_odd_property_costs_itself(world, what):
    item = copy.deepcopy(world.items[1])
    check(world, item | {"properties": item["properties"] | PROPERTIES[what]})


@pytest.mark.parametrize("what", RED)
def test_an_odd_red_asset_costs_itself(world, what):
    item = copy.deepcopy(world.items[1])
    item["assets"]["red"] |= RED[what]
    check(world, item)


@pytest.mark.parametrize("what", ASSETS)
def test_odd_assets_cost_themselves(world, what):
    item = copy.deepcopy(world.items[1])
    check(world, item | {"assets": item["assets"] | ASSETS[what]})


@pytest.mark.parametrize("odd", [5, None, [], "x", {}])
def test_what_is_no_item_costs_itself(world, odd):
    check(world, odd)


def test_a_catalog_of_odd_items_alone_is_one_error(world):
    items, world.items = world.items, [copy.deepcopy(world.items[1]) | change for change in ITEMS.values()]
    try:
        with pytest.raises(ProviderError):
            fetch_patch(PointBuffer(10, 10, 320), JUNE, backend=StacProvider(f"stac:{world.url}#sentinel-2-l2a"))
    finally:
        world.items = items
