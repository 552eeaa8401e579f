"""The HTTP API on a real server on loopback: what it finds, and what it does with hostile input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import requests
from fastapi.testclient import TestClient
from PIL import Image
from pyproj import Geod

from rs_embed import EmbeddingIndex, RSEmbedError, TemporalSpec, export_embeddings, list_samples
from rs_embed.export.folder import DatasetFolder
from rs_embed.search.results import NOTHING_LIKE_IT
from rs_embed.web import server
from rs_embed.web.gazetteer import Gazetteer
from rs_embed.web.server import create_app, listen
from rs_embed.web.tables import csv_of
from vector_dataset import write_vectors
from web_server import serving

MODEL = "clip_eurosat_s2rgb"
TOWNS = Path(server.__file__).parent / "page" / "vendor" / "towns.tsv.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "ds"
    for n, place in enumerate(list_samples()):
        csv = folder.parent / f"{n}.csv"
        rows = [f"{place.id}/{x},{place.lon + x / 70_000},{place.lat}" for x in (-400, 0, 400)]
        csv.write_text("\n".join(["id,lon,lat", *rows]))
        temporal = TemporalSpec.range(place.start, place.end)
        export_embeddings(MODEL, csv, folder, temporal=temporal, backend="sample", chip_m=400)
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def test_search_gives_what_the_index_gives(url, folder):
    answer = requests.get(f"{url}/api/search", params={"text": "forest", "negative": ["houses", "lake"], "k": 5}).json()
    expected = EmbeddingIndex(folder).search("forest", negative=["houses", "lake"], k=5)
    assert [r["unique_id"] for r in answer["results"]] == [h.unique_id for h in expected.hits]
    assert answer["notice"] == expected.notice
    assert answer["searched"] == 18
    place = list_samples()[0]
    box = f"{place.lon - 0.02},{place.lat - 0.02},{place.lon + 0.02},{place.lat + 0.02}"
    near = requests.get(f"{url}/api/search", params={"text": "forest", "bbox": box}).json()
    assert len(near["results"]) == 3
    winter = {"text": "forest", "start": "2017-12-01", "end": "2018-03-01"}
    assert {r["start"] for r in requests.get(f"{url}/api/search", params=winter).json()["results"]} == {
        "2017-12-01",
        "2018-02-01",
    }


def test_places_similar_ones_and_thumbnails(url):
    places = requests.get(f"{url}/api/places", params={"limit": 5, "offset": 2}).json()
    assert (len(places["results"]), places["searched"]) == (5, 18)
    row = places["results"][0]
    alike = requests.get(f"{url}/api/similar/{row['unique_id']}", params={"k": 3}).json()["results"]
    assert len(alike) == 3
    assert row["unique_id"] not in {r["unique_id"] for r in alike}
    answer = requests.get(f"{url}/api/thumbnail/{row['unique_id']}")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (96, 96)
    asked = requests.get(f"{url}/api/places", params={"text": "forest", "limit": 18}).json()["results"]
    best = requests.get(f"{url}/api/search", params={"text": "forest", "k": 3}).json()["results"]
    by_id = {r["unique_id"]: r["percentile"] for r in asked}
    assert [by_id[r["unique_id"]] for r in best] == [r["percentile"] for r in best]
    assert "/api/search" in requests.get(f"{url}/openapi.json").json()["paths"]


def test_suggestions_occur_in_the_dataset_and_show_different_places(url, folder):
    found = requests.get(f"{url}/api/suggestions").json()["suggestions"]
    assert len(found) <= 8
    assert len({each["id"] for each in found}) == len(found)
    index = EmbeddingIndex(folder)
    for each in found:
        results = index.search(each["text"])
        assert results.hits[0].unique_id == each["id"]
        assert NOTHING_LIKE_IT not in (results.notice or "")


def test_hits_tell_places_apart_by_the_nearest_town(url, folder):
    hits = EmbeddingIndex(folder).search("forest", k=18).hits
    rows = requests.get(f"{url}/api/search", params={"text": "forest", "k": 18}).json()["results"]
    towns = [line.split("\t") for line in lzma.decompress(TOWNS.read_bytes()).decode().splitlines()]
    lons, lats = (np.array([float(town[column]) for town in towns]) for column in (4, 3))
    for hit, row in zip(hits, rows, strict=True):
        azimuths, _, metres = Geod(ellps="WGS84").inv(
            lons, lats, *(np.full(len(lons), at) for at in (hit.lon, hit.lat))
        )
        nearest = metres.argmin()
        direction = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"][round(azimuths[nearest] / 45) % 8]
        assert row["near"] == f"{metres[nearest] / 1000:.1f} km {direction} of {towns[nearest][0]}"


def test_towns_are_found_by_name_in_any_language_and_in_a_box(url):
    def names(**asked: object) -> list[str]:
        return [town["name"] for town in requests.get(f"{url}/api/gazetteer", params=asked).json()["towns"]]

    assert names(name="WIEN")[0] == names(name="Vídeň")[0] == "Vienna"
    assert names(name="sankt p") == names(name="Sankt-P")
    assert "Sankt Pölten" in names(name="sankt polten")
    paris = requests.get(f"{url}/api/gazetteer?name=paris").json()["towns"]
    assert (paris[0]["country"], paris[0]["region"]) == ("FR", "")
    assert ("US", "TX") in [(town["country"], town["region"]) for town in paris]
    assert names(name="zzzz") == names(name=" ") == []
    assert names(bbox="15.9,48.2,16.2,48.4", limit=1) == ["Tulln"]
    assert "Suva" in names(bbox="177,-20,-178,-15")  # across 180°
    near = requests.get(f"{url}/api/gazetteer/near", params={"lon": 16.02, "lat": 48.35}).json()
    assert near == {"near": "3.7 km NW of Tulln"}


def test_an_installation_without_towns_names_none():
    empty = Gazetteer([])
    assert (empty.near([1.0], [2.0]), empty.named("wien", 5), empty.within((-180, -90, 180, 90), 5)) == ([None], [], [])


def test_a_table_holds_the_hits_and_no_formula(url):
    asked = {"text": "forest", "k": 5}
    rows = requests.get(f"{url}/api/search", params=asked).json()["results"]
    answer = requests.get(f"{url}/api/search.csv", params=asked)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="hits.csv"'
    table = list(csv.DictReader(answer.content.decode("utf-8-sig").splitlines()))
    names = ("id", "near", "unique_id", "start", "end")
    assert [[row[name] for name in names] for row in table] == [[row[name] for name in names] for row in rows]
    assert [(float(r["lon"]), float(r["west"])) for r in table] == [(r["lon"], r["bounds"][0]) for r in rows]
    for name in ("=1+2", "@SUM(A1)", "-2+3", "+1", "\t=1"):
        [row] = csv.DictReader(csv_of([rows[0] | {"id": name}]).decode("utf-8-sig").splitlines())
        assert row["id"] == f"'{name}"


def test_a_map_opens_where_most_places_lie_together(url, tmp_path):
    west, south, east, north = requests.get(f"{url}/api/dataset").json()["dense_extent"]
    assert east - west < 0.05
    near = requests.get(f"{url}/api/places", params={"bbox": f"{west},{south},{east},{north}"}).json()
    assert near["searched"] == 3  # one of the six places, with its chips
    assert EmbeddingIndex(write_vectors(tmp_path / "ds", np.empty((0, 64), np.float32))).dense_extent is None


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("/api/search", 400),
        ("/api/search?text=" + "x" * 10_000, 422),
        ("/api/search?text=%20", 400),
        ("/api/search?text=a&k=0", 422),
        ("/api/search?text=a&k=100000", 422),
        ("/api/search?text=a&k=nan", 422),
        ("/api/search?text=a&bbox=nan,nan,nan,nan", 400),
        ("/api/search?text=a&bbox=1,2,3", 422),
        ("/api/search?text=a&bbox=inf,0,1,1", 400),
        ("/api/search?text=a&start=2022-01-01", 422),
        ("/api/search?text=a&start=x&end=y", 400),
        ("/api/search?id=nobody", 400),
        ("/api/search?text=a&negative=" + "y" * 2000, 422),
        ("/api/search?text=a" + "&negative=b" * 50, 422),
        ("/api/similar/nobody", 404),
        ("/api/similar/" + "z" * 3000, 404),
        ("/api/thumbnail/nobody", 404),
        ("/api/thumbnail/..%2F..%2Fsecret.txt", 404),
        ("/api/thumbnail/" + quote("../../../etc/passwd", safe=""), 404),
        ("/../secret.txt", 404),
        ("/api/places?limit=0", 422),
        ("/api/places?offset=-1", 422),
        ("/api/places?text=" + "x" * 10_000, 422),
        ("/api/places?id=nobody", 400),
        ("/api/places?bbox=nan,nan,nan,nan", 400),
        ("/api/nothing", 404),
        ("/api/search?text=a" + "&id=b" * 60, 422),
        ("/api/search?id=" + "x" * 300, 422),
        ("/api/search?text=a&unlike=nobody", 400),
        ("/api/search?unlike=nobody", 400),
        ("/api/search?concept=" + quote("../../x", safe=""), 400),
        ("/api/search?concept=none&text=a", 400),
        ("/api/search?concept=" + quote("𒀀" * 63), 400),
        ("/api/search?negative=a", 400),
        ("/api/search.geojson?text=a&bbox=nan,nan,nan,nan", 400),
        ("/api/search.csv?text=a&bbox=nan,nan,nan,nan", 400),
        ("/api/gazetteer?name=" + "x" * 10_000, 422),
        ("/api/gazetteer?bbox=1,2,3", 422),
        ("/api/gazetteer?bbox=nan,nan,nan,nan", 400),
        ("/api/gazetteer?limit=1000", 422),
        ("/api/gazetteer/near?lon=nan&lat=0", 422),
        ("/api/gazetteer/near?lon=0&lat=91", 422),
        ("/api/concept?name=x", 400),
        ("/api/concept?name=x&id=nobody&unlike=none", 400),
        ("/api/concept?id=a&unlike=b&name=" + quote("../../x", safe=""), 400),
        ("/..%2Fserver.py", 404),
        ("/vendor/..%2F..%2Fserver.py", 404),
        ("/%2e%2e/%2e%2e/secret.txt", 404),
        ("/page.mjs%00.txt", 404),
        ("/docs", 404),
    ],
)
def test_hostile_input_is_answered_with_what_is_wrong(url, route, status):
    session = requests.Session()
    request = requests.Request("GET", url).prepare()
    request.url = url + route  # as it stands: requests would tidy the path
    answer = session.send(request)
    assert answer.status_code == status, answer.text[:300]
    assert "secret" not in answer.text.replace("secret.txt", "")
    assert json.loads(answer.text)["detail"]


def test_the_page_takes_nothing_from_elsewhere_and_says_so(url):
    answer = requests.get(url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("index.html", "page.mjs", "map.mjs", "page.css"):
        text = requests.get(f"{url}/{name}").text
        sources = set(re.findall(r"https?://([^/\"'`$]+)", text)) - {"www.w3.org"}
        assert sources <= {"tile.openstreetmap.org", "www.openstreetmap.org"}  # the basemap, once it is asked for
    assert requests.get(f"{url}/vendor/maplibre-gl/maplibre-gl.mjs").status_code == 200
    assert requests.get(f"{url}/api/dataset").json()["rows"] == 18


def test_rows_that_are_added_while_it_runs_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("rs_embed.web.server._REFRESH_S", 0.05)
    vectors = np.random.default_rng(0).normal(size=(2, 20, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors[0], [f"a/b #{i}?%2F" for i in range(20)])
    with serving(folder) as address:
        assert requests.get(f"{address}/api/similar/" + quote("a/b #3?%2F", safe="")).status_code == 200
        write_vectors(folder, vectors[1])
        wait_until(lambda: requests.get(f"{address}/api/places").json()["searched"] == 40)
        assert len(requests.get(f"{address}/api/similar/v1-3", params={"k": 5}).json()["results"]) == 5


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Fail unless a condition is true within some seconds."""
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.05)


