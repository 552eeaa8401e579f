"""Requests from the door to the result: order, failures, overlap, bounds, metadata."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from fakes import NO_IMAGERY, FakeProvider, patch_of
from rs_embed import (
    BBox,
    CheckpointError,
    Embedding,
    EmbeddingFailure,
    ModelError,
    NoImageryError,
    OutputSpec,
    PointBuffer,
    ProviderError,
    SensorSpec,
    SpecError,
    TemporalSpec,
    fetch_patch,
    get_embedding,
    get_embeddings_batch,
    inspect_provider_patch,
    list_samples,
)
from rs_embed.patch import DroppedScene

MODEL = "remoteclip_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACES = [PointBuffer(10 + i / 10, 48, 640) for i in range(12)]


def batch(small: Path, provider: FakeProvider, places=PLACES, **options):
    return get_embeddings_batch(
        MODEL, spatials=places, temporal=options.pop("temporal", JUNE), backend=provider, checkpoint=small, **options
    )


def vectors(results) -> np.ndarray:
    return np.stack([np.asarray(r.data) for r in results])


# --- order and failures ------------------------------------------------------------------------------


def test_results_keep_the_order_whatever_the_provider_does(small):
    forwards, backwards = batch(small, FakeProvider()), batch(small, FakeProvider(backwards=True))
    np.testing.assert_allclose(vectors(forwards), vectors(backwards), atol=1e-6)
    assert [r.meta["spatial"]["lon"] for r in backwards] == [p.lon for p in PLACES]
    one = get_embedding(MODEL, spatial=PLACES[5], temporal=JUNE, backend=FakeProvider(), checkpoint=small)
    np.testing.assert_allclose(one.data, forwards[5].data, atol=1e-6)
    assert one.meta["request_id"] == forwards[5].meta["request_id"]


def test_each_place_may_have_its_own_time(small):
    times = [TemporalSpec.range("2022-06-01", f"2022-06-{i + 2:02d}") for i in range(12)]
    provider = FakeProvider()
    results = batch(small, provider, temporal=times)
    assert [r.meta["end"] for r in results] == [t.end for t in times]
    assert [r.temporal for r in provider.asked] == times


def test_one_places_failure_is_never_anothers(small):
    results = batch(small, FakeProvider(failing={3: NO_IMAGERY}), on_error="return")
    assert [i for i, r in enumerate(results) if isinstance(r, EmbeddingFailure)] == [3]
    failure = results[3]
    assert failure.place == PLACES[3]
    assert failure.error is NO_IMAGERY
    assert "NoImageryError" in repr(failure)
    expected = batch(small, FakeProvider())
    others = [i for i in range(12) if i != 3]
    np.testing.assert_allclose(vectors([results[i] for i in others]), vectors([expected[i] for i in others]), atol=1e-6)


def test_raising_carries_what_is_finished(small):
    with pytest.raises(NoImageryError) as error:
        batch(small, FakeProvider(failing={5: NO_IMAGERY}))
    results = error.value.results
    assert len(results) == 12
    assert isinstance(results[5], EmbeddingFailure)
    assert all(isinstance(r, Embedding) for r in results[:5])
    assert {type(r) for r in results[6:]} <= {Embedding, type(None)}


def test_a_failure_ends_the_run_after_the_places_in_flight(small, monkeypatch):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_FETCH_WORKERS", "2")
    provider = FakeProvider(failing={0: NO_IMAGERY}, delay_s=0.005)
    with pytest.raises(NoImageryError):
        batch(small, provider, places=PLACES * 20)
    assert len(provider.asked) < 60


def test_a_provider_that_forgets_a_place_is_found_out(small):
    class Forgetful(FakeProvider):
        def fetch(self, requests):
            return ((i, r) for i, r in super().fetch(requests) if i != 4)

    results = batch(small, Forgetful(), on_error="return")
    assert "returned nothing for place 4" in str(results[4].error)


def test_a_defect_in_a_provider_is_not_hidden(small):
    with pytest.raises(ZeroDivisionError):
        batch(small, FakeProvider(failing={2: ZeroDivisionError("a bug")}), on_error="return")


def test_an_empty_batch_is_empty(small):
    assert batch(small, FakeProvider(), places=[]) == []


def test_a_place_without_any_observed_pixel_is_its_failure(small):
    class Blind(FakeProvider):
        def fetch(self, requests):
            for i, request in enumerate(requests):
                yield i, patch_of(request, dn=np.full((3, *request.geobox.shape), np.nan, np.float32))

    [result] = batch(small, Blind(), places=PLACES[:1], on_error="return")
    assert isinstance(result.error, NoImageryError)


# --- at the same time, and no more than that ---------------------------------------------------------


class Slow:
    """A model that takes its time, and says when it worked."""

    def __init__(self) -> None:
        self.worked: list[tuple[float, float]] = []

    def encode_image(self, pixels):
        started = time.perf_counter()
        time.sleep(0.05)
        self.worked.append((started, time.perf_counter()))
        return pixels.mean(dim=(2, 3))


def test_fetching_goes_on_while_the_model_runs(monkeypatch):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_BATCH_SIZE", "2")
    provider, model = FakeProvider(delay_s=0.02), Slow()
    get_embeddings_batch(MODEL, spatials=PLACES, temporal=JUNE, backend=provider, checkpoint=model)
    assert len(model.worked) == 6
    during = [t for t in provider.yielded_at if any(a < t < b for a, b in model.worked)]
    assert during


def test_memory_does_not_grow_with_the_number_of_places(monkeypatch):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_BATCH_SIZE", "2")
    done = 0

    class Counting(Slow):
        def encode_image(self, pixels):
            nonlocal done
            done += len(pixels)
            ahead.append(len(provider.asked) - done)
            return super().encode_image(pixels)

    ahead: list[int] = []
    provider = FakeProvider()
    get_embeddings_batch(MODEL, spatials=PLACES * 4, temporal=JUNE, backend=provider, checkpoint=Counting())
    assert max(ahead) <= 2 * 2 + 2


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_stops_at_once(tmp_path, small):
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "from fakes import FakeProvider\n"
        "from rs_embed import PointBuffer, TemporalSpec, get_embeddings_batch\n"
        "class Stuck(FakeProvider):\n"
        "    def fetch(self, requests):\n"
        "        print('started', flush=True); time.sleep(60); yield from super().fetch(requests)\n"
        "get_embeddings_batch('remoteclip_s2rgb', spatials=[PointBuffer(10, 48, 640)], backend=Stuck(),\n"
        "    temporal=TemporalSpec.range('2022-06-01', '2022-07-01'), checkpoint=sys.argv[2])\n"
    )
    command = [sys.executable, str(script), str(Path(__file__).parent), str(small)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"started"
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - sent < 5
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in stderr


def test_requests_from_several_threads_do_not_mix(small):
    expected = vectors(batch(small, FakeProvider()))
    found: dict[int, np.ndarray] = {}

    def run(i: int) -> None:
        result = get_embedding(MODEL, spatial=PLACES[i], temporal=JUNE, backend=FakeProvider(), checkpoint=small)
        found[i] = np.asarray(result.data)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([found[i] for i in range(8)]), expected[:8], atol=1e-6)


def test_progress_goes_to_stderr(small, capsys):
    batch(small, FakeProvider(), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "12/12" in captured.err


# --- at the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"spatials": None}, SpecError, "a place is needed"),
        ({"spatials": [(1, 2)]}, SpecError, r"BBox or a PointBuffer, got \(1, 2\)"),
        ({"temporal": None}, ModelError, r"needs temporal=TemporalSpec\.range"),
        ({"temporal": TemporalSpec.year(2022)}, ModelError, r"range.*got TemporalSpec\(mode='year'"),
        ({"temporal": [JUNE] * 3}, SpecError, "3 time ranges for 12 places"),
        ({"sensor": SensorSpec(bands=("B2", "B3", "B4"))}, ModelError, r"\('B4', 'B3', 'B2'\).*got \('B2'"),
        ({"sensor": SensorSpec(bands=("B8", "B4", "B3"))}, ModelError, "B8"),
        ({"output": "pooled"}, SpecError, r"OutputSpec.*'pooled'"),
        ({"on_error": "ignore"}, SpecError, "'ignore'"),
        ({"input_prep": "crop"}, SpecError, "'crop'"),
        ({"backend": "nope"}, ProviderError, "unknown backend 'nope'"),
        ({"backend": None}, ProviderError, "got None"),
        ({"spatials": [PointBuffer(10, 48, 60_000)]}, SpecError, "8192 px"),
    ],
)
def test_a_request_that_cannot_work_is_refused_before_anything_is_fetched(small, options, error, says):
    provider = FakeProvider()
    asked = {"spatials": PLACES, "temporal": JUNE, "backend": provider, "checkpoint": small} | options
    with pytest.raises(error, match=says):
        get_embeddings_batch(MODEL, **asked)
    assert provider.asked == []


def test_pixels_need_no_provider_no_place_and_no_time(small, monkeypatch):
    monkeypatch.setenv("RS_EMBED_BACKEND", "nope")
    result = get_embedding(MODEL, input_chw=np.full((3, 64, 64), 900), checkpoint=small)
    assert result.meta["source"] == "input_chw"
    for key in ("backend", "spatial", "temporal", "start", "crs", "scenes", "sensor", "scale_m", "clear_frac"):
        assert result.meta[key] is None
    described = get_embedding(
        MODEL, spatial=PLACES[0], temporal=JUNE, input_chw=np.full((3, 64, 64), 900), checkpoint=small
    )
    assert described.meta["spatial"]["lon"] == 10
    assert described.meta["start"] == "2022-06-01"
    np.testing.assert_array_equal(described.data, result.data)
    with pytest.raises(SpecError, match="1 input_chws for 2 places"):
        get_embeddings_batch(MODEL, spatials=PLACES[:2], input_chws=[np.ones((3, 4, 4))], checkpoint=small)


# --- metadata ----------------------------------------------------------------------------------------

SEED_KEYS = {
    *("model", "type", "backend", "source", "sensor", "temporal", "image_size", "bands", "scale_m", "cloudy_pct"),
    *("composite", "start", "end", "ckpt", "device", "pooling", "input_checks"),
}
OUR_KEYS = {
    *("request_id", "scenes", "dropped_scenes", "n_scenes", "valid_frac", "clear_frac", "n_clear", "crs", "transform"),
    *("bounds", "model_input", "weights_sha256", "activation", "preprocess", "precision", "versions", "warnings"),
}


def test_metadata_has_every_promised_key_and_is_json(small):
    [result] = batch(small, FakeProvider(), places=PLACES[:1])
    assert set(result.meta) >= SEED_KEYS | OUR_KEYS
    json.dumps(result.meta, allow_nan=False)
    assert result.meta["type"] == "on_the_fly"
    assert result.meta["crs"] == "EPSG:32632"
    assert result.meta["model_input"]["effective_gsd_m"] == pytest.approx(1280 / 224)
    [grid] = batch(small, FakeProvider(), places=PLACES[:1], output=OutputSpec.grid())
    assert set(grid.meta) >= (SEED_KEYS | OUR_KEYS | {"tokens_kind", "token_count", "grid_hw"}) - {"pooling"}
    json.dumps(grid.meta, allow_nan=False)


def test_a_grids_coordinates_are_its_tokens_footprints(small):
    [grid] = batch(small, FakeProvider(), places=PLACES[:1], output=OutputSpec.grid())
    left, _bottom, right, top = grid.meta["bounds"]
    side = (right - left) / 7
    np.testing.assert_allclose(grid.data.x, left + side * (np.arange(7) + 0.5))
    np.testing.assert_allclose(grid.data.y, top - side * (np.arange(7) + 0.5))
    assert grid.data.attrs["crs"] == "EPSG:32632"
    assert "not georeferenced pixels" in grid.data.attrs["note"]
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(PLACES[0].lon, PLACES[0].lat)
    assert abs(float(grid.data.x[3]) - x) <= 5  # the place's centre lies in the middle token
    assert abs(float(grid.data.y[3]) - y) <= 5


def test_a_box_that_is_not_square_has_tokens_on_its_cropped_middle(small):
    box = BBox(10.0, 48.0, 10.04, 48.01)
    [grid] = batch(small, FakeProvider(), places=[box], output=OutputSpec.grid())
    left, bottom, right, top = grid.meta["bounds"]
    assert right - left > 2 * (top - bottom)
    assert abs(float(grid.data.x[3]) - (left + right) / 2) < 15
    assert float(grid.data.x[6] - grid.data.x[0]) < (top - bottom)


def test_the_request_id_is_the_same_in_another_process(small):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fakes import FakeProvider\n"
        "from rs_embed import *\n"
        "print(get_embedding('remoteclip_s2rgb', spatial=PointBuffer(lon=10, lat=48.0, buffer_m=640),\n"
        "  temporal=TemporalSpec.range('2022-06-01', '2022-07-01'), backend=FakeProvider(),\n"
        "  checkpoint=sys.argv[2]).meta['request_id'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent, small], capture_output=True, text=True, check=True
    )
    [result] = batch(small, FakeProvider(), places=PLACES[:1])
    assert done.stdout.strip() == result.meta["request_id"]


def test_the_request_id_tells_different_requests_apart(small):
    ids = {
        batch(small, FakeProvider(), places=PLACES[:1], **options)[0].meta["request_id"]
        for options in (
            {},
            {"output": OutputSpec.pooled("projected")},
            {"sensor": SensorSpec(cloudy_pct=20)},
            {"temporal": TemporalSpec.range("2022-06-01", "2022-07-02")},
        )
    }
    assert len(ids) == 4
    looked = SensorSpec(check_input=True)  # looking at pixels changes nothing
    assert batch(small, FakeProvider(), places=PLACES[:1], sensor=looked)[0].meta["request_id"] in ids


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clear_frac": 0.3, "n_clear": 0.0}, ("mostly not clear", "30%", "cloud_mask='scl'")),
        ({"scenes": ()}, ("few scenes", "median of 0")),
        ({"warnings": ("something: odd",)}, ("something: odd",)),
    ],
)
def test_a_cloudy_composite_never_looks_like_a_clean_one(small, caplog, changes, says):
    class Changed(FakeProvider):
        def fetch(self, requests):
            for i, patch in super().fetch(requests):
                yield i, replace(patch, **changes)

    results = batch(small, Changed())
    assert all(any(all(s in w for s in says) for w in r.meta["warnings"]) for r in results)
    assert len([r for r in caplog.records if says[0] in r.message]) == 1  # once a run, not once a place


def test_dropped_scenes_are_told(small):
    class Dropping(FakeProvider):
        def fetch(self, requests):
            for i, patch in super().fetch(requests):
                yield i, replace(patch, dropped=(DroppedScene("S2A_X", "no valid pixel", "no_data"),))

    [result] = batch(small, Dropping(), places=PLACES[:1])
    assert result.meta["dropped_scenes"] == [{"id": "S2A_X", "reason": "no valid pixel", "kind": "no_data"}]


def test_results_read_well(small):
    [result] = batch(small, FakeProvider(), places=PLACES[:1])
    assert repr(result).startswith("Embedding(64 float32, model=remoteclip_s2rgb, pooling=token_mean, start=2022-06-01")


def test_checked_input_is_reported_drawn_and_refused(small, tmp_path):
    sensor = SensorSpec(check_input=True, check_save_dir=str(tmp_path))
    [result] = batch(small, FakeProvider(), places=PLACES[:1], sensor=sensor)
    checks = result.meta["input_checks"]
    assert checks["ok"]
    assert (tmp_path / checks["quicklook"]).stat().st_size > 1000
    flat = np.full((3, 64, 64), 900)
    with pytest.raises(ModelError, match=r"fails inspection: band B4 is constant: every value is 900"):
        get_embedding(MODEL, input_chw=flat, checkpoint=small, sensor=SensorSpec(check_input=True))
    kept = get_embedding(
        MODEL, input_chw=flat, checkpoint=small, sensor=SensorSpec(check_input=True, check_raise=False)
    )
    assert not kept.meta["input_checks"]["ok"]
    assert get_embedding(MODEL, input_chw=flat, checkpoint=small).meta["input_checks"] is None


# --- the seed ----------------------------------------------------------------------------------------


def seed_example(sample, small: Path, output: OutputSpec, sensor: SensorSpec | None = None):
    return get_embedding(
        "remoteclip_s2rgb",
        spatial=PointBuffer(lon=sample.lon, lat=sample.lat, buffer_m=600),
        temporal=TemporalSpec.range(sample.start, sample.end),
        sensor=sensor,
        output=output,
        backend="sample",
        checkpoint=small if sensor is None else None,
    )


def test_both_examples_of_the_seed_run_on_every_sample(small):
    for sample in list_samples():
        assert seed_example(sample, small, OutputSpec.pooled()).data.shape == (64,)
        sensor = SensorSpec(
            collection=f"hf:{small}",
            bands=("B4", "B3", "B2"),
            scale_m=10,
            cloudy_pct=30,
            composite="median",
        )
        grid = seed_example(sample, small, OutputSpec.grid(), sensor)
        assert grid.data.shape == (64, 7, 7)
        assert grid.meta["n_scenes"] == 1
        assert grid.meta["scenes"][0]["datetime"].startswith(sample.date)


SHANGHAI = {
    "spatial": PointBuffer(lon=121.5, lat=31.2, buffer_m=2048),
    "temporal": TemporalSpec.range("2022-06-01", "2022-09-01"),
}


def test_the_seeds_place_on_the_sample_names_the_nearest_one(small):
    with pytest.raises(NoImageryError, match=r"nearest scene is S2B.* of 2017-09-24 at 62\.8\d+°N 30\.\d+°E.*km away"):
        get_embedding(MODEL, **SHANGHAI, backend="sample", checkpoint=small)


def test_no_imagery_is_said_before_missing_weights(tmp_path, small):
    missing = str(tmp_path / "missing" / "weights.pt")
    with pytest.raises(NoImageryError, match="nearest scene"):
        get_embedding(MODEL, **SHANGHAI, backend="sample", checkpoint=missing)
    sample = list_samples()[0]
    with pytest.raises(CheckpointError, match="no file or folder"):
        get_embedding(
            MODEL,
            spatial=PointBuffer(sample.lon, sample.lat, 600),
            temporal=TemporalSpec.range(sample.start, sample.end),
            backend="sample",
            checkpoint=missing,
        )


def test_a_patch_has_the_pixels_that_an_inspection_has():
    sample = list_samples()[0]
    place, time = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
    patch = fetch_patch(place, time, SensorSpec(bands=("B4",)), "sample")
    looked = inspect_provider_patch(
        spatial=place, temporal=time, sensor=SensorSpec(bands=("B4",)), backend="sample", return_array=True
    )
    np.testing.assert_array_equal(patch.dn, looked["array_chw"])
    assert looked["report"]["scenes"][0]["id"] == patch.scenes[0].id


def test_a_patch_without_a_time_range_or_imagery_is_refused():
    with pytest.raises(ModelError, match=r"fetching imagery needs temporal=TemporalSpec\.range"):
        fetch_patch(PointBuffer(10, 48, 600), backend="sample")
    with pytest.raises(NoImageryError):
        fetch_patch(PointBuffer(0, 0, 600), JUNE, backend="sample")
