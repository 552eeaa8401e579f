"""Answers that never end, grow or lead elsewhere: each is given up in bounded time and memory, the others are used."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from archive_server import Tile, write_dates
from hostile_server import World, serve_world
from rs_embed import PointBuffer, ProviderError, StacProvider, TemporalSpec, fetch_patch
from rs_embed.patch import Patch

HOME = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=512)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACE = PointBuffer(15.02, 47.83, 320)
BAD = "20220613"
MB = 1 << 20


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return root, write_dates(root, "http://world", HOME)


@pytest.fixture
def world(stored):
    root, items = stored
    with serve_world(World(root, items)) as world:
        yield world


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """The limits of production, divided so that a test takes seconds."""
    from dataclasses import replace

    from rs_embed import retry
    from rs_embed.providers import http
    from rs_embed.providers.stac import search

    monkeypatch.setattr(http, "HTTP_RANGE", replace(retry.HTTP_RANGE, deadline_s=2.0))
    monkeypatch.setattr(search, "_ANSWER_S", 2.0)


def fetch(world: World) -> Patch:
    return fetch_patch(PLACE, JUNE, backend=StacProvider(f"stac:{world.url}#sentinel-2-l2a"))


def is_bad(path: str) -> bool:
    return BAD in path and path.endswith("B03.tif")


def lost(patch: Patch) -> str:
    """The one scene that was lost, and why."""
    assert [scene.id[11:19] for scene in patch.scenes] == ["20220623", "20220603"]
    [dropped] = patch.dropped
    assert BAD in dropped.id
    return dropped.reason


def test_a_range_that_drips_is_given_up(world):
    def drip(handler, path, start, data, size):
        if not is_bad(path):
            return False
        handler.start(206, len(data), Content_Range=f"bytes {start}-{start + len(data) - 1}/{size}")
        for i in range(len(data)):
            handler.wfile.write(data[i : i + 1])
            handler.wfile.flush()
            time.sleep(0.2)
        return True

    world.on_file = drip
    started = time.monotonic()
    assert "bytes in 2 s" in lost(fetch(world))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [206, 200])
def test_an_answer_longer_than_the_range_is_not_read_on(world, status):
    sent = []

    def endless(handler, path, start, data, size):
        if not is_bad(path):
            return False
        head = {"Content_Range": f"bytes {start}-{start + len(data) - 1}/{size}"} if status == 206 else {}
        handler.start(status, 1 << 30, **head)
        body = data if status == 206 else (world.root / path.lstrip("/")).read_bytes()
        handler.wfile.write(body)
        for number in range(1024):
            handler.wfile.write(bytes(MB))
            sent.append(number)
        return True

    world.on_file = endless
    patch = fetch(world)
    assert len(patch.scenes) == 3  # the bytes that were asked for came first, and are right
    assert len(sent) < 100


def test_a_range_at_another_place_is_asked_for_again(world):
    asked = []

    def shifted(handler, path, start, data, size):
        if not is_bad(path) or start == 0 or len(asked) > 1:
            return False
        asked.append(start)
        whole = (world.root / path.lstrip("/")).read_bytes()[start - 7 : start - 7 + len(data)]
        handler.reply(206, whole, Content_Range=f"bytes {start - 7}-{start - 8 + len(data)}/{size}")
        return True

    world.on_file = shifted
    calm = fetch(world)
    world.on_file = None
    np.testing.assert_array_equal(calm.dn, fetch(world).dn)
    assert asked


def test_a_compressed_answer_to_a_range_is_refused(world):
    def bomb(handler, path, start, data, size):
        if not is_bad(path):
            return False
        assert handler.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(bytes(64 * MB), 1)
        handler.reply(206, body, Content_Encoding="gzip", Content_Range=f"bytes {start}-{start}/{size}")
        return True

    world.on_file = bomb
    assert "its answer is compressed" in lost(fetch(world))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("file:///etc/passwd", "redirects from http to file, which is not followed (1 attempt(s))"),
        ("ftp://host/x.tif", "redirects from http to ftp, which is not followed (1 attempt(s))"),
        ("", "TooManyRedirects (1 attempt(s))"),
    ],
)
def test_a_redirect_elsewhere_is_refused_at_once(world, target, says):
    def redirect(handler, path, start, data, size):
        if is_bad(path):
            handler.reply(302, Location=target or path)
        return is_bad(path)

    world.on_file = redirect
    assert says in lost(fetch(world))


def test_no_redirect_leads_from_https_to_http():
    from rs_embed.answers import may_redirect

    allowed = {(a, b) for a in ("http", "https") for b in ("http", "https", "file", "ftp", "") if may_redirect(a, b)}
    assert allowed == {("http", "http"), ("http", "https"), ("https", "https")}


def page(world: World, items: list[dict[str, object]], **link: object) -> dict[str, object]:
    return {"type": "FeatureCollection", "features": items, "links": [{"rel": "next", "method": "GET", **link}]}


def test_pages_that_repeat_are_refused(world):
    world.on_search = lambda h: h.reply_json(page(world, world.items, href=f"{world.url}/search?page={world.searches}"))
    with pytest.raises(ProviderError, match="links to further pages without further items"):
        fetch(world)
    assert world.searches <= 3


def test_a_catalog_that_lists_without_end_is_given_up(world, monkeypatch):
    monkeypatch.setattr("rs_embed.providers.stac.search._MOST_ITEMS", 20)

    def more(handler):
        items = [item | {"id": f"{item['id']}_{world.searches}"} for item in world.items]
        handler.reply_json(page(world, items, href=f"{world.url}/search?page={world.searches}"))

    world.on_search = more
    with pytest.raises(ProviderError, match="lists over 20 items for one degree"):
        fetch(world)
    assert world.searches < 10


@pytest.mark.parametrize("href", ["/etc/passwd", "file:///etc/passwd", "secret.json"])
def test_a_catalog_never_makes_us_read_a_local_file(world, href, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret.json").write_text(json.dumps(page(world, world.items, href="https://example.org")))
    world.on_search = lambda h: h.reply_json(page(world, world.items, href=href))
    with pytest.raises(ProviderError, match=r"links to .*, which is no address of a catalog"):
        fetch(world)


@pytest.mark.parametrize("body", [b"[1]", b"5", b"[" * 200_000, b"{", b"", b"\xff"])
def test_json_of_another_shape_is_one_error(world, body):
    world.on_search = lambda h: h.reply(200, body, Content_Type="application/json")
    with pytest.raises(ProviderError, match=r"catalog 127\.0\.0\.1"):
        fetch(world)


def test_a_catalog_that_drips_is_given_up(world):
    def drip(handler):
        handler.start(200, 100_000)
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.2)

    world.on_search = drip
    started = time.monotonic()
    with pytest.raises(ProviderError, match="has not sent its answer within 2 s"):
        fetch(world)
    assert time.monotonic() - started < 10


CHILD = """
import resource, sys
from rs_embed import PointBuffer, ProviderError, StacProvider, TemporalSpec, fetch_patch
def fetch():
    provider = StacProvider(f"stac:{sys.argv[1]}#sentinel-2-l2a")
    return fetch_patch(PointBuffer(15.02, 47.83, 320), TemporalSpec.range("2022-06-01", "2022-07-01"), backend=provider)
