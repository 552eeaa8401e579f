"""The page in a real browser: search, click, mark, filter, keyboard, link, download, narrow and dark."""

from __future__ import annotations

import csv
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
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright

from rs_embed import EmbeddingIndex, list_samples
from rs_embed.cli.demo.samples import export_samples
from rs_embed.embedders.text import unit
from vector_dataset import write_vectors
from web_server import serving

MODEL = "clip_eurosat_s2rgb"
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The demo's dataset: six places of the sample, the last one in winter, nine chips each."""
    return export_samples(list_samples(), tmp_path_factory.mktemp("page"), MODEL)


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with serving(folder) as address:
        yield address


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Iterator[str]:
    """A large dataset without quicklooks, whose service may save concepts."""
    vectors = unit(np.random.default_rng(0).normal(size=(6500, 64)).astype(np.float32))
    with serving(write_vectors(tmp_path_factory.mktemp("many") / "ds", vectors), save_concepts=True) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser) -> BrowserContext:
    """A window with a cache, in which the map moves without flights."""
    return browser.new_context(viewport={"width": 900, "height": 600}, reduced_motion="reduce")


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, window: BrowserContext, address: str | None = None) -> None:
        self.page: Page = window.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))
        if address is not None:
            self.open(address)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.page.close()

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready=true]", state="attached")

    def settle(self) -> None:
        """Wait until the map is drawn."""
        self.page.wait_for_selector("#stage[aria-busy=false]")

    @property
    def asked(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)

    def ids(self) -> list[str]:
        self.page.wait_for_selector("#panel[aria-busy=false]")
        return self.page.locator("#results li").evaluate_all("items => items.map(i => i.dataset.id)")


@pytest.fixture
def visit(window, url) -> Iterator[Visit]:
    with Visit(window, url) as visit:
        yield visit
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
    expect(visit.page.locator("#count")).to_have_text("20 of 54")
    expect(visit.page.locator(".pin")).to_have_count(20)
    expect(visit.page.locator("#legend")).to_contain_text("better match than")
    visit.page.locator("#results li").first.click()
    expect(visit.page.locator("#results li").first).to_have_attribute("aria-current", "true")
    expect(visit.page.locator(".popup")).to_contain_text(f"{hits[0].lat:.4f}, {hits[0].lon:.4f}")
    visit.settle()
    assert colours(visit.page) > 2000  # imagery, not an empty canvas


def test_a_click_on_the_map_picks_the_place_there(visit, folder):
    search(visit, "farm fields")
    visit.page.locator("#results li").first.click()
    visit.settle()
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
    assert len(search(visit, "forest")) == 20
    visit.page.get_by_text("Filters").click()
    visit.page.get_by_label("From").fill("2018-01-01")
    expect(visit.page.locator("#count")).to_have_text("9 of 9")
    assert visit.asked["start"] == ["2018-01-01"]
    visit.page.locator("#results li").first.click()
    visit.settle()
    visit.page.get_by_role("button", name="Remove: 2018-01-01 to …").click()
    expect(visit.page.locator("#count")).to_have_text("20 of 54")
    visit.page.locator("#results li").first.click()
    visit.settle()
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


def test_a_link_shows_the_same_and_back_goes_back(visit, window):
    first = search(visit, "forest")
    second = search(visit, "lake")
    address = visit.page.url
    visit.page.go_back()
    expect(visit.page.get_by_label("Show every place that looks like")).to_have_value("forest")
    assert visit.ids() == first
    with Visit(window, address) as other:
        assert other.ids() == second


def test_the_keyboard_is_enough(visit):
    visit.page.keyboard.press("/")
    visit.page.keyboard.type("forest")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#count")).to_have_text("20 of 54")
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


def test_a_view_of_the_whole_world_keeps_what_was_found(window, many):
    with Visit(window, f"{many}/?id=v0-3") as visit:
        assert visit.page.locator("#results img").count() == 0  # a dataset without quicklooks
        for _ in range(8):  # the button is off once the map shows the world
            visit.page.get_by_role("button", name="Zoom out").dispatch_event("click")
        visit.settle()
        assert len(visit.ids()) == 20
        visit.page.get_by_role("button", name="Search this area").click()
        expect(visit.page.locator("#count")).to_contain_text("20 of ")
        assert not visit.complaints


