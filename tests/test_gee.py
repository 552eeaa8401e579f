"""Earth Engine through its real client, against our loopback service (see `earth_engine.py`)."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ee
import numpy as np
import pytest
import requests
from google.auth.credentials import AnonymousCredentials

from archive_server import FileServer, Tile, serve_files, serve_stac, write_items, write_scene
from earth_engine import EarthEngine, serving
from fakes import Hub, serve_hub, write_checkpoint
from hostile_server import drip, drip_headers, endless, redirect, send
from rs_embed import (
    BBox,
    EarthEngineProvider,
    NoImageryError,
    OutputSpec,
    PointBuffer,
    ProviderError,
    RSEmbedError,
    SensorSpec,
    TemporalSpec,
    get_embeddings_batch,
    inspect_gee_patch,
    plan_export,
)
from rs_embed.cli import doctor
from rs_embed.grid import place_geobox, transformer
from rs_embed.patch import Patch
from rs_embed.providers import registry
from rs_embed.providers.base import PatchRequest, Provider
from rs_embed.providers.gee import expressions, session
from rs_embed.providers.gee.provider import share_requests
from rs_embed.providers.gee.session import open_client, to_provider_error
from rs_embed.providers.registry import resolve
from rs_embed.providers.selection import Selection

MODEL = "clip_eurosat_s2rgb"
HOME = Tile("33UVP", 32633, 499_980, 5_320_020, side_px=1024)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Four dates on one tile with clouds, nodata and an offset, one of them cloudy; as a static catalog."""
    root = tmp_path_factory.mktemp("archive")
    days = (("03", "05.09", 5.0), ("08", "05.09", 80.0), ("13", "03.01", 12.5), ("23", "05.10", 25.0))
    items = [
        write_scene(
            root, ".", HOME, f"2022-06-{day}", seed=int(day), baseline=baseline, cloud=cloud, cloudy_share=0.1 * i
        )
        for i, (day, baseline, cloud) in enumerate(days)
    ]
    write_items(root / "items.json", items)
    return root


@pytest.fixture
def engine(archive) -> Iterator[EarthEngine]:
    registry._open_gee.cache_clear()  # what other tests listed
    with serving(archive / "items.json") as running:
        ee.Initialize(AnonymousCredentials(), project="test", url=running.url)
        yield running
        ee.Reset()


def at(x: float, y: float, half_m: float = 320) -> PointBuffer:
    """Return a place by metres east and south of the tile's corner."""
    lon, lat = transformer(HOME.epsg, 4326).transform(HOME.left + x, HOME.top - y)
    return PointBuffer(lon, lat, half_m)


def patches(
    provider: Provider, places: list[PointBuffer | BBox], sensor: SensorSpec, temporal: TemporalSpec = JUNE
) -> list[Patch | ProviderError]:
    requests = [PatchRequest(place_geobox(p, sensor.scale_m), temporal, sensor) for p in places]
    found = dict(provider.fetch(requests))
    assert sorted(found) == list(range(len(places)))
    return [found[i] for i in range(len(places))]


def clearness(patch: Patch) -> tuple[float | None, ...]:
    return patch.clear_frac, patch.n_clear, patch.shown_clear_frac


def test_places_on_both_sides_of_180_share_a_listing_and_are_those_of_local_files(tmp_path):
    x, y = transformer(4326, 32760).transform(180, -17)
    tile = Tile("60KYF", 32760, round(x / 10) * 10 - 2560, round(y / 10) * 10 + 2560, side_px=512)
    items = write_items(tmp_path / "items.json", [write_scene(tmp_path, ".", tile, "2022-06-03", seed=3)])
    places = [PointBuffer(lon, -17, 320) for lon in (179.99, -179.99, 180)]
    registry._open_gee.cache_clear()
    with serving(items) as running:
        ee.Initialize(AnonymousCredentials(), project="test", url=running.url)
        ours = patches(EarthEngineProvider("test"), places, SensorSpec())
        listings = running.count("value:compute")
        ee.Reset()
    for mine, theirs in zip(ours, patches(resolve(f"local:{items}"), places, SensorSpec()), strict=True):
        assert mine.valid.all()
        np.testing.assert_array_equal(mine.dn, theirs.dn)
    assert listings == 1


