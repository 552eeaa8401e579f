from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources

import numpy as np
import pytest
import rasterio

from fakes import NO_IMAGERY, FakeProvider, patch_of
from rs_embed import NoImageryError, PointBuffer, ProviderError, SensorSpec, TemporalSpec, list_samples
from rs_embed.errors import RSEmbedError
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest, Provider, in_threads
from rs_embed.providers.registry import resolve
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import select_scenes

JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")


def request(lon: float = 15.0, sensor: SensorSpec | None = None, buffer_m: float = 100) -> PatchRequest:
    return PatchRequest(place_geobox(PointBuffer(lon, 48.0, buffer_m), 10), JUNE, sensor or SensorSpec())


def scene(name: str, day: int, cloud: float | None, bounds=(14.0, 47.0, 16.0, 49.0)) -> Scene:
    return Scene(id=name, acquired=datetime(2022, 6, day, tzinfo=UTC), bounds=bounds, files={}, cloud_pct=cloud)


# --- choosing scenes ---------------------------------------------------------------------------------


def test_max_scenes_takes_the_least_cloudy_then_the_newest_then_by_id():
    scenes = [
        scene("c", 3, 10),
        scene("a", 13, 5),
        scene("b", 13, 5),
        scene("d", 23, 5),
        scene("far", 5, 0, (0, 0, 1, 1)),
    ]

    def names(n: int) -> set[str]:
        return {s.id for s in select_scenes(scenes, request(sensor=SensorSpec(max_scenes=n))).scenes}

    assert [names(n) for n in (1, 2, 3, 4)] == [{"d"}, {"d", "a"}, {"d", "a", "b"}, {"d", "a", "b", "c"}]


def test_a_scene_without_readable_bands_costs_no_other_of_the_same_id():
    good = scene("x", 3, 1)
    chosen = select_scenes([replace(good, fault="s3://bucket/B04.jp2"), good], request())
    assert chosen.scenes == (good,)
    assert [(d.id, d.kind) for d in chosen.unusable] == [("x", "refused")]


def test_the_cloud_filter_keeps_what_gives_no_cloud_cover():
    choice = select_scenes([scene("a", 3, None), scene("b", 4, 30), scene("c", 5, 31)], request())
    assert {s.id for s in choice.scenes} == {"a", "b"}
    assert choice.before_clouds == 3
    assert "1 scene(s)" in choice.warnings[0]


def test_days_are_utc_and_the_last_is_not_included():
    late = Scene(
        id="x", acquired=datetime.fromisoformat("2022-07-01T01:00:00+02:00"), bounds=(14, 47, 16, 49), files={}
    )
    assert [s.id for s in select_scenes([late, scene("first", 1, 0)], request()).scenes] == ["x", "first"]


# --- the samples -------------------------------------------------------------------------------------


def test_the_samples_say_where_and_when_they_are():
    samples = list_samples()
    assert len(samples) == 6
    for sample in samples:
        assert (sample.width_px, sample.height_px, sample.buffer_m) == (120, 120, 600)
        assert sample.start <= sample.date < sample.end
        assert sample.labels


ORIGINALS = {
    "S2A_MSIL2A_20170613T101031_87_48": "fd97116ccbe9f9c7489b46ba4c882b012156ede753b99e363aae66afb370b9c7",
    "S2A_MSIL2A_20170617T113321_36_85": "39e5f29b635c4221aa6489a93257fbf0c6f856f5e114ab74230abcfc93d50218",
    "S2A_MSIL2A_20170617T113321_4_55": "aad10378086b78da3029636a6121aa2396ae1e44f7b9bccbabae13238226365b",
    "S2A_MSIL2A_20171221T112501_56_35": "c1f0068f37c8410d54192e5cf92c7a755b2672e820636becd4dfd35c2c35f1cf",
    "S2B_MSIL2A_20170924T93020_69_24": "40c551b31f7f38fd1f1af06589b75a08942f04e14b0ca4dec20c4917bc5e4fc5",
    "S2B_MSIL2A_20180204T94161_57_38": "ef07c9efaa2c949c7b482be1074044b75d0bfcf930abce0cb15ab31b99cb475d",
}
"""Sha256 of the pixels of each patch's twelve files in bigearthnet-common 2.8.0, from 10 m to 60 m, by band."""


def test_every_sample_has_the_pixels_of_its_original():
    digests = {}
    for found in resolve("sample").scenes:
        digest = hashlib.sha256()
        for path in dict.fromkeys(file.path for file in found.files.values()):
            with rasterio.open(path) as file:
                assert [name for name, at in found.files.items() if at.path == path] == list(file.descriptions)
                digest.update(file.read().astype("<u2").tobytes())
        digests[found.id] = digest.hexdigest()
    assert digests == ORIGINALS


