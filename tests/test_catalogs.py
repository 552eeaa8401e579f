"""Catalogs as they are: signed addresses, busy servers, products in parts, values that are no values."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from archive_server import Api, FileServer, Tile, serve_api, serve_files, write_cog, write_scene
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, StacProvider, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import drop_duplicates
from rs_embed.providers.stac.catalogs import StacCatalog
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.retry import STAC_SEARCH, retry_after_s

TILE = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=512)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
Item = dict[str, object]


def request(x: float = 2500, y: float = 2500, sensor: SensorSpec | None = None) -> PatchRequest:
    """A place by metres from the tile's upper left corner, right and down."""
    lon, lat = Transformer.from_crs(TILE.epsg, 4326, always_xy=True).transform(TILE.left + x, TILE.top - y)
    return PatchRequest(place_geobox(PointBuffer(lon, lat, 320), 10), JUNE, sensor or SensorSpec())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Item, Item]:
    """The files of two dates of one tile, and their items."""
    root = tmp_path_factory.mktemp("archive")
    return root, *(write_scene(root, "http://files", TILE, f"2022-06-{day}", seed=int(day)) for day in ("03", "13"))


@pytest.fixture
def files(stored) -> Iterator[FileServer]:
    with serve_files(FileServer(stored[0])) as server:
        yield server


def moved(item: Item, files: FileServer, query: str = "") -> Item:
    """An item whose files lie on the server, at addresses with a query."""
    copy = json.loads(json.dumps(item).replace("http://files", files.url))
    for asset in copy["assets"].values():
        asset["href"] += query
    return copy


def catalog(api: Api, **tokens: str) -> StacCatalog:
    return StacCatalog(name="test", url=api.url, collections=("sentinel-2-l2a",), **tokens)


def fetch(items: list[Item], asked: PatchRequest | None = None, **tokens: str) -> Patch | ProviderError:
    with serve_api(Api(items)) as api:
        [(_, found)] = StacProvider(catalog(api, **tokens)).fetch([asked or request()])
    return found


# --- addresses ---------------------------------------------------------------------------------------


def test_a_signature_in_an_address_is_sent_as_it_is_and_shown_nowhere(stored, files, caplog):
    caplog.set_level(logging.DEBUG)
    files.token = "X-Amz-Credential=me%2F2022&X-Amz-Signature=abc"
    patch = fetch([moved(stored[1], files, f"?{files.token}")])
    assert isinstance(patch, Patch)
    assert "Signature" not in repr(patch)
    assert {q for q in files.queries if q} == {files.token}
    files.token = "another"
    refused = fetch([moved(stored[1], files, "?X-Amz-Signature=abc")])
    assert isinstance(refused, ProviderError)
    assert not isinstance(refused, NoImageryError)
    assert ".tif: 403" in str(refused)
    assert "Signature" not in str(refused)
    assert "Signature=abc" not in caplog.text.replace("POST", "")


def test_an_address_that_the_catalog_has_signed_is_not_signed_again_before_its_signature_is_refused(
    stored, files, tmp_path
):
    token = tmp_path / "sas" / "127" / str(stored[1]["id"])
    token.parent.mkdir(parents=True)
    token.write_text(json.dumps({"token": "sig=new", "msft:expiry": "2099-01-01T00:00:00Z"}))
    with serve_files(FileServer(tmp_path)) as tokens:
        signing = {"sas_token_url": f"{tokens.url}/sas", "signed_hosts": "127.0.0.1"}
        files.token = "sig=theirs"
        assert isinstance(fetch([moved(stored[1], files, "?sig=theirs")], **signing), Patch)
        assert not tokens.queries
        files.token = "sig=new"
        files.queries.clear()
        assert isinstance(fetch([moved(stored[1], files, "?sig=theirs")], **signing), Patch)
        assert set(files.queries) == {"sig=theirs", "sig=new"}
        assert len(tokens.queries) == 1
        assert files.queries.count("sig=theirs") == 4  # once a file


def test_a_token_is_waited_for_where_its_issuer_is_busy(stored, files, tmp_path):
    name = str(stored[1]["id"])
    token = tmp_path / "sas" / "127" / name
    token.parent.mkdir(parents=True)
    token.write_text(json.dumps({"token": "sig=new", "msft:expiry": "2099-01-01T00:00:00Z"}))
    files.token = "sig=new"
    with serve_files(FileServer(tmp_path, status_of={name: [429]})) as tokens:
        signing = {"sas_token_url": f"{tokens.url}/sas", "signed_hosts": "127.0.0.1"}
        patch = fetch([moved(stored[1], files)], **signing)
    assert isinstance(patch, Patch)
    assert patch.dropped == ()


def test_a_file_that_the_server_will_not_give_for_long_is_told_with_the_time(stored, files):
    files.status_of[".tif"] = [503] * 9
    files.retry_after = "300"
    started = time.monotonic()
    error = fetch([moved(stored[1], files)])
    assert ".tif: 503, and asked to wait 300 s (1 attempt(s))" in str(error)
    assert time.monotonic() - started < 10