def test_a_large_dataset_shows_some_places_from_everywhere(many):
    places = requests.get(f"{many}/api/places?spread=true&limit=2000").json()["results"]
    assert (places[0]["lon"], len(places)) == (0, 1625)
    assert places[-1]["lon"] == pytest.approx(10, abs=0.01)


def test_what_is_wrong_with_the_dataset_is_on_the_page(window, tmp_path):
    folder = write_vectors(tmp_path / "ds", np.eye(8, 64, dtype=np.float32))
    (folder / "embeddings" / "part-<b>.parquet").write_bytes(b"x")
    with serving(folder) as url, Visit(window, url) as visit:
        expect(visit.page.get_by_role("list", name="Problems of the dataset")).to_contain_text(
            "part-<b>.parquet is damaged"
        )
        assert Axe().run(visit.page).violations_count == 0


def test_where_more_places_are_in_view_than_can_be_drawn_only_the_results_have_quicklooks(window, url):
    def drawn(limit: int) -> set[str]:
        def fewer(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, body=re.sub(r"QUICKLOOKS = \d+", f"QUICKLOOKS = {limit}", answer.text()))

        asked: set[str] = set()
        with Visit(window) as visit:
            visit.page.route("**/map.mjs", fewer)
            visit.page.on("request", lambda r: asked.add(r.url) if "/api/thumbnail/" in r.url else None)
            visit.open(f"{url}/?text=forest&k=3")
            visit.page.locator("#results li").first.click()  # near it are eight others
            visit.settle()
        return asked

    assert len(drawn(4)) == 3
    assert len(drawn(1200)) >= 9


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(window, url):
    with Visit(window, f"{url}/?text=forest") as visit:
        visit.page.evaluate(
            """() => {
                const fetched = window.fetch;
                const late = (path) => new Promise((go) => setTimeout(go, 1500)).then(() => fetched(path));
                window.fetch = (path) => (String(path).includes("text=lake") ? late(path) : fetched(path));
            }"""
        )
        with visit.page.expect_response(lambda response: "search?text=lake" in response.url):
            for words in ("lake", "river"):
                visit.page.get_by_label("Show every place that looks like").fill(words)
                visit.page.get_by_label("Show every place that looks like").press("Enter")
        visit.page.wait_for_timeout(200)
        assert visit.asked["text"] == ["river"]
        assert visit.ids() == [r["unique_id"] for r in requests.get(f"{url}/api/search?text=river").json()["results"]]


def test_a_server_that_is_gone_is_told(window, folder):
    with serving(folder) as address:
        visit = Visit(window, address)
    with visit:
        visit.page.get_by_label("Show every place that looks like").fill("forest")
        visit.page.get_by_role("button", name="Search", exact=True).click()
        expect(visit.page.locator("#notice")).to_contain_text("is rs-embed serve still running?")


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


def test_words_that_are_markup_stay_words(window, url):
    with Visit(window, f"{url}/?text=%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D1%3E&id=%3Cb%3E") as visit:
        expect(visit.page.locator("#notice")).to_contain_text("the dataset has no row '<b>'")
        assert visit.page.title() == "Search places · rs-embed"
        assert visit.page.locator("#notice b").count() == 0