def test_a_sample_is_the_file_itself():
    sample = list_samples()[0]
    place = PointBuffer(sample.lon, sample.lat, sample.buffer_m)
    asked = PatchRequest(place_geobox(place, 10), TemporalSpec.range(sample.start, sample.end), SensorSpec())
    [(_, patch)] = resolve("sample").fetch([asked])
    assert isinstance(patch, Patch)
    assert patch.valid.all()
    assert patch.clear_frac is None  # BigEarthNet has no scene classification
    folder = resources.files("rs_embed").joinpath("providers", "sample_data")
    with rasterio.open(str(folder.joinpath(f"{sample.id}_10m.tif"))) as file:
        for band, name in zip(patch.dn, ("B4", "B3", "B2"), strict=True):
            np.testing.assert_array_equal(band, file.read(file.descriptions.index(name) + 1))
        assert patch.geobox.affine == file.transform
        assert patch.geobox.crs.epsg == file.crs.to_epsg()


def test_l1c_is_refused_where_a_source_has_none(tmp_path):
    sample = list_samples()[0]
    place = place_geobox(PointBuffer(sample.lon, sample.lat, sample.buffer_m), 10)
    sensor = SensorSpec(collection="sentinel-2-l1c")
    asked = PatchRequest(place, TemporalSpec.range(sample.start, sample.end), sensor)
    [(_, error)] = resolve("sample").fetch([asked])
    assert isinstance(error, NoImageryError)
    assert "1 scene(s) there are Sentinel-2 L2A" in str(error)


def test_a_place_without_sample_names_the_nearest_one_and_its_dates():
    shanghai = PatchRequest(
        place_geobox(PointBuffer(121.5, 31.2, 2048), 10), TemporalSpec.range("2022-06-01", "2022-09-01"), SensorSpec()
    )
    [(_, error)] = resolve("sample").fetch([shanghai])
    assert isinstance(error, NoImageryError)
    assert "nearest scene is S2B" in str(error)
    assert "2017-09-24" in str(error)
    assert "km away" in str(error)


# --- names of backends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [("nope", "unknown backend 'nope'"), ("local:", "unknown"), ("local:/no/such", "no such folder")],
)
def test_a_name_that_is_no_backend_is_refused_with_those_that_are(name, says):
    with pytest.raises(ProviderError, match=says):
        resolve(name)


def test_auto_follows_the_environment(monkeypatch):
    monkeypatch.setenv("RS_EMBED_BACKEND", "sample")
    assert resolve("auto").name == "sample"
    monkeypatch.setenv("RS_EMBED_BACKEND", "nope")
    with pytest.raises(ProviderError, match=r"'nope'.*RS_EMBED_BACKEND"):
        resolve("auto")


def test_an_object_with_the_protocol_is_a_backend_and_others_are_not():
    provider = FakeProvider()
    assert isinstance(provider, Provider)
    assert resolve(provider) is provider
    with pytest.raises(ProviderError, match=r"fetch and plan.*42"):
        resolve(42)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_bad_setting_is_an_error_that_names_its_variable(monkeypatch, value):
    from rs_embed import settings

    monkeypatch.setenv("RS_EMBED_REMOTECLIP_FETCH_WORKERS", value)
    with pytest.raises(RSEmbedError, match=f"RS_EMBED_REMOTECLIP_FETCH_WORKERS='{value}'"):
        settings.fetch_workers()


# --- fetching in threads -----------------------------------------------------------------------------


def test_each_position_comes_once_and_one_failure_is_its_own():
    requests = [request(10 + i / 10) for i in range(20)]

    def fetch_one(asked: PatchRequest) -> Patch:
        if asked is requests[7]:
            raise NO_IMAGERY
        return patch_of(asked)

    results = dict(in_threads(requests, fetch_one, 4))
    assert sorted(results) == list(range(20))
    assert [i for i, r in results.items() if isinstance(r, ProviderError)] == [7]
    assert all(results[i].geobox == requests[i].geobox for i in range(20) if i != 7)


def test_a_defect_is_not_taken_for_a_place_without_imagery():
    def fetch_one(_: PatchRequest) -> Patch:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(in_threads([request()], fetch_one, 2))


def test_workers_run_at_once_and_never_get_far_ahead():
    requests = [request(10 + i / 10) for i in range(40)]
    running, most, started = 0, 0, 0
    lock = threading.Lock()

    def fetch_one(asked: PatchRequest) -> Patch:
        nonlocal running, most, started
        with lock:
            running, started = running + 1, started + 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return patch_of(asked)

    taken = 0
    for _ in in_threads(requests, fetch_one, 3):
        taken += 1
        time.sleep(0.005)
        assert started - taken <= 2 * 3
    assert (taken, most) == (40, 3)


def test_closing_the_iterator_stops_the_threads():
    before = threading.active_count()
    results = in_threads([request(10 + i / 100) for i in range(100)], patch_of, 4)
    next(results)
    results.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_large_patches_are_held_by_their_bytes():
    from rs_embed.background import Channel

    room = Channel(limit=8, limit_bytes=1000)
    assert room.enter(5000)  # one always fits
    entered = threading.Event()

    def second() -> None:
        room.enter(10)
        entered.set()

    threading.Thread(target=second, daemon=True).start()
    assert not entered.wait(0.05)
    room.leave(5000)
    assert entered.wait(5)