PLACES = [at(2000, 2000), at(3000, 2500, 800), at(200, 150), at(8000, 9000, 400)]
"""Four places; the third lies across a corner that no scene observed."""


@pytest.mark.parametrize(
    "sensor",
    [
        SensorSpec(),
        SensorSpec(composite="mosaic"),
        SensorSpec(cloud_mask="scl"),
        SensorSpec(cloud_mask="scl", composite="mosaic"),
        SensorSpec(max_scenes=2, cloudy_pct=100),
        SensorSpec(bands=("B2", "B4")),
        SensorSpec(scale_m=20, cloudy_pct=100, fill_value=5),
    ],
    ids=lambda s: f"{s.composite}-{s.cloud_mask}-{s.max_scenes}-{''.join(s.bands)}-{s.scale_m:g}",
)
def test_it_gives_what_local_files_and_a_stac_api_give(engine, archive, tmp_path, sensor):
    ours = patches(resolve("gee"), PLACES, sensor)
    local = patches(resolve(f"local:{archive / 'items.json'}"), PLACES, sensor)
    items = json.loads((archive / "items.json").read_text())["features"]
    with serve_files(FileServer(archive)) as files:
        moved = json.loads(json.dumps(items).replace('"./', f'"{files.url}/'))
        with serve_stac(write_items(tmp_path / "items.json", moved)) as api:
            stac = patches(resolve(f"stac:{api}#sentinel-2-l2a"), PLACES, sensor)
    for mine, theirs, third in zip(ours, local, stac, strict=True):
        assert isinstance(mine, Patch)
        np.testing.assert_array_equal(mine.dn, theirs.dn)
        np.testing.assert_array_equal(mine.dn, third.dn)
        facts = [[(s.datetime[:10], s.cloud_pct, s.processing_baseline) for s in p.scenes] for p in (mine, theirs)]
        assert {s.dn_offset for s in mine.scenes} == {0.0}
        assert clearness(mine) == clearness(theirs)
        assert clearness(mine) == clearness(third)
        if sensor.composite == "mosaic":  # local files name those that were read, Earth Engine those that are seen
            assert set(facts[0]) <= set(facts[1])
        else:
            assert facts[0] == facts[1]
    assert np.isnan(ours[2].dn).any()


def test_vectors_are_those_of_local_files_and_meta_tells_what_was_done(engine, archive):
    found = [
        get_embeddings_batch(MODEL, spatials=PLACES[:2], temporal=JUNE, output=OutputSpec.pooled(), backend=backend)
        for backend in ("gee", f"local:{archive / 'items.json'}")
    ]
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine.data, theirs.data)
    meta = found[0][0].meta
    assert (meta["backend"], meta["source"], meta["n_scenes"]) == ("gee", "COPERNICUS/S2_SR_HARMONIZED", 3)
    assert [s["id"] for s in meta["scenes"]] == [
        f"202206{d}T101031_202206{d}T101031_T33UVP" for d in ("23", "13", "03")
    ]
    assert meta["scenes"][0]["cloud_pct"] == 25.0


def test_a_mosaic_names_the_scenes_that_lie_on_top(engine):
    [patch] = patches(resolve("gee"), [PLACES[0]], SensorSpec(composite="mosaic"))
    assert [s.datetime[:10] for s in patch.scenes] == ["2022-06-23"]
    [masked] = patches(resolve("gee"), [PLACES[0]], SensorSpec(composite="mosaic", cloud_mask="scl"))
    assert [s.datetime[:10] for s in masked.scenes] == ["2022-06-23", "2022-06-13", "2022-06-03"]
    assert masked.dropped == ()