def test_it_is_accessible_light_and_dark_wide_and_narrow(window, url, folder):
    like, unlike = (hit.unique_id for hit in EmbeddingIndex(folder).search("lake", k=2).hits)
    with Visit(window, f"{url}/?text=forest&k=10&id={like}&unlike={unlike}") as visit:
        visit.ids()
        visit.page.locator("#results li").first.click()
        visit.page.get_by_text("Filters").click()
        for width, scheme in ((1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")):
            visit.page.set_viewport_size({"width": width, "height": 740})
            visit.page.emulate_media(color_scheme=scheme)
            found = Axe().run(visit.page).response["violations"]
            assert not [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found], (width, scheme)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
            words, map_, results = (visit.page.locator(name).bounding_box() for name in ("#text", "#map", "#results"))
            assert map_["height"] > 250
            if width > 760:
                assert results["x"] + results["width"] <= map_["x"]
            else:
                assert words["y"] < map_["y"] < results["y"]


def test_a_small_screen_scrolls_to_form_and_results_and_begins_with_the_legend_folded(window, url):
    with Visit(window) as visit:
        for width, height in ((320, 256), (740, 360)):
            visit.page.set_viewport_size({"width": width, "height": height})
            visit.open(f"{url}/?text=forest")
            visit.ids()
            for name in ("#text", "#results li:nth-child(3) .place"):
                visit.page.locator(name).scroll_into_view_if_needed()
                box = visit.page.locator(name).bounding_box()
                middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                ours = "([x, y]) => document.elementFromPoint(x, y)?.closest('#panel') !== null"
                assert visit.page.evaluate(ours, middle), name  # not covered by the map
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            assert visit.page.locator("#legend").get_attribute("open") is None


def test_the_map_goes_to_a_town_or_to_coordinates_and_says_what_is_there(visit):
    def go_to(text: str) -> Locator:
        visit.page.get_by_label("Go to a town").fill(text)
        visit.page.get_by_label("Go to a town").press("Enter")
        return visit.page.locator("#told")

    expect(go_to("wien")).to_have_text("Vienna, Austria: this dataset has no place in view here.")
    expect(go_to("Nowhere upon Nothing")).to_contain_text("is called “Nowhere upon Nothing”: try latitude, longitude")
    place = list_samples()[0]
    expect(go_to(f"{place.lat:.4f} N, {place.lon:.4f} E")).to_have_text(f"{place.lat:.4f}, {place.lon:.4f}")
    assert visit.page.locator(".target").count() == 1


def test_a_basemap_without_a_network_says_so(window, url):
    with Visit(window, url) as visit:
        visit.page.route("https://tile.openstreetmap.org/**", lambda route: route.abort())
        visit.page.get_by_label("Basemap").check()
        expect(visit.page.locator("#told")).to_contain_text("The basemap does not load: it needs a network")
        visit.page.get_by_label("Basemap").uncheck()
        expect(visit.page.locator("#told")).to_be_empty()


def test_marks_are_saved_as_a_concept_where_the_service_may_write(window, many):
    with Visit(window, f"{many}/?id=v0-3&unlike=v0-9") as visit:
        visit.page.get_by_label("These marks, as a concept named").fill("my place")
        visit.page.get_by_role("button", name="Save").click()
        expect(visit.page.locator("#notice")).to_contain_text("The concept “my place” is saved")
        visit.page.locator("#filters summary").click()
        visit.page.get_by_label("Saved concept").select_option("my place")
        expect(visit.page.locator("#chips")).to_contain_text("concept my place")
        asked = requests.get(f"{many}/api/search", params={"concept": "my place"}).json()
        assert visit.ids() == [row["unique_id"] for row in asked["results"]]


def test_a_journalist_goes_to_a_town_asks_for_solar_farms_marks_places_and_takes_a_table_home(visit, folder):
    page = visit.page
    visit.settle()
    assert colours(page) > 2000  # it opens on imagery
    expect(page.locator("#suggestions button").first).to_be_visible()
    page.get_by_label("Go to a town").fill("Ried im Innkreis")
    page.get_by_label("Go to a town").press("Enter")
    expect(page.locator("#told")).to_contain_text("Ried im Innkreis, Austria")
    search(visit, "solar farm")
    expect(page.locator("#notice")).to_contain_text("'solar'")  # the model cannot read it
    first, second = search(visit, "farm fields")[:2]
    expect(page.locator("#results li").first).to_contain_text(re.compile(r"\d km [NESW]+ of \w+"))
    page.locator("#results li").first.click()
    link = page.get_by_role("link", name="Open in OpenStreetMap").get_attribute("href")
    assert link.startswith("https://www.openstreetmap.org/?mlat=")
    page.locator(f"#results li[data-id='{first}']").get_by_role("button", name="More like this").click()
    expect(page.locator("#chips button")).to_have_count(1)
    page.locator(f"#results li[data-id='{second}']").get_by_role("button", name="Not this").click()
    expect(page.locator("#chips button")).to_have_count(2)
    found = visit.ids()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
    assert [row["unique_id"] for row in rows] == found
    assert all(" of " in row["near"] for row in rows)
    page.get_by_label("These marks, as a concept named").fill("fields")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    saved = json.loads(Path(download.value.path()).read_text())
    learnt = EmbeddingIndex(folder).train(first, second, name="fields", text="farm fields", save=False)
    assert (saved["name"], saved["positives"], saved["negatives"]) == ("fields", [first], [second])
    assert saved["direction"] == pytest.approx(learnt.direction, abs=1e-6)
    assert not (folder / "concepts").exists()  # the service only reads


def colours(page: Page) -> int:
    drawn = np.asarray(Image.open(io.BytesIO(page.locator("#map").screenshot())).convert("RGB"))
    return len(np.unique(drawn.reshape(-1, 3), axis=0))