fetch()
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
print("calm", flush=True)
sys.stdin.readline()
try:
    print(len(fetch().scenes), "scenes")
except ProviderError as error:
    print(error)
"""


def attacked(world: World, attack: dict[str, object]) -> str:
    """What a process with 300 MB to spare says of an attack."""
    command = [sys.executable, "-c", CHILD, world.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "calm\n"
        for name, hook in attack.items():
            setattr(world, name, hook)
        answer, _ = child.communicate("go\n", timeout=60)
    assert child.returncode == 0
    return answer


def test_a_compressed_catalog_answer_of_gigabytes_takes_no_memory(world):
    body = gzip.compress(b'{"features":[' + b" " * (1 << 30) + b"]}", 1)
    attack = {"on_search": lambda h: h.reply(200, body, Content_Encoding="gzip", Content_Type="application/json")}
    assert "sends an answer of over 16 MB" in attacked(world, attack)


def stored_band(world: World) -> bytearray:
    [path] = world.root.glob(f"*{BAD}*/B03.tif")
    return bytearray(path.read_bytes())


def replacing(content: bytes):
    """A hook that answers with ranges of another file's bytes."""

    def hook(handler, path, start, data, size):
        if is_bad(path):
            stop = min(int(handler.headers["Range"].partition("-")[2]) + 1, len(content))
            part = content[start:stop]
            handler.reply(206, part, Content_Range=f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        return is_bad(path)

    return hook


def entries(tiff: bytes) -> dict[int, int]:
    """Positions of the first directory's entries, by tag."""
    (first,) = struct.unpack_from("<I", tiff, 4)
    (n,) = struct.unpack_from("<H", tiff, first)
    return {struct.unpack_from("<H", tiff, first + 2 + 12 * i)[0]: first + 2 + 12 * i for i in range(n)}


OFFSETS, BYTE_COUNTS, COMPRESSION = 324, 325, 259


def set_count(tag: int, count: int):
    def change(tiff: bytearray) -> None:
        struct.pack_into("<I", tiff, entries(tiff)[tag] + 4, count)

    return change


def set_first(tag: int, value: int):
    """Set the first value of a tag: of an array beyond its entry."""

    def change(tiff: bytearray) -> None:
        position = entries(tiff)[tag]
        (count,), (at,) = struct.unpack_from("<I", tiff, position + 4), struct.unpack_from("<I", tiff, position + 8)
        struct.pack_into("<I", tiff, at if count > 1 else position + 8, value)

    return change


def point_to_itself(tiff: bytearray) -> None:
    (first,) = struct.unpack_from("<I", tiff, 4)
    (n,) = struct.unpack_from("<H", tiff, first)
    struct.pack_into("<I", tiff, first + 2 + 12 * n, first)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_count(OFFSETS, 2**31 - 1), "tag 324 has 2147483647 values"),
        (set_count(BYTE_COUNTS, 2**31 - 1), "tag 325 has 2147483647 values"),
        (point_to_itself, "its directories point to each other"),
        (lambda tiff: struct.pack_into("<I", tiff, 4, len(tiff) - 1), "it ends within its header"),
        (set_first(BYTE_COUNTS, 2**31), "a block of row 0 has 2147483648 bytes, 524288 when decoded"),
        (set_first(OFFSETS, 2**31), "cut short"),
    ],
)
def test_an_impossible_header_costs_its_scene(world, change, says):
    tiff = stored_band(world)
    change(tiff)
    world.on_file = replacing(bytes(tiff))
    assert says in lost(fetch(world))


@pytest.mark.parametrize("content", [b"", b"II*\x00", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(1000)])
def test_a_file_of_another_kind_costs_its_scene(world, content):
    world.on_file = replacing(content)
    assert lost(fetch(world))


def test_a_block_that_inflates_to_gigabytes_takes_no_memory(world):
    tiff = stored_band(world)
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(MB)) for _ in range(512)) + packer.flush()
    set_first(OFFSETS, len(tiff))(tiff)
    set_first(BYTE_COUNTS, len(bomb))(tiff)
    assert len(bomb) < MB
    assert "2 scenes" in attacked(world, {"on_file": replacing(bytes(tiff) + bomb)})
    world.on_file = replacing(bytes(tiff) + bomb)
    assert "it holds more than the 524288 bytes of a block" in lost(fetch(world))