@pytest.mark.parametrize("composite", ["median", "mosaic"])
def test_what_the_service_saw_a_part_of_was_observed(engine, composite):
    """Above 10 m the service reads overviews with averaged masks, between 0 and 1 at the edge of the observed area."""
    sensor = SensorSpec(scale_m=20, composite=composite, cloudy_pct=100)
    [whole] = patches(resolve("gee"), [PLACES[0]], sensor)
    engine.service.partly = 0.4
    [partly] = patches(resolve("gee"), [PLACES[0]], sensor)
    np.testing.assert_array_equal(whole.dn, partly.dn)
    assert partly.scenes == whole.scenes
    assert clearness(partly) == clearness(whole)


def test_more_scenes_than_one_band_has_bits(tmp_path):
    registry._open_gee.cache_clear()
    days = [f"2022-06-{day:02d}" for day in range(1, 29)]
    scenes = [write_scene(tmp_path, ".", HOME, day, seed=i, cloudy_share=0.3) for i, day in enumerate(days)]
    write_items(tmp_path / "items.json", scenes)
    with serving(tmp_path / "items.json") as running:
        ee.Initialize(AnonymousCredentials(), project="test", url=running.url)
        for sensor in (SensorSpec(), SensorSpec(composite="mosaic", cloud_mask="scl")):
            [mine] = patches(resolve("gee"), [PLACES[0]], sensor)
            [local] = patches(resolve(f"local:{tmp_path / 'items.json'}"), [PLACES[0]], sensor)
            np.testing.assert_array_equal(mine.dn, local.dn)
            assert clearness(mine) == clearness(local)
        assert len(patches(resolve("gee"), [PLACES[0]], SensorSpec())[0].scenes) == 28
        ee.Reset()


def test_a_scene_that_was_processed_twice_counts_once(tmp_path):
    registry._open_gee.cache_clear()
    twice = [
        write_scene(tmp_path, ".", HOME, "2022-06-03", seed=seed, baseline=baseline)
        for seed, baseline in enumerate(("02.00", "05.09"))
    ]
    write_items(tmp_path / "items.json", twice)
    with serving(tmp_path / "items.json") as running:
        ee.Initialize(AnonymousCredentials(), project="test", url=running.url)
        [patch] = patches(resolve("gee"), [PLACES[0]], SensorSpec())
        ee.Reset()
    assert isinstance(patch, Patch), patch
    assert [s.processing_baseline for s in patch.scenes] == ["05.09"]
    assert patch.n_clear == 1


def test_a_provider_object_is_what_its_name_means_and_travels_to_other_processes(engine, archive):
    provider = EarthEngineProvider("test")
    assert repr(provider) == "EarthEngineProvider(project='test')"
    [before] = patches(provider, [PLACES[0]], SensorSpec())
    sent = pickle.loads(pickle.dumps(provider))
    assert sent == provider
    [after] = patches(sent, [PLACES[0]], SensorSpec())
    [named] = patches(resolve("gee:test"), [PLACES[0]], SensorSpec())
    np.testing.assert_array_equal(before.dn, after.dn)
    np.testing.assert_array_equal(before.dn, named.dn)
    assert engine.count("value:compute") == 3  # each lists for itself


# --- as few requests as will do -------------------------------------------------------------------------


def test_200_places_share_requests_and_the_client_is_started_once(engine, monkeypatch):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_FETCH_WORKERS", "64")
    rng = np.random.default_rng(0)
    places = [at(*rng.uniform(500, 9700, 2)) for _ in range(200)]
    places[1] = places[0]
    engine.delay_s = 0.02
    found = patches(resolve("gee"), places, SensorSpec())
    assert all(isinstance(p, Patch) for p in found)
    np.testing.assert_array_equal(found[0].dn, found[1].dn)
    assert engine.count("algorithms") == 1  # one ee.Initialize, the fixture's own
    assert engine.count("value:compute") == 1
    assert engine.count("computePixels") < 10
    assert engine.most_in_flight <= 40