@pytest.fixture
def changing(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A dataset of 20 rows, which a test changes, and the address of its server, which looks every 50 ms."""
    monkeypatch.setattr("rs_embed.web.server._REFRESH_S", 0.05)
    vectors = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors, [f"r{i}" for i in range(20)])
    with serving(folder) as address:
        yield folder, address


def problems(address: str) -> list[str]:
    return requests.get(f"{address}/api/problems").json()["problems"]


def damage_a_part(folder: Path) -> None:
    file = folder / "embeddings" / "part-000000.parquet"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))


def truncate_the_index(folder: Path) -> None:
    os.truncate(folder / ".rs-embed" / "index" / "vectors.f16", 10)
    os.utime(folder / ".rs-embed" / "index" / "index.json")


def put_another_there(folder: Path) -> None:
    manifest = folder / ".rs-embed" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("remoteclip_s2rgb", "clip_eurosat_s2rgb"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shutil.rmtree, "is gone: put it back, the rows read before are still searched"),
        (damage_a_part, "part-000000.parquet is damaged"),
        (
            lambda folder: (folder / "embeddings" / "part-000001.parquet").write_bytes(b"x"),
            "part-000001.parquet is damaged",
        ),
        (lambda folder: (folder / ".rs-embed" / "manifest.json").write_text("["), "manifest.json is damaged"),
        (put_another_there, "holds another dataset now: open it again"),
        (lambda folder: shutil.rmtree(folder / ".rs-embed" / "index"), None),
        (truncate_the_index, None),
    ],
)
def test_old_rows_answer_whatever_becomes_of_the_folder(changing, change, says, caplog):
    folder, address = changing
    caplog.clear()
    change(folder)
    if says is not None:
        wait_until(lambda: bool(problems(address)))
    for _ in range(5):
        time.sleep(0.1)
        found = requests.get(f"{address}/api/similar/r3", params={"k": 19}, timeout=5)
        assert (found.status_code, len(found.json()["results"])) == (200, 19)
    if says is None:
        assert problems(address) == []
    else:
        [problem] = problems(address)
        assert says in problem
        assert requests.get(f"{address}/api/dataset").json()["problems"] == [problem]
        assert caplog.text.count(problem) == 1


def test_a_folder_that_comes_back_is_fine_again(changing):
    folder, address = changing
    folder.rename(folder.with_name("away"))
    wait_until(lambda: "is gone" in "".join(problems(address)))
    folder.with_name("away").rename(folder)
    wait_until(lambda: not problems(address))


def test_a_search_does_not_wait_for_an_index_that_another_process_holds(changing):
    folder, address = changing
    with DatasetFolder(folder).lock("index"):
        write_vectors(folder, np.random.default_rng(1).normal(size=(20, 64)).astype(np.float32))
        wait_until(lambda: "another process writes to the index" in "".join(problems(address)))
        for _ in range(8):  # more than may search at a time
            started = time.monotonic()
            assert requests.get(f"{address}/api/places", timeout=5).json()["searched"] == 20
            assert time.monotonic() - started < 1
    wait_until(lambda: requests.get(f"{address}/api/places").json()["searched"] == 40)
    assert problems(address) == []


def concept(**changes: object) -> dict[str, object]:
    return {"name": "mine", "id": ["r3"], "unlike": ["r4", "r5"], **changes}


def test_a_concept_is_a_download_and_nothing_is_written_unless_the_service_was_started_for_it(changing):
    folder, address = changing
    answer = requests.get(f"{address}/api/concept", params=concept(name="my färms"))
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''my%20f%C3%A4rms.json"
    refused = requests.post(f"{address}/api/concept", json=concept())
    assert (refused.status_code, refused.json()["detail"]) == (
        403,
        "this service only reads: start it with --save-concepts, or download the concept",
    )
    assert not (folder / "concepts").exists()
    (folder / "concepts").mkdir()
    (folder / "concepts" / "my färms.json").write_bytes(answer.content)
    by_file = requests.get(f"{address}/api/search", params={"concept": "my färms"}).json()["results"]
    by_marks = requests.get(f"{address}/api/search", params={"id": "r3", "unlike": ["r4", "r5"]}).json()["results"]
    marks = {"r3", "r4", "r5"}
    assert [r["id"] for r in by_file if r["id"] not in marks] == [r["id"] for r in by_marks]


def test_a_concept_is_saved_once_and_only_by_the_services_own_page(changing):
    folder, _ = changing
    client = TestClient(create_app(folder, save_concepts=True), base_url="http://127.0.0.1:8000")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://127.0.0.1:8000.evil.example"):
        answer = client.post("/api/concept", json=concept(), headers={"origin": origin})
        assert (answer.status_code, "must not write here" in answer.json()["detail"]) == (403, True), origin
    assert client.post("/api/concept", content=b"name=mine", headers={"content-type": "text/plain"}).status_code == 422
    assert client.post("/api/concept", json=concept(name="../x")).status_code == 400
    assert client.post("/api/concept", json=concept(text="x" * 70_000)).status_code == 413
    assert client.post("/api/concept", content=iter([b"{}"])).status_code == 413  # in pieces, without a length
    assert not (folder / "concepts").exists()
    saved = client.post("/api/concept", json=concept(), headers={"origin": "http://127.0.0.1:8000"})
    assert (saved.status_code, saved.json()) == (201, {"name": "mine"})
    assert client.get("/api/dataset").json()["concepts"] == ["mine"]
    again = client.post("/api/concept", json=concept(id=["r7"]))
    assert (again.status_code, again.json()["detail"]) == (409, "there is a concept 'mine': take another name")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7:80", 200),
        (socket.gethostname(), 200),
        ("maps.example.org", 200),
        ("MAPS.example.org:443", 200),
        ("evil.example.com", 400),
        ("evil.example.com:8000", 400),
        ("127.0.0.1.evil.example.com", 400),
        ("localhost.evil.example.com", 400),
        ("evil.example.com\x1b[31m", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_only_an_address_or_an_allowed_name_is_answered_for(folder, host, status):
    client = TestClient(create_app(folder, ["maps.example.org"]), base_url="http://127.0.0.1")
    for route in ("/api/places", "/", "/openapi.json"):
        answer = client.get(route, headers={"host": host})
        assert answer.status_code == status, host
    if status == 400:
        assert "start it with --allow-host NAME" in answer.json()["detail"]
        assert "\x1b" not in answer.text
    assert TestClient(create_app(folder, ["*"]), base_url="http://x.example").get("/api/places").status_code == 200


def test_connections_that_do_nothing_are_closed_and_many_are_not_accepted(url, monkeypatch):
    monkeypatch.setattr("rs_embed.web.guards._IDLE_S", 0.2)
    monkeypatch.setattr("rs_embed.web.guards.CONNECTIONS", 5)
    port = int(url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(12)]
    for number, connection in enumerate(idle):
        connection.sendall(b"GET /api/places HTTP/1.1\r\nHost: " if number % 2 else b"")
    for connection in idle:
        with connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""  # it times out where the connection is held
    wait_until(lambda: requests.get(f"{url}/api/places").status_code == 200)


def test_a_client_that_reads_nothing_is_given_up(url, monkeypatch):
    monkeypatch.setattr("rs_embed.web.guards._IDLE_S", 0.2)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        request = b"GET /vendor/maplibre-gl/maplibre-gl.mjs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection.sendall(request * 30)  # more than the buffers of the system hold
        wait_until(lambda: _is_cut(connection))


def _is_cut(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"GET")
    except OSError:
        return True
    return False


def test_the_description_of_the_api_lists_every_answer(url):
    paths = requests.get(f"{url}/openapi.json").json()["paths"]
    for path, methods in paths.items():
        answers = set(methods["get"]["responses"])
        assert {"200", "400", "503"} <= answers, path
        assert ("404" in answers) == ("{id}" in path)
        assert ("422" in answers) == (path not in ("/api/dataset", "/api/problems", "/api/suggestions"))


def test_a_dataset_without_rows_is_served(tmp_path):
    with serving(write_vectors(tmp_path / "ds", np.empty((0, 64), np.float32))) as address:
        assert requests.get(f"{address}/api/search?text=forest").json()["notice"] == "this dataset has no rows yet"
        assert requests.get(f"{address}/api/places?text=forest").json()["results"] == []
        assert requests.get(f"{address}/api/dataset").json()["extent"] is None


def test_a_port_that_is_taken_is_told_before_anything_else():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RSEmbedError, match="take another --port"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_answers_do_not_wait_for_their_second_half():
    """They would, 40 ms each, for asyncio sees to it only where a socket names its protocol."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_many_clients_at_once_get_answers(url):
    stop = time.monotonic() + 3
    routes = [
        "/api/search?text=forest",
        "/api/search?text=%FF",
        "/api/places?limit=5",
        "/api/search?bbox=x",
        "/api/similar/x",
    ]

    def client(number: int) -> Counter[int]:
        found: Counter[int] = Counter()
        with requests.Session() as session:
            while time.monotonic() < stop:
                found[session.get(url + routes[number % len(routes)], timeout=30).status_code] += 1
        return found

    with ThreadPoolExecutor(50) as pool:
        total = sum(pool.map(client, range(50)), Counter())
    assert sum(total.values()) >= 50
    assert not [status for status in total if status >= 500]


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(RSEmbedError, match="is no dataset"):
        create_app(tmp_path)
