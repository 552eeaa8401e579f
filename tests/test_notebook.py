"""Results as a person meets them in a notebook: pictures and facts, frames, GeoTIFFs and progress bars."""

from __future__ import annotations

import base64
import io
import pickle
import sys
from dataclasses import replace
from html.parser import HTMLParser

import geopandas
import numpy as np
import pytest
import rasterio
from PIL import Image

from fakes import NO_IMAGERY, FakeProvider, patch_of
from rs_embed import (
    EmbeddingIndex,
    OutputSpec,
    PointBuffer,
    RSEmbedError,
    SensorSpec,
    SpecError,
    TemporalSpec,
    export_embeddings,
    get_embedding,
    get_embeddings_batch,
    heat_map,
    open_dataset,
    plan_export,
)
from rs_embed.grid import place_geobox
from rs_embed.pictures import token_colours
from rs_embed.providers.base import PatchRequest
from rs_embed.search.results import Hit, SearchResults

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACE = PointBuffer(15, 48, 640)


@pytest.fixture(scope="module")
def grid():
    return get_embedding(MODEL, spatial=PLACE, temporal=JUNE, output=OutputSpec.grid(), backend=FakeProvider())


@pytest.fixture(scope="module")
def pooled():
    return get_embedding(MODEL, spatial=PLACE, temporal=JUNE, backend=FakeProvider())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook") / "ds"
    places = [PointBuffer(15 + i / 100, 48, 320) for i in range(6)] + [PointBuffer(180, -16.5, 640)]
    export_embeddings(MODEL, places, folder, temporal=JUNE, backend=FakeProvider())
    return folder


@pytest.fixture(scope="module")
def index(folder):
    return EmbeddingIndex(folder)


def test_a_token_grid_is_a_geotiff_where_its_tokens_lie(grid, tmp_path):
    path = grid.to_geotiff(tmp_path / "tokens.tif")
    with rasterio.open(path) as file:
        assert (file.count, file.shape, file.crs) == (192, grid.data.shape[1:], grid.meta["crs"])
        np.testing.assert_array_equal(file.read(), grid.data.values)
        for row, column in ((0, 0), (6, 3)):
            x, y = file.xy(row, column)
            assert (x, y) == pytest.approx((float(grid.data["x"][column]), float(grid.data["y"][row])))
        assert file.descriptions[:2] == ("d0", "d1")
        assert file.tags()["request_id"] == grid.meta["request_id"]
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.tif"]


def test_a_vector_and_a_grid_without_a_place_are_no_geotiff(pooled, tmp_path):
    with pytest.raises(SpecError, match=r"is a vector.*OutputSpec\.grid\(\)"):
        pooled.to_geotiff(tmp_path / "v.tif")
    pixels = np.random.default_rng(0).integers(0, 3000, (3, 64, 64))
    nowhere = get_embedding(MODEL, input_chw=pixels, output=OutputSpec.grid())
    with pytest.raises(SpecError, match="no coordinates"):
        nowhere.to_geotiff(tmp_path / "v.tif")
    assert list(tmp_path.iterdir()) == []


def test_hits_are_a_geodataframe_in_their_order(index):
    found = index.search(id=index.places(limit=1).hits[0].id, k=5)
    frame = found.to_geodataframe()
    assert isinstance(frame, geopandas.GeoDataFrame)
    assert frame["unique_id"].tolist() == [hit.unique_id for hit in found.hits]
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    assert frame.crs.to_authority() == ("OGC", "CRS84")
    assert frame.geometry.is_valid.all()
    assert "footprint" not in frame
    across = index.places(bbox=(179, -17, -179, -16)).to_geodataframe()
    assert across.geometry.geom_type.tolist() == ["MultiPolygon"]  # cut at 180°
    assert len(index.places(bbox=(0, 0, 1, 1)).to_geodataframe()) == 0