def test_at_most_40_requests_are_in_flight_whatever_the_workers(engine, monkeypatch, caplog):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_FETCH_WORKERS", "64")
    monkeypatch.setattr("rs_embed.providers.gee.provider._MAX_SHARED_PX", 1)
    engine.delay_s = 0.2
    spots = [at(700 + 600 * (i % 15), 700 + 600 * (i // 15), 160) for i in range(90)]
    assert all(isinstance(p, Patch) for p in patches(resolve("gee"), spots, SensorSpec(max_scenes=1)))
    assert engine.count("computePixels") == 90
    assert 20 <= engine.most_in_flight <= 40
    assert "pool is full" not in caplog.text  # connections are kept for all of them
    engine.most_in_flight = 0
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_FETCH_WORKERS", "3")
    patches(resolve("gee"), spots[:12], SensorSpec(max_scenes=1))
    assert engine.most_in_flight <= 3


def test_far_places_are_not_joined():
    places = [at(1000, 1000), at(1500, 1000), at(60_000, 1000), at(1000, 90_000)]
    requests = [PatchRequest(place_geobox(p, 10), JUNE, SensorSpec()) for p in places]

    class Scene:
        id = "a"

    selections = [Selection(request=r, listed=(), scenes=(Scene(),), before_clouds=1) for r in requests]
    shared = share_requests(dict(enumerate(selections)))
    assert sorted(tuple(request.selections) for request in shared) == [(0, 1), (2,), (3,)]
    assert max(max(request.geobox.shape) for request in shared) <= 130


def test_scenes_of_places_far_apart_are_listed_apart(engine):
    far = PointBuffer(25.0, 48.0, 320)
    found = patches(resolve("gee"), [PLACES[0], far], SensorSpec())
    assert isinstance(found[0], Patch)
    assert isinstance(found[1], NoImageryError)
    assert "0 scene(s) before the cloud filter" in str(found[1])
    assert engine.count("value:compute") == 2


def test_a_plan_computes_no_pixel(engine, archive):
    places = [at(1000 + 700 * i, 2000) for i in range(8)]
    plan = plan_export(places, temporal=JUNE, backend="gee", chip_m=640)
    assert (plan.fetch.places, plan.fetch.requests) == (8, 1)
    assert set(plan.fetch.scenes_of) == {3}
    assert plan.fetch.read_bytes > 0
    assert engine.count("computePixels") == 0


def test_what_was_listed_is_not_listed_again(engine):
    provider = resolve("gee")
    patches(provider, PLACES, SensorSpec())
    patches(resolve("gee"), PLACES[1:2], SensorSpec(max_scenes=1))  # inside of it
    assert engine.count("value:compute") == 1


def test_a_plan_counts_the_parts_of_a_large_place(engine):
    requests = [PatchRequest(place_geobox(at(5100, 5100, 40_000), 10), JUNE, SensorSpec())]
    plan = resolve("gee").plan(requests)
    pixel_bytes = expressions.bytes_per_pixel(plan.scenes_of[0], SensorSpec())
    assert plan.read_bytes == 8000 * 8000 * pixel_bytes
    assert plan.requests >= plan.read_bytes / expressions.REQUEST_BYTES
    assert plan.requests == 32


def test_what_was_fetched_is_taken_from_the_cache(engine, tmp_path):
    provider = resolve("gee", tmp_path / "cache")
    first, second = (patches(provider, PLACES[:2], SensorSpec()) for _ in range(2))
    np.testing.assert_array_equal(first[0].dn, second[0].dn)
    assert engine.count("computePixels") == 1


# --- limits, faults ------------------------------------------------------------------------------------


def test_a_large_place_is_split_under_the_limits_and_joined_exactly(engine, monkeypatch):
    place, sensor = at(5100, 5100, 4500), SensorSpec()
    [whole] = patches(resolve("gee"), [place], sensor)
    assert engine.pixel_sizes == [(900, 900)]
    monkeypatch.setattr(expressions, "REQUEST_BYTES", 4_000_000)
    [split] = patches(resolve("gee"), [place], sensor)
    np.testing.assert_array_equal(whole.dn, split.dn)
    assert all(h * w * expressions.bytes_per_pixel(3, sensor) <= 4_000_000 for h, w in engine.pixel_sizes[1:])
    monkeypatch.setattr(expressions, "REQUEST_BYTES", 48_000_000)
    monkeypatch.setattr(expressions, "MAX_SIDE_PX", 500)
    [narrow] = patches(resolve("gee"), [place], sensor)
    np.testing.assert_array_equal(whole.dn, narrow.dn)


def test_a_request_that_is_over_the_services_limit_after_all_is_asked_for_in_halves(engine):
    engine.service.max_bytes = 1_000_000
    [patch] = patches(resolve("gee"), [at(5100, 5100, 3000)], SensorSpec())
    assert isinstance(patch, Patch)
    assert engine.pixel_sizes[0] == (600, 600)
    assert engine.pixel_sizes[-1] == (150, 300)


@pytest.mark.parametrize("message", ["User memory limit exceeded.", "Computation timed out."])
def test_what_is_too_much_at_once_is_asked_for_in_halves(engine, message):
    whole = patches(resolve("gee"), [PLACES[1]], SensorSpec())[0]
    engine.faults = [(400, message)]  # what was listed is remembered
    halves = patches(resolve("gee"), [PLACES[1]], SensorSpec())[0]
    np.testing.assert_array_equal(whole.dn, halves.dn)
    assert engine.pixel_sizes[-2:] == [(80, 160), (80, 160)]
    engine.faults = [(400, message)] * 50
    [refused] = patches(resolve("gee"), [PLACES[1]], SensorSpec())
    assert isinstance(refused, ProviderError)
    assert "max_scenes" in str(refused)


def test_more_scenes_than_are_listed_at_once_are_listed_by_halves_of_the_time_range(engine, archive):
    engine.service.max_elements = 2
    [patch] = patches(resolve("gee"), [PLACES[0]], SensorSpec(cloudy_pct=100))
    [local] = patches(resolve(f"local:{archive / 'items.json'}"), [PLACES[0]], SensorSpec(cloudy_pct=100))
    np.testing.assert_array_equal(patch.dn, local.dn)
    assert engine.count("value:compute") >= 3


@pytest.mark.parametrize("fault", [429, 500, 503, "cut"])
def test_faults_on_the_way_are_overcome(engine, fault, monkeypatch):
    monkeypatch.setattr("googleapiclient.http.HttpRequest._sleep", lambda *_: None, raising=False)
    monkeypatch.setattr("time.sleep", lambda *_: None)
    whole = patches(resolve("gee"), [PLACES[0]], SensorSpec())[0]
    engine.faults = [fault, None, fault, fault]
    again = patches(resolve("gee"), [PLACES[0]], SensorSpec())[0]
    np.testing.assert_array_equal(whole.dn, again.dn)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (401, "earthengine authenticate"),
        (403, "enable the API and register it"),
        ((400, "Collection.load: asset 'x' not found"), "not found"),
        ((403, "Caller does not have required permission to use project test."), "EE_PROJECT"),
    ],
)
def test_a_refusal_is_one_error_with_its_remedy(engine, fault, says):
    engine.faults = [fault] * 9
    [found] = patches(resolve("gee"), [PLACES[0]], SensorSpec())
    assert isinstance(found, ProviderError)
    assert says in str(found)
    assert "\n" not in str(found)


def _npy(shape: tuple[int, ...], names: str) -> bytes:
    """Return the header of an NPY file that claims a size."""
    stream = io.BytesIO()
    descr = [(name, "<u2") for name in names.split()]
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (endless, "Earth Engine sends an answer of over 1 MB"),
        (drip, "Earth Engine has not sent its answer within 1 s"),
        (drip_headers, "Earth Engine cannot be reached"),
        (lambda h: send(h, gzip.compress(bytes(1 << 23)), b"Content-Encoding: gzip"), "sends an answer of over 1 MB"),
        (lambda h: redirect(h, h.path), "cannot be reached"),
        (lambda h: redirect(h, "file:///etc/passwd"), "redirects from http to file, which is not followed"),
        (lambda h: send(h, b"[" * 100_000), "no known shape .RecursionError"),
        (lambda h: send(h, b"[1, 2]"), "no known shape .TypeError"),
        (
            lambda h: send(h, b'{"result": {"features": [{"properties": {"system:time_start": "x"}}]}}'),
            "no list of scenes",
        ),
        (lambda h: send(h, _npy((10**9, 10**6), "valid")), "instead of bands of .64, 64."),
        (lambda h: send(h, _npy((64, 64), "valid") + bytes(2 * 64 * 64)), "no band band_0, "),
    ],
)
def test_an_answer_of_the_service_is_bounded(engine, monkeypatch, answer, says):
    """The limits of production, divided so that a test takes seconds."""
    limits = replace(session.EARTH_ENGINE, attempts=1, read_timeout_s=1.0, deadline_s=2.0)
    monkeypatch.setattr(session, "EARTH_ENGINE", limits)
    monkeypatch.setattr(session, "_ANSWER_BYTES", 1 << 20)
    are_pixels = "bands" in says or "no band" in says
    engine.faults = [*([None] if are_pixels else []), *[answer] * 40]
    started = time.monotonic()
    [found] = patches(resolve("gee"), [PLACES[0]], SensorSpec())
    assert isinstance(found, ProviderError)
    assert re.search(says, str(found))
    assert time.monotonic() - started < 15  # on a busy machine


