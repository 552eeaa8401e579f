"""Mistakes that do not stain a dataset: what a wrong command leaves, and what the corrected one makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from fakes import NO_IMAGERY, FakeProvider, patch_of, write_raster
from rs_embed import (
    EmbeddingIndex,
    PointBuffer,
    ProviderError,
    RSEmbedError,
    SensorSpec,
    TemporalSpec,
    export_embeddings,
    get_embedding,
    inspect_provider_patch,
    open_dataset,
)
from rs_embed.cli.main import main
from rs_embed.export.folder import DatasetFolder

MODEL = "clip_eurosat_s2rgb"
JUNE, JULY = (TemporalSpec.range(f"2022-0{m}-01", f"2022-0{m + 1}-01") for m in (6, 7))
PLACES = [PointBuffer(15 + i / 10, 48, 320) for i in range(4)]


@dataclass
class Broken(FakeProvider):
    """Fails at every place, or is interrupted at one."""

    error: BaseException = field(default_factory=lambda: ProviderError("no such folder"))
    at: int = 0

    def fetch(self, requests):
        for i, request in enumerate(requests):
            if i < self.at:
                yield i, patch_of(request)
            elif isinstance(self.error, ProviderError):
                yield i, self.error
            else:
                raise self.error


def export(out: Path, where: object = PLACES, **how):
    how = {"backend": FakeProvider(), "temporal": JUNE, "partition_size": 2, "thumbnails": False} | how
    return export_embeddings(MODEL, where, out, **how)


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["id,lon,lat,start,end", *lines]) + "\n")
    return path


def test_rows_that_cannot_be_asked_for_are_gone_after_the_corrected_command(tmp_path):
    good, bad = "a,15,48,2022-06-01,2022-07-01", "b,15.1,48,,"
    first = export(tmp_path / "ds", write_csv(tmp_path / "p.csv", good, bad), temporal=None, chip_m=640)
    assert (first.places, first.done, first.failed) == (2, 1, 1)
    [failure] = open_dataset(tmp_path / "ds").failures().to_pylist()
    assert "line 3: it has no time range" in failure["error"]
    second = export(tmp_path / "ds", tmp_path / "p.csv", chip_m=640)
    assert (second.places, second.done, second.failed) == (2, 2, 0)
    assert open_dataset(tmp_path / "ds").failures().num_rows == 0


@pytest.mark.parametrize(
    ("mistake", "correction"),
    [
        ({"backend": Broken(name="wrong")}, {}),
        ({"backend": Broken(error=NO_IMAGERY), "temporal": JULY}, {}),
        ({"backend": Broken(error=NO_IMAGERY), "where": [PointBuffer(48, 15, 320)]}, {}),
        ({"backend": Broken(error=NO_IMAGERY), "sensor": SensorSpec(cloudy_pct=0)}, {}),
        ({"backend": Broken(error=KeyboardInterrupt()), "where": [PointBuffer(15, 48, 640)]}, {}),
    ],
)
def test_a_dataset_without_a_vector_is_started_over_by_the_corrected_command(tmp_path, mistake, correction, caplog):
    try:
        export(tmp_path / "ds", **mistake)
    except KeyboardInterrupt:
        assert "rows are kept" not in caplog.text
    summary = export(tmp_path / "ds", **correction)
    assert "held no vector: it is started over" in caplog.text
    assert (summary.places, summary.done, summary.failed, summary.no_imagery) == (4, 4, 0, 0)
    data = open_dataset(tmp_path / "ds")
    assert (len(data), data.failures().num_rows, data.request.backend) == (4, 0, "fake")
    assert len(EmbeddingIndex(tmp_path / "ds")) == 4
    assert (export(tmp_path / "ds").done, len(open_dataset(tmp_path / "ds"))) == (4, 4)


def test_a_dataset_without_a_vector_is_not_touched_while_another_process_works_on_it(tmp_path):
    export(tmp_path / "ds", backend=Broken())
    with DatasetFolder(tmp_path / "ds").lock("000001"), pytest.raises(RSEmbedError, match="of another request"):
        export(tmp_path / "ds", backend=FakeProvider(name="other"))
    assert open_dataset(tmp_path / "ds").failures().num_rows == 4


def test_answers_of_a_dataset_with_vectors_are_kept(tmp_path):
    export(tmp_path / "ds")
    export(tmp_path / "ds", temporal=JULY, backend=Broken(error=NO_IMAGERY))
    summary = export(tmp_path / "ds", temporal=TemporalSpec.range("2022-08-01", "2022-09-01"))
    assert (summary.places, summary.done, summary.no_imagery) == (12, 8, 4)


def test_a_partition_that_another_command_started_over_is_one_error(tmp_path):
    export(tmp_path / "ds", backend=Broken())
    export(tmp_path / "ds", backend=FakeProvider(name="other"))
    assert list(DatasetFolder(tmp_path / "ds").partitions()) == [2, 3]
    with pytest.raises(RSEmbedError, match="started over by another command"):
        DatasetFolder(tmp_path / "ds").rows(0)


def test_a_dataset_of_the_same_relative_name_in_another_folder_is_another_one(tmp_path, monkeypatch):
    for n in (2, 7):
        (tmp_path / str(n)).mkdir()
        monkeypatch.chdir(tmp_path / str(n))
        places = [PointBuffer(15 + k / 100, 48, 320) for k in range(n)]
        export(Path("ds"), places, partition_size=10)
        assert len(DatasetFolder(Path("ds")).rows(0)) == n


def test_another_size_of_places_is_refused_as_other_settings_are(tmp_path):
    file = write_csv(tmp_path / "p.csv", "a,15,48,2022-06-01,2022-07-01")
    export(tmp_path / "ds", file, chip_m=640)
    with pytest.raises(RSEmbedError, match=r"chip_m: 640 in the folder, 1280 now"):
        export(tmp_path / "ds", file, chip_m=1280)
    export(tmp_path / "ds", [PointBuffer(16, 48, 320)])  # the same size, given in Python
    assert len(open_dataset(tmp_path / "ds")) == 2


def test_a_dataset_in_which_all_failed_says_so_and_opens(tmp_path):
    for out, how in (("ds", {"temporal": JUNE}), ("projected", {"temporal": JULY})):
        export(tmp_path / out, backend=Broken(), **how)
    data = open_dataset(tmp_path / "ds")
    assert repr(data).endswith(f"0 rows, {MODEL}, 4 without a vector: see failures())")
    assert (data.to_numpy().shape, data.to_numpy("embedding_projected").shape) == ((0, 192), (0, 128))
    assert len(data.to_geodataframe()) == 0
    assert data.to_xarray().sizes == {"place": 0, "d": 192}
    assert (list(data), list(data.thumbnails()), data.to_table(["id"]).num_rows) == ([], [], 0)
    assert "no vector: its 4 row(s) failed" in EmbeddingIndex(tmp_path / "ds").search("forest").notice


def test_ctrl_c_says_what_is_kept_and_that_the_same_command_goes_on(tmp_path):
    source = Broken(error=KeyboardInterrupt(), at=2)
    with pytest.raises(KeyboardInterrupt, match=r"of 4 rows are kept in .*ds; the same command goes on"):
        export(tmp_path / "ds", backend=source, partition_size=4)
    source.at = 4
    assert export(tmp_path / "ds", backend=source).done == 4


def test_the_command_says_what_is_kept(monkeypatch, capsys):
    def interrupted(*places: object, **how: object) -> None:
        raise KeyboardInterrupt("2 of 4 rows are kept in ds; the same command goes on from there")

    monkeypatch.setattr("rs_embed.export.run.export_embeddings", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["export", "p.csv", "--out", "ds", "--chip", "640"])
    assert stop.value.code == 130
    assert "interrupted: 2 of 4 rows are kept in ds; the same command goes on" in capsys.readouterr().err


def test_warnings_are_counted_by_kind_over_all_runs_of_a_dataset(tmp_path, capsys):
    source = FakeProvider(dn=np.full((3, 64, 64), 900, np.float32))
    assert dict(export(tmp_path / "ds", PLACES[:2], backend=source).warnings) == {"nearly constant pixels": 2}
    assert dict(export(tmp_path / "ds", backend=source).warnings) == {"nearly constant pixels": 4}


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """A local archive whose bands have pixels of 60 m."""
    root, rng = tmp_path_factory.mktemp("coarse"), np.random.default_rng(0)
    name = "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000"
    for band in ("B04", "B03", "B02"):
        values = rng.integers(1001, 4000, (1, 100, 100)).astype(np.uint16)
        file = root / f"{name}.SAFE" / "GRANULE" / "L2A_T33UVP" / "IMG_DATA" / "R60m" / f"T33UVP_{band}_60m.tif"
        write_raster(file, values, transform=Affine(60, 0, 500_000, 0, -60, 5_320_000), nodata=0)
    return f"local:{root}"


def test_imagery_coarser_than_the_grid_is_a_warning_of_embeddings_reports_rows_and_hits(coarse, tmp_path):
    asked = {"temporal": JUNE, "backend": coarse}
    place = PointBuffer(15.04, 48.005, 1200)
    [coarse_one] = [w for w in get_embedding(MODEL, spatial=place, **asked).meta["warnings"] if "coarse" in w]
    assert "pixels of 60 m are repeated on a grid of 10 m" in coarse_one
    [few] = [w for w in get_embedding(MODEL, spatial=place, **asked).meta["warnings"] if "few pixels" in w]
    assert "40 px of imagery are enlarged 5.6 times to the model's 224 px; take a place of at least 3360 m" in few
    assert coarse_one in inspect_provider_patch(spatial=place, **asked)["report"]["warnings"]
    fitting = get_embedding(MODEL, spatial=place, sensor=SensorSpec(scale_m=60), **asked).meta["warnings"]
    assert not any("coarse" in text for text in fitting)
    summary = export(tmp_path / "ds", [place], backend=coarse)
    assert {"coarse imagery": 1, "few pixels": 1}.items() <= dict(summary.warnings).items()
    [hit] = EmbeddingIndex(tmp_path / "ds").search("forest").hits
    assert {"coarse imagery", "few pixels"} <= set(hit.warnings)


@pytest.mark.parametrize(("side_px", "warned"), [(55, True), (56, False), (64, False)])
def test_a_place_that_is_enlarged_more_than_four_times_is_a_warning(side_px, warned):
    texture = np.random.default_rng(0).integers(1, 4000, (3, side_px, side_px))
    found = get_embedding(MODEL, input_chw=texture).meta["warnings"]
    assert [text.startswith("few pixels") for text in found] == [True] * warned


@pytest.mark.parametrize(("spread", "warned"), [(0, True), (4, True), (100, False)])
def test_pixels_that_hardly_differ_are_a_warning_whatever_the_bands_are_beside_each_other(spread, warned):
    noise = np.random.default_rng(0).normal(0, spread, (3, 64, 64))
    dark = np.array([300.0, 500.0, 700.0])[:, None, None] + noise
    found = get_embedding(MODEL, input_chw=dark).meta["warnings"]
    assert [text.startswith("nearly constant pixels") for text in found] == [True] * warned


def test_the_summary_of_a_command_has_the_warnings(tmp_path, capsys):
    place = ["--bbox", "13.715", "48.219", "13.727", "48.226", "--chip", "320", "--model", MODEL, "--backend", "sample"]
    command = ["export", *place, "--start", "2017-06-01", "--end", "2017-07-01", "--out", str(tmp_path / "ds")]
    for more, read in ((["--json"], True), ([], False)):
        with pytest.raises(SystemExit) as done:
            main([*command, *more])
        assert done.value.code == 0
        out = capsys.readouterr().out
        if read:
            assert json.loads(out.splitlines()[-1])["warnings"]["few pixels"] == 6
        else:
            assert "warnings: " in out
            assert "6 place(s) few pixels" in out