# --- a catalog that limits its rate ------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_catalog_that_asks_to_wait_is_waited_for(stored, files, status, form):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    refusals = [(status, {"Retry-After": "1" if form == "seconds" else date})]
    with serve_api(Api([moved(stored[1], files)], refusals)) as api:
        [(_, patch)] = StacProvider(catalog(api)).fetch([request()])
    assert isinstance(patch, Patch)
    assert len(api.searched_at) == 2
    assert api.searched_at[1] - api.searched_at[0] >= 0.9


def test_pauses_that_the_catalog_asks_for_count_as_no_attempt(stored, files):
    refusals = [(429, {"Retry-After": "0.2" if i % 2 else "1"}) for i in range(2)]
    with serve_api(Api([moved(stored[1], files)], [*refusals, (429, {"Retry-After": "1"}), (500, {})])) as api:
        [(_, patch)] = StacProvider(catalog(api)).fetch([request()])
    assert isinstance(patch, Patch)
    assert len(api.searched_at) == 5


@pytest.mark.parametrize(
    ("refusal", "searches", "says"),
    [
        ((429, {"Retry-After": "300"}), 1, "answered 429 and asked to wait 300 s, also when asked again: try later"),
        ((503, {}), 3, "answered 503, also when asked again"),
        ((403, {}), 1, "answered 403: check its address and its collections sentinel-2-l2a"),
    ],
)
def test_a_catalog_that_is_given_up_is_told_with_its_answer(refusal, searches, says):
    with serve_api(Api([], [refusal] * 9)) as api:
        started = time.monotonic()
        with pytest.raises(ProviderError, match=says):
            list(StacProvider(catalog(api)).fetch([request()]))
    assert len(api.searched_at) == searches
    assert time.monotonic() - started < 10


def test_retry_after_is_a_number_of_seconds_or_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after_s(later) == pytest.approx(90, abs=2)
    assert [retry_after_s(text) for text in ("120", " 7 ", "soon", "", None, "-1")] == [120, 7, 0, 0, 0, 0]
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert STAC_SEARCH.deadline_s == 60


# --- products in parts, and doubles ------------------------------------------------------------------


def document(identifier: str, *, south: float = 47, north: float = 49, **changes: object) -> Item:
    """An item of one tile and second whose outline reaches from south to north."""
    ring = [[14, south], [16, south], [16, north], [14, north], [14, south]]
    properties = {"datetime": "2022-06-03T10:10:31Z", "grid:code": "MGRS-33UVP", "s2:processing_baseline": "04.00"}
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identifier,
        "collection": "sentinel-2-l2a",
        "bbox": [14, south, 16, north],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "assets": {"red": {"href": "https://host/B04.tif"}},
    }
    return item | changes | {"properties": properties | changes.get("properties", {})}  # type: ignore[operator]


def scene(identifier: str, baseline: str = "04.00", **changes: object) -> Scene:
    properties = {"s2:processing_baseline": baseline}
    return scene_of_item(document(identifier, properties=properties, **changes), lambda h: h if "http" in h else None)


@pytest.mark.parametrize(
    ("scenes", "kept"),
    [
        ([scene("north", south=48), scene("south", north=48.01)], {"north", "south"}),
        ([scene("old"), scene("new", "05.10", north=48.99)], {"new"}),
        ([scene("old", south=46.9), scene("new", "05.10")], {"new"}),
        ([scene("whole"), scene("part", "05.10", north=48)], {"whole", "part"}),
        ([scene("whole", "05.10"), scene("part", north=48)], {"whole"}),
        ([scene("whole"), scene("north", "05.10", south=48), scene("south", "05.10", north=48)], {"north", "south"}),
        ([scene("l2a"), scene("c1", north=48, collection="sentinel-2-c1-l2a")], {"c1"}),
        ([scene("l2a", north=48), scene("c1", south=48, collection="sentinel-2-c1-l2a")], {"l2a", "c1"}),
        ([scene("read"), scene("unread", "05.10", assets={"red": {"href": "s3://b/x.jp2"}})], {"read"}),
        ([scene("no outline", geometry=None), scene("outline", "05.10")], {"outline"}),
    ],
    ids=lambda value: None if isinstance(value, set) else " ".join(s.id for s in value),
)
def test_only_true_doubles_are_dropped(scenes, kept):
    for order in (scenes, scenes[::-1]):
        assert {s.id for s in drop_duplicates(order, ("sentinel-2-c1-l2a", "sentinel-2-l2a"))} == kept