def test_a_failure_of_one_request_does_not_take_all_its_places_along(engine):
    places = [at(1000 + 400 * i, 2000, 150) for i in range(6)]
    whole = patches(resolve("gee"), places, SensorSpec())
    engine.pixel_sizes.clear()
    engine.faults = [(400, "Internal error.")] * 2
    found = patches(resolve("gee"), places, SensorSpec())
    for mine, theirs in zip(found, whole, strict=True):
        np.testing.assert_array_equal(mine.dn, theirs.dn)
    assert len(engine.pixel_sizes) > 1
    engine.faults = [(400, "Internal error.")] * 30
    assert all(isinstance(p, ProviderError) for p in patches(resolve("gee"), places, SensorSpec()))


def test_a_service_that_cannot_be_reached_is_no_question_of_size(archive, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda *_: None)
    registry._open_gee.cache_clear()
    with serving(archive / "items.json") as running:
        ee.Initialize(AnonymousCredentials(), project="test", url=running.url)
    tries: list[object] = []
    monkeypatch.setattr("requests.Session.request", lambda *_, **__: tries.append(1) or refuse())
    [found] = patches(resolve("gee"), [PLACES[0]], SensorSpec())
    ee.Reset()
    assert "cannot be reached" in str(found)
    assert len(tries) == 6  # the client's own


