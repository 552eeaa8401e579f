"""The page in a real browser: search, click, mark, filter, keyboard, link, download, narrow and dark."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rs_embed import EmbeddingIndex, PointBuffer, TemporalSpec, export_embeddings, list_samples
from rs_embed.embedders.text import unit
from vector_dataset import write_vectors
from web_server import serving

MODEL = "clip_eurosat_s2rgb"
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two places of the sample, one in summer and one in winter, nine chips each."""
    folder = tmp_path_factory.mktemp("page") / "ds"
    for place in (list_samples()[0], list_samples()[-1]):
        spots = [(x, y) for x in (-400, 0, 400) for y in (-400, 0, 400)]
        chips = [PointBuffer(place.lon + x / 74_000, place.lat + y / 111_320, 200) for x, y in spots]
        temporal = TemporalSpec.range(place.start, place.end)
        export_embeddings(MODEL, chips, folder, temporal=temporal, backend="sample")
    return folder


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self.page: Page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        self.open(address)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready=true]", state="attached")

    @property
    def asked(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)

    def ids(self) -> list[str]:
        self.page.wait_for_selector("#panel[aria-busy=false]")
        return self.page.locator("#results li").evaluate_all("items => items.map(i => i.dataset.id)")


@pytest.fixture
def visit(browser, url) -> Iterator[Visit]:
    visit = Visit(browser, url)
    yield visit
    visit.page.close()
    assert not visit.complaints
    assert visit.hosts <= {"127.0.0.1", ""}  # nothing from anywhere else


def search(visit: Visit, words: str) -> list[str]:
    visit.page.get_by_label("Show every place that looks like").fill(words)
    visit.page.get_by_role("button", name="Search", exact=True).click()
    expect(visit.page.locator("#count")).to_contain_text(" of ")
    return visit.ids()


def test_a_search_lists_and_draws_what_the_index_finds(visit, folder):
    assert visit.ids() == []
    found = search(visit, "farm fields")
    hits = EmbeddingIndex(folder).search("farm fields").hits
    assert found == [h.unique_id for h in hits]
    expect(visit.page.locator("#count")).to_have_text("18 of 18")
    expect(visit.page.locator(".pin")).to_have_count(18)
    expect(visit.page.locator("#legend")).to_contain_text("better match than")
    visit.page.locator("#results li").first.click()
    expect(visit.page.locator("#results li").first).to_have_attribute("aria-current", "true")
    expect(visit.page.locator(".popup")).to_contain_text(f"{hits[0].lat:.4f}, {hits[0].lon:.4f}")
    visit.page.wait_for_timeout(1500)  # the flight, and the quicklooks
    drawn = np.asarray(Image.open(io.BytesIO(visit.page.locator("#map").screenshot())).convert("RGB"))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2000  # imagery, not an empty canvas


def test_a_click_on_the_map_picks_the_place_there(visit, folder):
    search(visit, "farm fields")
    visit.page.locator("#results li").first.click()
    visit.page.wait_for_timeout(1200)
    box = visit.page.locator("#map").bounding_box()
    visit.page.mouse.click(box["x"] + box["width"] / 2 + 5, box["y"] + box["height"] / 2 + 140)  # south of it
    expect(visit.page.locator(".popup")).to_be_visible()
    first, south = (EmbeddingIndex(folder).position_of(i) for i in (visit.ids()[0], picked(visit)))
    assert first != south


def picked(visit: Visit) -> str:
    return visit.page.locator("#results li[aria-current=true]").get_attribute("data-id")


def test_marks_rank_again_and_can_be_taken_back(visit, folder):
    before = search(visit, "farm fields")
    visit.page.locator("#results li").nth(2).get_by_role("button", name="More like this").click()
    expect(visit.page.locator("#chips button")).to_have_count(1)
    visit.page.locator(f"#results li[data-id='{before[0]}']").get_by_role("button", name="Not this").click()
    expect(visit.page.locator("#chips button")).to_have_count(2)
    assert visit.asked == {"text": ["farm fields"], "id": [before[2]], "unlike": [before[0]]}
    expected = EmbeddingIndex(folder).search("farm fields", id=[before[2]], unlike=[before[0]])
    assert visit.ids() == [h.unique_id for h in expected.hits]
    assert not {before[0], before[2]} & set(visit.ids())
    for left in (1, 0):
        visit.page.locator("#chips button").first.click()
        expect(visit.page.locator("#chips button")).to_have_count(left)
    assert visit.ids() == before


