"""Patches on disk: nothing is asked twice, nothing half-written is believed, and the folder stays within its limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from fakes import FakeProvider, patch_of
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.base import PatchRequest, Provider
from rs_embed.providers.cache import CachedProvider
from rs_embed.providers.registry import resolve

JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
LARGE = 10**9


def requests(n: int, sensor: SensorSpec | None = None) -> list[PatchRequest]:
    places = [PointBuffer(15 + i / 100, 48, 300) for i in range(n)]
    return [PatchRequest(place_geobox(p, 10), JUNE, sensor or SensorSpec()) for p in places]


def run(folder: Path, source: FakeProvider, asked: list[PatchRequest], limit: int = LARGE) -> list[object]:
    found = dict(CachedProvider(source, folder, limit).fetch(asked))
    return [found[i] for i in range(len(asked))]


def test_the_second_run_asks_for_nothing_and_gives_the_same(tmp_path):
    source = FakeProvider()
    asked = requests(5)
    first, second = run(tmp_path, source, asked), run(tmp_path, source, asked)
    assert len(source.asked) == 5
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.dn, b.dn)
        assert replace(a, dn=b.dn) == b


def test_only_what_is_new_is_fetched(tmp_path):
    source = FakeProvider()
    run(tmp_path, source, requests(3))
    patches = run(tmp_path, source, requests(5))
    assert len(source.asked) == 5
    assert all(isinstance(p, Patch) for p in patches)


def test_what_decides_the_pixels_is_another_request_and_what_does_not_is_the_same(tmp_path):
    source = FakeProvider()
    run(tmp_path, source, requests(1))
    for same in (SensorSpec(collection="hf:owner/other"), SensorSpec(fill_value=5.0), SensorSpec(check_input=True)):
        run(tmp_path, source, requests(1, same))
    assert len(source.asked) == 1
    others = ({"composite": "mosaic"}, {"cloudy_pct": 20}, {"max_scenes": 2}, {"collection": "sentinel-2-l1c"})
    for other in others:
        run(tmp_path, source, requests(1, SensorSpec(**other)))
    assert len(source.asked) == 5
    run(tmp_path, FakeProvider(name="elsewhere"), requests(1))
    assert len(list(tmp_path.rglob("*.npz"))) == 6


def test_failures_and_degraded_patches_are_not_kept(tmp_path):
    class Degraded(FakeProvider):
        def fetch(self, requests):
            for i, result in super().fetch(requests):
                reason = ("host/B04.tif: 500", "no valid pixel in the place")[i]
                yield i, replace(result, dropped=(DroppedScene("S2A_DEAD", reason, ("fault", "no_data")[i]),))

    failing = FakeProvider(failing={0: NoImageryError("none")})
    assert isinstance(run(tmp_path, failing, requests(1))[0], NoImageryError)
    assert not list(tmp_path.rglob("*.npz"))
    run(tmp_path, Degraded(), requests(2))
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_time_range_that_may_still_get_scenes_is_not_kept(tmp_path):
    today = datetime.now(UTC).date()
    asked = [
        replace(requests(1)[0], temporal=TemporalSpec.range("2022-06-01", (today - timedelta(days=days)).isoformat()))
        for days in (2, 9)
    ]
    source = FakeProvider()
    run(tmp_path, source, asked)
    run(tmp_path, source, asked)
    assert len(source.asked) == 3


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_fetched_again(tmp_path, harm, caplog):
    source = FakeProvider()
    [expected] = run(tmp_path, source, requests(1))
    [path] = tmp_path.rglob("*.npz")
    body = path.read_bytes()
    if harm == "other":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("dn.npy", b"no array")
    else:
        middle = len(body) // 2
        harmed = {"cut": body[:middle], "flipped": body[:middle] + b"\xff\x00" + body[middle + 2 :], "empty": b""}[harm]
        path.write_bytes(harmed)
    [found] = run(tmp_path, source, requests(1))
    assert len(source.asked) == 2
    assert "is fetched again" in caplog.text
    np.testing.assert_array_equal(found.dn, expected.dn)
    run(tmp_path, source, requests(1))
    assert len(source.asked) == 2


def test_the_folder_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path):
    source = FakeProvider()
    asked = requests(10)
    run(tmp_path, source, asked[:1])
    size = next(tmp_path.rglob("*.npz")).stat().st_size
    run(tmp_path, source, asked)
    for age, path in enumerate(sorted(tmp_path.rglob("*.npz"))):
        os.utime(path, (1e9 + age, 1e9 + age))
    run(tmp_path, source, asked[:2])  # used again
    left_over = next(tmp_path.glob("??")) / "a.npz.x.part"
    left_over.write_bytes(b"killed")
    os.utime(left_over, (1e9, 1e9))
    run(tmp_path, source, requests(11)[10:], limit=int(5.5 * size))
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 5.5 * size
    assert not left_over.exists()
    before = len(source.asked)
    run(tmp_path, source, asked[:2])
    assert len(source.asked) == before


def test_a_disk_that_takes_nothing_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    [patch] = run(tmp_path / "file", FakeProvider(), requests(1))
    assert isinstance(patch, Patch)
    assert "cannot be written" in caplog.text


def _fetch_for_ever(folder: str) -> None:
    while True:
        source = FakeProvider(name=f"p{os.getpid() % 3}")
        list(CachedProvider(source, Path(folder), 40 * 50_000).fetch(requests(30)))


def test_writers_side_by_side_that_are_killed_leave_nothing_wrong(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fetch_for_ever, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.rglob("*.npz"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    kept = list(tmp_path.rglob("*.npz"))
    assert kept
    assert all(zipfile.ZipFile(path).testzip() is None for path in kept)
    for name in ("p0", "p1", "p2"):
        for asked, patch in zip(requests(30), run(tmp_path, FakeProvider(name=name), requests(30)), strict=True):
            assert patch.dn.shape == patch_of(asked).dn.shape


def test_backends_over_a_network_are_cached_where_a_folder_is_named(tmp_path, monkeypatch):
    assert not isinstance(resolve("earth-search"), CachedProvider)
    monkeypatch.setenv("RS_EMBED_CACHE_DIR", str(tmp_path))
    found = resolve("earth-search")
    assert isinstance(found, CachedProvider)
    assert isinstance(found, Provider)
    assert found.name == "earth-search"
    assert not isinstance(resolve("sample"), CachedProvider)
    with pytest.raises(ProviderError, match="'sample' reads no network"):
        resolve("sample", tmp_path)