def refuse() -> None:
    raise requests.exceptions.ConnectTimeout("timed out")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("requires a quota project, which is not set by default", "EE_PROJECT"),
        ("Project 12 not found or deleted.", "EE_PROJECT"),
        ("Permission 'earthengine.computations.create' denied on resource 'projects/p'", "Service Usage Consumer"),
        ("Request had insufficient authentication scopes.", "earthengine authenticate"),
        ("Service account is disabled.", "earthengine authenticate"),
        ("Earth Engine API is disabled in project 1.", "enable the API"),
        ("Earth Engine capacity exceeded.", "EECU"),
        ("Request payload size exceeds the limit: 10485760 bytes.", "max_scenes"),
        ("x" * 400 + " quota exceeded", "EECU"),
    ],
)
def test_what_the_service_says_becomes_what_to_do(said, remedy):
    found = to_provider_error(ee.EEException(said))
    assert remedy in str(found)
    assert not isinstance(found, session.RequestTooLargeError)


def test_a_quota_that_stays_exhausted_is_told(engine, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda *_: None)
    engine.faults = [None, *[429] * 10]
    [found] = patches(resolve("gee"), [PLACES[0]], SensorSpec())
    assert "EECU" in str(found)


def test_a_band_that_the_collection_lacks_is_told(engine):
    [found] = patches(resolve("gee"), [PLACES[0]], SensorSpec(bands=("B8", "B4", "B3")))
    assert isinstance(found, ProviderError)
    assert "B8" in str(found)