def test_time_and_area_filter_the_answer(visit, folder):
    assert len(search(visit, "forest")) == 18
    visit.page.get_by_text("Filters").click()
    visit.page.get_by_label("From").fill("2018-01-01")
    expect(visit.page.locator("#count")).to_have_text("9 of 9")
    assert visit.asked["start"] == ["2018-01-01"]
    visit.page.locator("#results li").first.click()
    visit.page.wait_for_timeout(1200)
    visit.page.get_by_role("button", name="Remove: 2018-01-01 to …").click()
    expect(visit.page.locator("#count")).to_have_text("18 of 18")
    visit.page.locator("#results li").first.click()
    visit.page.wait_for_timeout(1200)
    visit.page.get_by_role("button", name="Search this area").click()
    expect(visit.page.locator("#count")).to_have_text("9 of 9")
    west, south, east, north = map(float, visit.asked["bbox"][0].split(","))
    assert 0 < east - west < 0.2
    found = EmbeddingIndex(folder).search("forest", bbox=(west, south, east, north))
    assert visit.ids() == [h.unique_id for h in found.hits]


def test_what_the_model_does_not_know_of_the_words_is_on_the_page(visit):
    search(visit, "forest fire")
    expect(visit.page.locator("#notice")).to_contain_text("does not know the word(s) 'fire'")
    search(visit, "forest")
    expect(visit.page.locator("#notice")).not_to_contain_text("does not know")


def test_a_link_shows_the_same_and_back_goes_back(visit, browser):
    first = search(visit, "forest")
    second = search(visit, "lake")
    address = visit.page.url
    visit.page.go_back()
    expect(visit.page.get_by_label("Show every place that looks like")).to_have_value("forest")
    assert visit.ids() == first
    other = Visit(browser, address)
    assert other.ids() == second
    other.page.close()


def test_the_keyboard_is_enough(visit):
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("forest")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#count")).to_have_text("18 of 18")
    visit.page.keyboard.press("Escape")
    for _ in range(3):
        visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("ArrowUp")
    found = visit.ids()
    assert picked(visit) == found[1]
    visit.page.keyboard.press("n")
    expect(visit.page.locator("#chips button")).to_have_count(1)
    assert visit.asked["unlike"] == [found[1]]


def test_the_answer_downloads_as_geojson(visit, url):
    found = search(visit, "forest")
    with visit.page.expect_download() as download:
        visit.page.get_by_role("link", name="GeoJSON").click()
    features = json.loads(Path(download.value.path()).read_text())["features"]
    assert [f["id"] for f in features] == found
    assert requests.get(f"{url}/api/search.geojson?text=forest").headers["content-type"].startswith("application/geo")


def test_a_view_of_the_whole_world_keeps_what_was_found(browser, tmp_path):
    vectors = unit(np.random.default_rng(0).normal(size=(6500, 512)).astype(np.float32))
    with serving(write_vectors(tmp_path / "ds", vectors)) as url:
        visit = Visit(browser, f"{url}/?id=v0-3")
        for _ in range(8):  # the button is off once the map shows the world
            visit.page.get_by_role("button", name="Zoom out").dispatch_event("click")
            visit.page.wait_for_timeout(400)
        visit.page.wait_for_timeout(1000)
        assert len(visit.ids()) == 20
        visit.page.get_by_role("button", name="Search this area").click()
        expect(visit.page.locator("#count")).to_contain_text("20 of ")
        assert not visit.complaints
        visit.page.close()


def test_what_is_wrong_with_the_dataset_is_on_the_page(browser, tmp_path):
    folder = write_vectors(tmp_path / "ds", np.eye(8, 64, dtype=np.float32))
    (folder / "embeddings" / "part-<b>.parquet").write_bytes(b"x")
    with serving(folder) as url:
        visit = Visit(browser, url)
        expect(visit.page.get_by_role("list", name="Problems of the dataset")).to_contain_text(
            "part-<b>.parquet is damaged"
        )
        assert Axe().run(visit.page).violations_count == 0
        visit.page.close()