def test_a_missing_geopandas_is_one_line(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(RSEmbedError, match=r"'geopandas'.*pip install 'rs-embed-remoteclip\[notebook\]'"):
        index.places().to_geodataframe()


class _Page(HTMLParser):
    """Texts, links and pictures of a page; every tag must be closed and known."""

    KNOWN = ("div", "a", "img", "progress")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.pictures: list[Image.Image] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on")]
        if tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
            return
        self.links += [found["href"]] if "href" in found else []
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " | ".join(self.texts)


def page(value: object) -> _Page:
    html = value._repr_html_()
    assert len(html) < 400_000
    return _Page(html)


def test_a_vector_shows_its_place_its_imagery_and_a_quicklook(pooled):
    shown = page(pooled)
    assert "48.0000°N 15.0000°E, 1,280 m a side" in shown.text
    assert "2022-06-01 to 2022-07-01" in shown.text
    assert "192 float32, token_mean" in shown.text
    assert [image.size for image in shown.pictures] == [(160, 160)]
    assert shown.links == ["https://www.openstreetmap.org/?mlat=48.00000&mlon=15.00000#map=13/48.00000/15.00000"]
    for warning in pooled.meta["warnings"]:
        assert warning in shown.text
    assert np.ptp(np.asarray(shown.pictures[0])) > 100  # pixels, not a flat square


def test_a_token_grid_is_drawn_in_colours(grid):
    shown = page(grid)
    assert len(shown.pictures) == 2
    assert "192 x 7 x 7 float32" in shown.text
    image = np.asarray(token_colours(grid.data.values, side_px=70))
    assert image.shape == (70, 70, 3)
    assert (np.ptp(image, axis=(0, 1)) > 200).all()
    assert grid.plot().size[0] > grid.plot().size[1]


def test_the_colours_of_tokens_follow_their_first_components_and_gaps_are_hatched():
    tokens = np.zeros((32, 4, 4), np.float32)
    tokens[5, :, 2:] = 9  # the only difference: left and right
    tokens[:, 0, 0] = np.nan
    image = np.asarray(token_colours(tokens, side_px=4))
    assert len({tuple(image[y, x]) for y in range(4) for x in range(2) if (y, x) != (0, 0)}) == 1
    assert tuple(image[3, 0]) != tuple(image[3, 3])
    assert tuple(image[0, 0]) in ((168,) * 3, (208,) * 3)


def test_results_of_many_places_keep_no_pixels_and_say_how_to_see_them(small):
    pixels = [np.full((3, 8, 8), 1000, np.uint16)] * 101
    found = get_embeddings_batch("remoteclip_s2rgb", input_chws=pixels, checkpoint=small)
    assert all(result.preview is None for result in found)
    assert page(found[0]).pictures == []
    with pytest.raises(SpecError, match="fetch_patch"):
        found[0].plot()


def test_a_failure_shows_its_error(pooled):
    [failure] = get_embeddings_batch(
        MODEL, spatials=[PLACE], temporal=JUNE, backend=FakeProvider(failing={0: NO_IMAGERY}), on_error="return"
    )
    assert str(failure.error) in page(failure).text


def test_imagery_shows_itself(folder):
    geobox = place_geobox(PLACE, 10)
    patch = patch_of(PatchRequest(geobox, JUNE, SensorSpec()))
    patch.dn[:, :20, :20] = np.nan
    patch = replace(patch, source="<script>alert(1)</script>", warnings=("a <b>warning</b>",))
    shown = page(patch)
    assert "<script>alert(1)</script>" in shown.texts
    assert "a <b>warning</b>" in shown.texts
    assert "128 x 128 px of 10 m, EPSG:32633" in shown.text
    assert len(repr(patch)) < 200
    assert patch.plot().size == (512, 512)
    one_band = replace(patch, dn=patch.dn[:1].copy(), bands=("B8",))
    assert len(page(one_band).pictures) == 1


def test_hits_show_their_quicklooks_places_and_ids(index):
    found = index.search(id=index.places(limit=1).hits[0].id, k=5)
    shown = page(found)
    assert len(shown.pictures) == 5
    assert len(shown.links) == 5
    assert f"| {found.hits[0].id} |" in f"| {shown.text} |"
    assert "5 of " in shown.text
    assert found.plot("like that").size[0] > 900
    assert len(repr(found)) < 200
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    assert page(again).pictures == []
    assert found.to_dict().keys() == {"results", "notice", "presence", "searched", "exact", "recall"}


def test_everything_foreign_is_escaped():
    evil = '<img src=x onerror="alert(1)">\x1b[31m'
    facts = {"rank": 1, "score": 1.0, "percentile": 1.0, "probability": 0.5, "id": evil, "lon": 1.0, "lat": 2.0}
    facts |= {"bounds": (0, 0, 1, 1), "footprint": (), "start": "", "end": "", "status": "ok", "scene_ids": ()}
    found = SearchResults(hits=(Hit(unique_id=evil, **facts),), notice=evil, searched=1)
    shown = page(found)
    assert shown.texts.count(evil.replace("\x1b", r"\x1b")) == 2
    assert "1 · 50% likely" in shown.text


def test_a_dataset_shows_its_facts_and_first_quicklooks(folder, tmp_path):
    data = open_dataset(folder)
    shown = page(data)
    assert len(shown.pictures) == 7
    assert str(folder) in shown.text
    assert MODEL in shown.text
    assert len(page(data.filter(bbox=(179, -17, -179, -16))).pictures) == 1
    assert page(data.filter(bbox=(0, 0, 1, 1))).pictures == []
    export_embeddings(
        *(MODEL, [PLACE], tmp_path / "none"), temporal=JUNE, backend=FakeProvider(failing={0: NO_IMAGERY})
    )
    assert "1, see failures()" in page(open_dataset(tmp_path / "none")).text


def test_a_plan_shows_what_it_costs():
    plan = plan_export([PLACE, PointBuffer(16, 48, 640)], temporal=JUNE, backend=FakeProvider())
    assert "2" in page(plan).texts
    assert "Mbit/s" in page(plan).text
    assert len(repr(plan)) < 200


def test_a_heat_map_shows_where():
    place = PointBuffer(15, 48, 400)
    heat = heat_map(MODEL, "<lake>", spatial=place, temporal=JUNE, backend=FakeProvider())
    shown = page(heat)
    assert "Where is “<lake>”?" in shown.texts
    assert len(shown.pictures) == 2
    assert len(shown.links) == 1
    assert heat.plot().size[0] > 900
    assert len(repr(heat)) < 200
