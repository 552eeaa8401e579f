"""A fault is never mistaken for an answer: lost scenes are told, tried again, and no failure stands for no imagery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from archive_server import FileServer, Tile, serve_archive, write_dates
from fakes import NO_IMAGERY, FakeProvider, patch_of
from rs_embed import (
    EmbeddingIndex,
    NoImageryError,
    PointBuffer,
    ProviderError,
    StacProvider,
    TemporalSpec,
    export_embeddings,
    fetch_patch,
    get_embedding,
    open_dataset,
)
from rs_embed.cli.main import main
from rs_embed.grid import transformer
from rs_embed.patch import DroppedScene
from rs_embed.providers.stac.catalogs import StacCatalog

MODEL = "clip_eurosat_s2rgb"
HOME = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=512)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
PLACES = [PointBuffer(15.02 + i / 100, 47.83, 320) for i in range(3)]
FOREVER = 10**6


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    return root, write_dates(root, "http://files", HOME)


@pytest.fixture
def archive(stored, tmp_path):
    """The provider over three dates of a tile, and the server of its files."""
    root, items = stored
    with serve_archive(root, items, tmp_path) as (api, files):
        yield StacProvider(StacCatalog(name="test", url=api, collections=("sentinel-2-l2a",))), files


def lose(files: FileServer, *days: str, status: int = 404) -> None:
    """Answer every request for the red band of these days with a status."""
    files.status_of = {f"_202206{day}_l2a_0509/B04.tif": [status] * FOREVER for day in days}


def export(provider: object, out: Path, places: object = PLACES, **how: object):
    return export_embeddings(MODEL, places, out, temporal=JUNE, chip_m=640, backend=provider, **how)


def test_a_place_whose_scenes_cannot_be_read_has_failed_and_is_no_place_without_imagery(archive, tmp_path):
    provider, files = archive
    lose(files, "03", "13", "23")
    with pytest.raises(ProviderError, match=r"3 could not be read .*404 .*: ask again later") as caught:
        fetch_patch(PLACES[0], JUNE, backend=provider)
    assert not isinstance(caught.value, NoImageryError)
    summary = export(provider, tmp_path / "ds")
    assert (summary.done, summary.failed, summary.no_imagery) == (0, 3, 0)
    files.status_of = {}
    summary = export(provider, tmp_path / "ds", retry_failed=True)
    assert (summary.done, summary.failed, summary.lost) == (3, 0, 0)


def test_a_place_that_every_scene_was_read_for_and_none_saw_has_no_imagery(archive):
    provider, files = archive
    beside = PointBuffer(*transformer(32633, 4326).transform(500_130, 5_299_840), 80)  # the scenes' corner of zeros
    with pytest.raises(NoImageryError, match="none has a valid pixel"):
        fetch_patch(beside, JUNE, backend=provider)
    lose(files, "13")
    with pytest.raises(ProviderError, match="1 could not be read") as caught:
        fetch_patch(beside, JUNE, backend=provider)
    assert not isinstance(caught.value, NoImageryError)


def test_lost_scenes_are_told_in_rows_and_a_retry_equals_the_calm_run(archive, tmp_path):
    provider, files = archive
    export(provider, tmp_path / "calm")
    calm = open_dataset(tmp_path / "calm").to_numpy()
    lose(files, "13")
    summary = export(provider, tmp_path / "ds")
    assert (summary.done, summary.failed, summary.lost) == (3, 0, 3)
    row = next(iter(open_dataset(tmp_path / "ds")))
    assert (row["status"], row["n_scenes"]) == ("partial", 2)
    [dropped] = row["dropped_scenes"]
    assert ("20220613" in dropped["id"], "404" in dropped["reason"], dropped["kind"]) == (True, True, "fault")
    assert any(text.startswith("lost scenes: 1 of 3 scene(s) could not be read") for text in row["warnings"])
    assert not np.allclose(open_dataset(tmp_path / "ds").to_numpy(), calm, atol=1e-4)
    EmbeddingIndex(tmp_path / "ds")
    files.status_of = {}
    summary = export(provider, tmp_path / "ds", retry_failed=True)
    assert (summary.done, summary.failed, summary.lost) == (3, 0, 0)
    np.testing.assert_array_equal(open_dataset(tmp_path / "ds").to_numpy(), calm)
    wanted = open_dataset(tmp_path / "calm").to_numpy("embedding_projected")[0]
    best = EmbeddingIndex(tmp_path / "ds").search(vector=wanted, k=1).hits[0]
    assert best.score == pytest.approx(1.0, abs=1e-3)  # the index has the vector of the retry
    assert {row["status"] for row in open_dataset(tmp_path / "ds")} == {"ok"}


def test_a_retry_that_fails_keeps_the_vector(archive, tmp_path):
    provider, files = archive
    lose(files, "13")
    export(provider, tmp_path / "ds")
    before = open_dataset(tmp_path / "ds").to_numpy()
    lose(files, "03", "13", "23")
    summary = export(provider, tmp_path / "ds", retry_failed=True)
    assert (summary.places, summary.done, summary.failed, summary.lost) == (3, 3, 0, 3)
    np.testing.assert_array_equal(open_dataset(tmp_path / "ds").to_numpy(), before)
    assert open_dataset(tmp_path / "ds").failures().num_rows == 0


def test_a_scene_in_a_format_that_is_not_read_is_refused_and_not_tried_again(archive, stored, tmp_path):
    provider, files = archive
    [red] = (stored[0]).glob("*_20220613_*/B04.tif")
    other = tmp_path / "other" / red.relative_to(stored[0])
    other.parent.mkdir(parents=True)
    other.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50_000))
    files.instead = {f"/{red.relative_to(stored[0])}": other}
    summary = export(provider, tmp_path / "ds")
    assert (summary.done, summary.failed, summary.lost) == (3, 0, 0)
    [dropped] = next(iter(open_dataset(tmp_path / "ds")))["dropped_scenes"]
    assert (dropped["kind"], "netCDF or HDF5" in dropped["reason"]) == ("refused", True)


def test_places_that_lack_a_scene_are_refused_where_the_caller_wants_that(archive, tmp_path):
    provider, files = archive
    lose(files, "13")
    wanted = {"temporal": JUNE, "backend": provider, "on_lost_scene": "fail"}
    with pytest.raises(ProviderError, match=r"1 of 3 scene\(s\) could not be read \(S2A_T33UVP_20220613"):
        get_embedding(MODEL, spatial=PLACES[0], **wanted)
    with pytest.raises(ProviderError, match="could not be read"):
        fetch_patch(PLACES[0], **wanted)
    summary = export(provider, tmp_path / "ds", on_lost_scene="fail")
    assert (summary.done, summary.failed) == (0, 3)
    with pytest.raises(ValueError, match="on_lost_scene must be 'keep' or 'fail', got 'drop'"):
        get_embedding(MODEL, spatial=PLACES[0], **(wanted | {"on_lost_scene": "drop"}))


@dataclass
class Failing(FakeProvider):
    """Fails for the places that a rule names, counted from the first one asked for."""

    fails: Callable[[int], bool] = lambda number: True
    error: ProviderError = field(default_factory=lambda: ProviderError("files.example: 403 (1 attempt(s))"))

    def fetch(self, requests):
        for i, request in enumerate(requests):
            self.asked.append(request)
            yield i, self.error if self.fails(len(self.asked)) else patch_of(request)


def many(n: int) -> list[PointBuffer]:
    return [PointBuffer(15 + i / 100, 48, 320) for i in range(n)]


def test_a_source_that_fails_for_one_place_after_the_other_stops_the_run(tmp_path):
    source = Failing(fails=lambda number: number > 20)
    with pytest.raises(ProviderError, match=r"the source failed for 32 places in a row.*403.*the same command goes on"):
        export(source, tmp_path / "ds", many(300), partition_size=10)
    assert len(source.asked) < 200
    assert open_dataset(tmp_path / "ds").failures().num_rows == 30  # the partitions that were complete by then
    summary = export(FakeProvider(), tmp_path / "ds", many(300), partition_size=10, retry_failed=True)
    assert (summary.done, summary.failed) == (300, 0)


def test_scattered_faults_and_places_without_imagery_stop_no_run(tmp_path, monkeypatch):
    summary = export(Failing(fails=lambda number: number % 10 != 0), tmp_path / "scattered", many(80))
    assert (summary.done, summary.failed) == (8, 72)
    summary = export(Failing(error=NO_IMAGERY), tmp_path / "empty", many(80))
    assert summary.no_imagery == 80
    monkeypatch.setenv("RS_EMBED_STOP_AFTER_FAULTS", "1000")
    summary = export(Failing(), tmp_path / "dead", many(80))
    assert summary.failed == 80


def test_the_command_counts_places_that_lack_scenes(tmp_path, monkeypatch, capsys):
    class Losing(FakeProvider):
        def fetch(self, requests):
            for i, patch in super().fetch(requests):
                yield i, replace(patch, dropped=(DroppedScene("S2A_DEAD", "host/B04.tif: 500", "fault"),))

    monkeypatch.setattr("rs_embed.export.run.resolve", lambda backend: Losing())
    file = tmp_path / "p.csv"
    file.write_text("id,lon,lat\na,15,48\nb,16,48\n")
    days = ["--start", "2022-06-01", "--end", "2022-07-01"]
    command = ["export", str(file), "--chip", "640", "--out", str(tmp_path / "ds"), "--model", MODEL, *days]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert "2 of them lack scenes that could not be read" in capsys.readouterr().out