def test_where_more_places_are_in_view_than_can_be_drawn_only_the_results_have_quicklooks(browser, url):
    def drawn(limit: int) -> set[str]:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.route(
            "**/map.mjs",
            lambda route: route.fulfill(
                response=(answer := route.fetch()),
                body=re.sub(r"QUICKLOOKS = \d+", f"QUICKLOOKS = {limit}", answer.text()),
            ),
        )
        asked: set[str] = set()
        page.on("request", lambda request: asked.add(request.url) if "/api/thumbnail/" in request.url else None)
        page.goto(f"{url}/?text=forest&k=3")
        page.wait_for_selector("html[data-ready=true]", state="attached")
        page.locator("#results li").first.click()  # near it are eight others
        page.wait_for_timeout(2500)
        page.close()
        return asked

    assert len(drawn(4)) == 3
    assert len(drawn(1200)) >= 9


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(browser, url):
    visit = Visit(browser, f"{url}/?text=forest")
    visit.page.evaluate(
        """() => {
            const fetched = window.fetch;
            const late = (path) => new Promise((go) => setTimeout(go, 1500)).then(() => fetched(path));
            window.fetch = (path) => (String(path).includes("text=lake") ? late(path) : fetched(path));
        }"""
    )
    for words in ("lake", "river"):
        visit.page.get_by_label("Show every place that looks like").fill(words)
        visit.page.get_by_label("Show every place that looks like").press("Enter")
    visit.page.wait_for_timeout(3000)
    assert visit.asked["text"] == ["river"]
    assert visit.ids() == [r["unique_id"] for r in requests.get(f"{url}/api/search?text=river").json()["results"]]
    visit.page.close()


def test_a_server_that_is_gone_is_told(browser, folder):
    with serving(folder) as address:
        visit = Visit(browser, address)
    visit.page.get_by_label("Show every place that looks like").fill("forest")
    visit.page.get_by_role("button", name="Search", exact=True).click()
    expect(visit.page.locator("#notice")).to_contain_text("is rs-embed serve still running?")
    visit.page.close()


def test_an_area_without_words_shows_what_lies_in_it(visit, folder):
    visit.page.get_by_text("Filters").click()
    visit.page.get_by_label("From").fill("2018-01-01")
    visit.page.wait_for_timeout(500)
    assert "No place" not in visit.page.locator("#notice").inner_text()
    visit.page.get_by_label("From").fill("2031-01-01")
    expect(visit.page.locator("#notice")).to_have_text("No place is left by these filters.")
    visit.page.get_by_label("From").fill("")
    visit.page.get_by_label("but not like").fill("forest")
    visit.page.get_by_label("but not like").press("Enter")
    expect(visit.page.locator("#notice")).to_contain_text("Say what it should look like first")


def test_words_that_are_markup_stay_words(browser, url):
    visit = Visit(browser, f"{url}/?text=%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D1%3E&id=%3Cb%3E")
    expect(visit.page.locator("#notice")).to_contain_text("the dataset has no row '<b>'")
    assert visit.page.title() == "Search places · rs-embed"
    assert visit.page.locator("#notice b").count() == 0
    visit.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_is_accessible_light_and_dark_wide_and_narrow(browser, url, scheme, width):
    visit = Visit(browser, f"{url}/?text=forest&k=10", viewport={"width": width, "height": 740}, color_scheme=scheme)
    visit.ids()
    visit.page.get_by_text("Filters").click()
    found = Axe().run(visit.page).response["violations"]
    assert not [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found]
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    map_box, list_box = (visit.page.locator(name).bounding_box() for name in ("#map", "#results"))
    assert map_box["height"] > 250
    beside = list_box["x"] + list_box["width"] <= map_box["x"]
    assert beside == (width > 760)
    visit.page.close()


@pytest.mark.parametrize(("width", "height"), [(320, 256), (740, 360)])
def test_a_small_screen_scrolls_to_form_and_results(browser, url, width, height):
    visit = Visit(browser, f"{url}/?text=forest", viewport={"width": width, "height": height})
    visit.ids()
    for name in ("#text", "#results li:nth-child(3) .place"):
        visit.page.locator(name).scroll_into_view_if_needed()
        box = visit.page.locator(name).bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        on_top = visit.page.evaluate("([x, y]) => document.elementFromPoint(x, y)?.closest('#panel') !== null", middle)
        assert on_top, name  # not covered by the map
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    visit.page.close()


def test_a_large_dataset_without_quicklooks_shows_some_places_from_everywhere(browser, tmp_path):
    rng = np.random.default_rng(0)
    folder = write_vectors(tmp_path / "ds", unit(rng.normal(size=(5000, 512)).astype(np.float32)))
    with serving(folder) as url:
        visit = Visit(browser, url)
        places = requests.get(f"{url}/api/places?spread=true&limit=2000").json()["results"]
        assert (places[0]["lon"], len(places)) == (0, 1667)
        assert places[-1]["lon"] == pytest.approx(10, abs=0.01)
        visit.open(f"{url}/?id=v0-77")
        assert len(visit.ids()) == 20
        assert visit.page.locator("#results img").count() == 0
        assert not visit.complaints
        visit.page.close()