def test_no_secret_is_in_an_error():
    said = to_provider_error(RuntimeError("Bearer ya29.abcdef failed with ya29.xyz"))
    assert "abcdef" not in str(said)
    assert "xyz" not in str(said)


# --- starting the client -------------------------------------------------------------------------------


def test_without_credentials_it_says_how_to_get_them_and_asks_nobody(monkeypatch, tmp_path):
    ee.Reset()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a library call asked a person"))
    with pytest.raises(ProviderError, match="earthengine authenticate"):
        inspect_gee_patch(spatial=PLACES[0], temporal=JUNE)


def test_the_doctor_looks_where_the_client_will_look(monkeypatch, tmp_path):
    stored = tmp_path / ".config" / "earthengine" / "credentials"
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    assert doctor._earth_engine().ok
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    found = doctor._earth_engine()
    assert (found.ok, "gone.json" in found.found) == (False, True)


def test_without_a_project_it_says_how_to_name_one(monkeypatch, tmp_path):
    ee.Reset()
    monkeypatch.setattr(ee.data, "get_persistent_credentials", AnonymousCredentials)
    for name in session.PROJECT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ProviderError, match="set EE_PROJECT"):
        open_client()


def test_the_project_comes_from_the_name_or_the_environment(engine, monkeypatch):
    ee.Reset()
    started: list[object] = []

    def initialise(credentials: object, *, project: str | None, url: str) -> None:
        started.append((project, url))
        original(AnonymousCredentials(), project=project, url=engine.url)

    original = ee.Initialize
    monkeypatch.setattr(ee, "Initialize", initialise)
    monkeypatch.setattr(ee.data, "get_persistent_credentials", AnonymousCredentials)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "second")
    open_client()
    open_client()
    assert started == [("second", "https://earthengine-highvolume.googleapis.com")]
    ee.Reset()
    monkeypatch.setenv("EE_PROJECT", "first")
    open_client()
    ee.Reset()
    patches(resolve("gee:named"), [PLACES[0]], SensorSpec())
    assert [project for project, _ in started] == ["second", "first", "named"]
    with pytest.raises(ProviderError, match="cannot change to 'other'"):
        open_client("other")


def test_a_start_that_failed_fails_again_with_its_remedy(engine, monkeypatch):
    ee.Reset()
    monkeypatch.setattr(ee.data, "get_persistent_credentials", AnonymousCredentials)
    monkeypatch.setattr(ee.data, "HIGH_VOLUME_API_BASE_URL", engine.url)
    engine.start_fault = 403
    for _ in range(2):
        with pytest.raises(ProviderError, match="enable the API"):
            patches(resolve("gee:p"), [PLACES[0]], SensorSpec())
    engine.start_fault = None
    assert isinstance(patches(resolve("gee:p"), [PLACES[0]], SensorSpec())[0], Patch)


def test_a_client_of_the_same_project_is_used(engine):
    assert isinstance(patches(resolve("gee:test"), [PLACES[0]], SensorSpec())[0], Patch)
    with pytest.raises(ProviderError, match="for the project 'test'"):
        patches(resolve("gee:other"), [PLACES[0]], SensorSpec())