def test_one_overpass_in_two_products_is_used_whole(tmp_path):
    """Two receiving stations: same tile, same second, the other half."""
    with serve_files(FileServer(tmp_path)) as files:
        halves = [write_scene(tmp_path, files.url, TILE, "2022-06-03", seed=1, cloud=c) for c in (5.0, 6.0)]
        for name, half, rows in zip("ab", halves, (slice(256, None), slice(0, 256)), strict=True):
            half["id"] = f"{half['id']}_{name}"
            west, south, east, north = half["bbox"]
            middle = (south + north) / 2
            south, north = (middle - 0.001, north) if name == "a" else (south, middle + 0.001)
            half["bbox"] = [west, south, east, north]
            ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
            half["geometry"] = {"type": "Polygon", "coordinates": [ring]}
            for key in ("red", "green", "blue"):
                whole = tmp_path / str(half["assets"][key]["href"]).removeprefix(f"{files.url}/")
                with rasterio.open(whole) as file:
                    values = file.read(1)
                values[rows] = 0
                part = whole.with_name(f"{name}_{whole.name}")
                write_cog(part, values, TILE.transform, TILE.epsg)
                half["assets"][key] = {"href": f"{files.url}/{part.relative_to(tmp_path)}"}
        patch = fetch(halves, request(2500, 2560))
    assert isinstance(patch, Patch)
    assert patch.valid.all()
    assert len(patch.scenes) == 2


# --- values that are no values -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"properties": {"eo:cloud_cover": "N/A"}},
        {"properties": {"eo:cloud_cover": None}},
        {"properties": {"eo:cloud_cover": "NaN"}},
        {"properties": {"grid:code": None, "s2:mgrs_tile": None, "title": None, "s2:product_uri": None}},
        {"bbox": None},
        {"bbox": ["?", 47, 16, 49]},
        {"geometry": None},
        {"geometry": {"type": "Polygon", "coordinates": []}},
        {"geometry": {"type": "Polygon", "coordinates": [[[14, 47], [16, 49], [16, 47], [14, 49], [14, 47]]]}},
        {"assets": {"red": {"href": "https://host/B04.tif", "alternate": None}, "green": None, "blue": {"href": None}}},
    ],
    ids=str,
)
def test_a_wrong_value_costs_itself_and_not_the_item(changes):
    found = scene_of_item(document("one", **changes), str)
    assert found.files["B4"].path == "https://host/B04.tif"
    assert found.fault is None
    assert found.cloud_pct is None
    assert found.meets((14.99, 47.99, 15.01, 48.01), JUNE)


def test_a_cloud_cover_that_is_no_number_keeps_the_scene_and_is_told(stored, files):
    item = moved(stored[1], files)
    item["properties"]["eo:cloud_cover"] = "N/A"
    patch = fetch([item, moved(stored[2], files)])
    assert isinstance(patch, Patch)
    assert [s.cloud_pct for s in patch.scenes] == [5.0, None]
    assert any("cloudy_pct=30 could not be applied to 1 scene(s)" in text for text in patch.warnings)


# --- files that cannot be read -----------------------------------------------------------------------


def unreadable(item: Item) -> Item:
    return json.loads(json.dumps(item).replace("http://files/", "s3://bucket/").replace(".tif", ".jp2"))


def test_items_without_a_readable_band_are_told_with_an_address(stored, files):
    found = fetch([unreadable(stored[1])])
    assert type(found) is ProviderError  # nothing was read: the place may well have imagery
    assert "1 item(s) found at " in str(found)
    assert "and none has a readable band: s3://bucket/S2A_T33UVP_20220603_l2a_0509/B04.jp2; use" in str(found)


def test_a_scene_without_a_readable_band_is_named_beside_one_that_is_read(stored, files):
    patch = fetch([unreadable(stored[1]), moved(stored[2], files)])
    assert isinstance(patch, Patch)
    assert [s.id for s in patch.scenes] == [stored[2]["id"]]
    [dropped] = patch.dropped
    assert (dropped.id, dropped.reason) == (
        stored[1]["id"],
        "no band can be read: s3://bucket/S2A_T33UVP_20220603_l2a_0509/B04.jp2",
    )


def test_an_alternate_address_is_used_where_the_first_one_cannot_be_read(stored, files):
    plain = fetch([moved(stored[1], files)])
    item = moved(stored[1], files)
    for asset in item["assets"].values():
        asset["alternate"] = {"s3": {"href": "s3://other/x.tif"}, "https": {"href": asset["href"]}}
        asset["href"] = "s3://bucket/x.tif"
    patch = fetch([item])
    assert isinstance(patch, Patch)
    np.testing.assert_array_equal(patch.dn, plain.dn)


def test_an_alternate_address_is_used_where_the_first_one_fails_for_good(stored, files):
    plain = fetch([moved(stored[1], files)])
    item = moved(stored[1], files)
    for asset in item["assets"].values():
        asset["alternate"] = {"mirror": {"href": asset["href"]}}
        asset["href"] = asset["href"].replace("S2A_", "gone/S2A_")
    patch = fetch([item])
    assert isinstance(patch, Patch)
    np.testing.assert_array_equal(patch.dn, plain.dn)
    for asset in item["assets"].values():
        asset["alternate"]["mirror"]["href"] += "x.tif?secret=1"
    lost = fetch([item])
    assert re.search(r"gone/S2A_T33UVP_20220603_l2a_0509/(B0[234]|SCL)\.tif: 404", str(lost))
    assert re.search(r"(B0[234]|SCL)\.tifx\.tif: 404", str(lost))
    assert "secret" not in str(lost)