def test_a_service_accounts_key_file_is_used(monkeypatch, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "key.json"
    facts = {"type": "service_account", "project_id": "p", "client_email": "a@p.iam.gserviceaccount.com"}
    facts |= {"private_key": key.decode(), "token_uri": "https://oauth2.googleapis.com/token", "private_key_id": "1"}
    path.write_text(json.dumps(facts))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    made = session._credentials(ee)
    assert made.service_account_email == "a@p.iam.gserviceaccount.com"
    assert "https://www.googleapis.com/auth/earthengine" in made.scopes
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(ProviderError, match="no readable key file"):
        session._credentials(ee)


def test_without_the_extra_one_error_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ee", None)
    with pytest.raises(RSEmbedError, match=r"pip install 'rs-embed-remoteclip\[gee\]'"):
        inspect_gee_patch(spatial=PLACES[0], temporal=JUNE)


# --- the seed's examples, as printed -------------------------------------------------------------------

SEED = """
from rs_embed import get_embedding, PointBuffer, TemporalSpec, OutputSpec, SensorSpec

emb = get_embedding(
    "remoteclip_s2rgb",
    spatial=PointBuffer(lon=121.5, lat=31.2, buffer_m=2048),
    temporal=TemporalSpec.range("2022-06-01", "2022-09-01"),
    output=OutputSpec.pooled(),
    backend="gee",
)
pooled = emb

emb = get_embedding(
    "remoteclip_s2rgb",
    spatial=PointBuffer(lon=121.5, lat=31.2, buffer_m=2048),
    temporal=TemporalSpec.range("2022-06-01", "2022-09-01"),
    sensor=SensorSpec(
        collection="hf:MVRL/remote-clip-vit-base-patch32",
        bands=("B4", "B3", "B2"),
        scale_m=10,
        cloudy_pct=30,
        composite="median",
    ),
    output=OutputSpec.grid(),
    backend="gee",
)
"""
"""Both examples of the founding document, unchanged but for `pooled = emb` between them."""
SCRIPT = f"""
import sys, ee, numpy as np
from google.auth.credentials import AnonymousCredentials
ee.Initialize(AnonymousCredentials(), project="test", url=sys.argv[1])
{SEED}
np.savez(sys.argv[2], pooled=pooled.data, grid=emb.data.values)
"""


def test_the_seeds_examples_run_unchanged_and_give_what_local_files_give(tmp_path):
    """RemoteCLIP's own name on a loopback hub, with small weights in its layout; scenes over Shanghai made up."""
    place = PointBuffer(lon=121.5, lat=31.2, buffer_m=2048)
    grid = place_geobox(place, 10)
    tile = Tile("51RUQ", 32651, grid.transform.c - 600, grid.transform.f + 600, side_px=768)
    days = ("2022-06-04", "2022-07-14", "2022-08-23")
    write_items(tmp_path / "items.json", [write_scene(tmp_path, ".", tile, day, seed=i) for i, day in enumerate(days)])
    weights = write_checkpoint(tmp_path / "weights")
    files = {name: (weights / name).read_bytes() for name in ("model.safetensors", "config.json")}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))}
    with (
        serve_hub(Hub(files, repo="MVRL/remote-clip-vit-base-patch32")) as hub,
        serving(tmp_path / "items.json") as engine,
    ):
        environment = kept | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hub")}
        line = [sys.executable, "-W", "error", "-c", SCRIPT, engine.url, str(tmp_path / "out.npz")]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (engine.count("algorithms"), engine.count("computePixels")) == (1, 2)
    with np.load(tmp_path / "out.npz") as made:
        for name, output in (("pooled", OutputSpec.pooled()), ("grid", OutputSpec.grid())):
            [local] = get_embeddings_batch(
                "remoteclip_s2rgb",
                spatials=[place],
                temporal=TemporalSpec.range("2022-06-01", "2022-09-01"),
                output=output,
                backend=f"local:{tmp_path / 'items.json'}",
                checkpoint=str(weights),
            )
            np.testing.assert_array_equal(made[name], np.asarray(local.data))
