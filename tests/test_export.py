"""Places to a dataset: every row once, whole or not at all, whatever dies, and open to other tools."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from fakes import NO_IMAGERY, FakeProvider, patch_of
from local_archive import write_archive, write_places
from rs_embed import (
    BBox,
    CheckpointError,
    EmbeddingIndex,
    OutputSpec,
    PointBuffer,
    ProviderError,
    RSEmbedError,
    SensorSpec,
    SpecError,
    TemporalSpec,
    export_embeddings,
    get_embeddings_batch,
    open_dataset,
    plan_export,
)
from rs_embed.embedders.cards import find_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import read_places
from rs_embed.export.partitions import parse_place, plan_tables
from rs_embed.export.schedule import hilbert, schedule, windows
from rs_embed.providers.base import FetchPlan, PatchRequest

MODEL = "clip_eurosat_s2rgb"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
CHIP = 640


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A local archive, and 30 places in it."""
    root = tmp_path_factory.mktemp("archive")
    return f"local:{write_archive(root / 'scenes')}", write_places(root / "places.csv", 30)


@dataclass
class Picky(FakeProvider):
    """Fails at some longitudes."""

    broken: set[float] = field(default_factory=set)
    empty: set[float] = field(default_factory=set)

    def fetch(self, requests):
        for i, request in enumerate(requests):
            self.asked.append(request)
            lon = round(request.geobox.footprint("EPSG:4326").geom.centroid.x, 2)
            yield (
                i,
                ProviderError("timed out")
                if lon in self.broken
                else NO_IMAGERY
                if lon in self.empty
                else patch_of(request),
            )


def places(n: int) -> list[PointBuffer]:
    return [PointBuffer(round(15 + i / 10, 2), 48, 320) for i in range(n)]


def export(where: object, out: Path, **how):
    how = {"temporal": JUNE, "chip_m": CHIP, "partition_size": 8} | how
    return export_embeddings(MODEL, where, out, **how)


def vectors(folder: Path) -> dict[str, np.ndarray]:
    data = open_dataset(folder)
    return dict(zip(data.to_table(["unique_id"])["unique_id"].to_pylist(), data.to_numpy(), strict=True))


def test_vectors_are_those_of_a_batch_and_the_projection_is_beside_them(archive, tmp_path):
    backend, file = archive
    summary = export(file, tmp_path / "ds", backend=backend)
    assert (summary.places, summary.done, summary.failed, summary.no_imagery) == (30, 30, 0, 0)
    data = open_dataset(tmp_path / "ds")
    table = data.to_table()
    rows = read_places(file, ReadOptions(chip_m=CHIP)).rows
    asked = [rows[i].place for i in table["input_row"].to_pylist()]
    for output, column in ((OutputSpec.pooled(), "embedding"), (OutputSpec.pooled("projected"), "embedding_projected")):
        batch = get_embeddings_batch(MODEL, spatials=asked, temporal=JUNE, output=output, backend=backend)
        expected = np.stack([r.data for r in batch])
        np.testing.assert_allclose(
            data.to_numpy(column), expected, atol=(1e-5 if column == "embedding" else 1e-3) * np.abs(expected).max()
        )
    assert table["request_id"].to_pylist() == [
        r.meta["request_id"] for r in get_embeddings_batch(MODEL, spatials=asked, temporal=JUNE, backend=backend)
    ]


def test_rows_carry_the_users_columns_and_how_they_were_made(archive, tmp_path):
    backend, file = archive
    export(file, tmp_path / "ds", backend=backend)
    row = next(iter(open_dataset(tmp_path / "ds").filter(where=pc.field("id") == "p0-4")))
    assert (row["id"], row["input_row"], row["label"]) == ("p0-4", 4, 1)
    assert row["n_scenes"] == 3
    assert row["dn_offsets"] == [-1000.0] * 3
    assert [s[11:19] for s in row["scene_ids"]] == ["20220623", "20220613", "20220603"]
    assert row["product_id"] == row["scene_ids"][0]
    assert row["timestamp"].isoformat() == "2022-06-23T10:10:31+00:00"
    assert row["clear_frac"] == 1.0
    assert row["norm"] == pytest.approx(np.linalg.norm(row["embedding"]), rel=1e-6)
    assert row["spatial_block"].startswith("32633_50_53")
    assert row["bbox"]["xmin"] < row["centre_lon"] < row["bbox"]["xmax"]
    assert row["grid_cell"] is None  # those are Major TOM's own cells
    assert row["band_means"] == pytest.approx([1500] * 3, abs=30)


def test_a_users_column_of_our_name_comes_back_as_theirs(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("id,lon,lat,model,norm,label\na,15,48,mine,7,x\n")
    export(file, tmp_path / "ds", backend=FakeProvider())
    [row] = open_dataset(tmp_path / "ds")
    assert (row["user_model"], row["user_norm"], row["label"], row["model"]) == ("mine", 7, "x", MODEL)


def test_other_tools_open_it(archive, tmp_path):
    import duckdb
    import geopandas
    import pandas as pd

    backend, file = archive
    folder = tmp_path / "ds"
    export(file, folder, backend=backend, dtype="float16", normalise=True)
    frame = geopandas.read_parquet(folder / "embeddings")
    assert frame.crs.equals("OGC:CRS84")
    assert frame.geometry.is_valid.all()
    assert np.stack(frame["embedding"]).shape == (30, 192)
    assert pd.read_parquet(folder / "embeddings")["timestamp"].notna().all()
    found = duckdb.sql(
        f"SELECT count(*), avg(norm) FROM '{folder}/embeddings/*.parquet' WHERE status = 'ok'"
    ).fetchall()
    assert found[0] == (30, pytest.approx(frame["norm"].mean()))
    table = pq.read_table(folder / "embeddings")
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 192)
    np.testing.assert_allclose(np.linalg.norm(np.stack(frame["embedding"]).astype(np.float32), axis=1), 1, atol=2e-3)
    data = open_dataset(folder)
    assert data.to_geodataframe(["label"]).columns.tolist() == ["label", "geometry"]
    assert data.to_xarray().sizes == {"place": 30, "d": 192}
    geo = json.loads(pq.read_metadata(folder / "embeddings" / "part-000000.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]


def test_a_dataset_is_filtered_by_place_time_and_status(tmp_path):
    export(
        places(6),
        tmp_path / "ds",
        backend=FakeProvider(),
        temporal=TemporalSpec.range("2022-06-01", "2022-08-01"),
        every="month",
    )
    data = open_dataset(tmp_path / "ds")
    assert len(data) == 12
    assert len(data.filter(bbox=(15.15, 47, 15.45, 49))) == 6
    july = data.filter(temporal=TemporalSpec.range("2022-07-01", "2022-08-01"))
    assert len(july) == 6
    assert july.to_numpy().shape == (6, 192)
    assert len(july.filter(status="partial")) == 0
    assert july.filter(status="partial").to_numpy().shape == (0, 192)
    assert "6 rows" in repr(july)
    with pytest.raises(SpecError, match="'ok' or 'partial'"):
        data.filter(status="failed")
    with pytest.raises(RSEmbedError, match="is no dataset"):
        open_dataset(tmp_path)


def test_thumbnails_are_pictures_by_unique_id(archive, tmp_path):
    backend, file = archive
    export(file, tmp_path / "ds", backend=backend)
    found = dict(open_dataset(tmp_path / "ds").thumbnails())
    assert set(found) == set(vectors(tmp_path / "ds"))
    image = Image.open(io.BytesIO(next(iter(found.values()))))
    assert image.size == (96, 96)
    export(file, tmp_path / "none", backend=backend, thumbnails=False)
    assert not (tmp_path / "none" / "thumbnails").exists()


def test_what_lies_beside_the_files_describes_them(archive, tmp_path):
    backend, file = archive
    folder = tmp_path / "ds"
    export(file, folder, backend=backend)
    assert "30 places" in (folder / "README.md").read_text()
    assert "Contains modified Copernicus Sentinel data 2022" in (folder / "LICENSE.txt").read_text()
    collection = json.loads((folder / "collection.json").read_text())
    assert (collection["emb:type"], collection["emb:dimensions"]) == ("chip", 192)
    assert {link["rel"] for link in collection["links"]} >= {"emb:model", "emb:source-data", "license"}
    west, south, east, north = collection["extent"]["spatial"]["bbox"][0]
    assert 14.9 < west < east < 15.2
    assert 47.9 < south < north < 48.1
    assert json.loads((folder / "model.json").read_text())["properties"]["mlm:name"] == MODEL
    assert {p.name for p in (folder / "embeddings").iterdir()} == {f"part-{i:06d}.parquet" for i in range(4)}
    assert str(folder.parent) not in (folder / "README.md").read_text()


def test_token_grids_lie_beside_the_vectors(archive, tmp_path):
    import xarray as xr

    backend, file = archive
    folder = tmp_path / "ds"
    export(file, folder, backend=backend, grid=True)
    data = open_dataset(folder)
    table = data.to_table(["unique_id", "input_row"])
    rows = read_places(file, ReadOptions(chip_m=CHIP)).rows
    for i in (0, 11, 29):
        place = rows[table["input_row"][i].as_py()].place
        [expected] = get_embeddings_batch(
            MODEL, spatials=[place], temporal=JUNE, output=OutputSpec.grid(), backend=backend
        )
        grid = data.grid(table["unique_id"][i].as_py())
        np.testing.assert_allclose(grid.values, expected.data.values, atol=1e-5 * np.abs(expected.data.values).max())
        np.testing.assert_allclose(grid["y"], expected.data["y"])
        assert grid.attrs["crs"] == expected.data.attrs["crs"]
        assert grid.attrs["transform"] == expected.data.attrs["transform"]
    stored = xr.open_zarr(folder / "grids.zarr", group="part-000000/32633_7x7", consolidated=False)
    assert stored["tokens"].dims == ("place", "d", "y", "x")
    assert stored.attrs["proj:code"] == "EPSG:32633"
    root = json.loads((folder / "grids.zarr" / "zarr.json").read_text())["attributes"]
    assert (root["geoemb:type"], root["geoemb:dimensions"]) == ("pixel", 192)
    assert {c["name"] for c in root["zarr_conventions"]} == {"geoemb:", "proj:", "spatial:"}
    with pytest.raises(SpecError, match="no token grid of 'x'"):
        data.grid("x")


def test_the_size_of_many_grids_is_told_first(tmp_path, caplog):
    file = tmp_path / "p.csv"
    file.write_text("lon,lat\n" + "".join(f"{15 + i / 1e5:.5f},48\n" for i in range(30_000)))
    source = FakeProvider(failing={0: RuntimeError("stop here")})
    with pytest.raises(RuntimeError, match="stop here"):
        export(file, tmp_path / "ds", backend=source, grid=True, partition_size=10_000)
    assert "token grids of 30,000 places take 1 GB or more" in caplog.text


def test_grids_of_places_that_are_tried_again_join_the_others(tmp_path):
    source = Picky(broken={15.1})
    export(places(4), tmp_path / "ds", backend=source, grid=True)
    grids, parts = tmp_path / "ds" / "grids.zarr" / "part-000000", tmp_path / "ds" / ".rs-embed" / "parts"
    grids.rename(parts / f"replaced.{grids.name}")  # the process died while it replaced them
    source.broken = set()
    export(places(4), tmp_path / "ds", backend=source, grid=True, retry_failed=True)
    data = open_dataset(tmp_path / "ds")
    assert len(vectors(tmp_path / "ds")) == 4
    for unique in vectors(tmp_path / "ds"):
        assert data.grid(unique).shape == (192, 7, 7)


def test_files_of_processes_that_were_killed_are_removed_after_a_day(tmp_path):
    export(places(1), tmp_path / "ds", backend=FakeProvider())
    parts = tmp_path / "ds" / ".rs-embed" / "parts"
    for name in (".aa.part.part-000001.parquet", ".bb.part.part-000001", ".cc.part.000001.json"):
        (parts / name).mkdir() if name.endswith("1") else (parts / name).touch()
    for name in (".aa.part.part-000001.parquet", ".bb.part.part-000001"):
        os.utime(parts / name, (0, 0))
    export(places(1), tmp_path / "ds", backend=FakeProvider())
    assert [path.name for path in parts.iterdir()] == [".cc.part.000001.json"]


def test_a_row_is_in_no_moment_of_a_retry_in_neither_file(tmp_path):
    """The process may die between two files. A folder in the way of the second stops it there."""
    folder = tmp_path / "ds"
    failures, mark = folder / "failures" / "part-000000.parquet", folder / ".rs-embed" / "done" / "000000.json"

    @dataclass
    class Blocking(FakeProvider):
        def fetch(self, requests):
            failures.rename(tmp_path / "failures.parquet")
            failures.mkdir()
            yield from FakeProvider.fetch(self, requests)

    export(places(3), folder, backend=Picky(broken={15.1}, name="fake"))
    marked = mark.read_text()
    with pytest.raises(RSEmbedError, match="cannot be written"):
        export(places(3), folder, backend=Blocking(), retry_failed=True)
    assert (len(vectors(folder)), mark.read_text()) == (3, marked)
    failures.rmdir()
    (tmp_path / "failures.parquet").rename(failures)
    source = FakeProvider()
    summary = export(places(3), folder, backend=source, retry_failed=True)
    assert (summary.failed, source.asked) == (0, [])
    assert (len(vectors(folder)), failures.exists()) == (3, False)


# --- again, and on -------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing(tmp_path):
    source = FakeProvider()
    export(places(20), tmp_path / "ds", backend=source)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "ds" / "embeddings").iterdir()}
    summary = export(places(20), tmp_path / "ds", backend=source)
    assert len(source.asked) == 20
    assert (summary.done, summary.places) == (20, 20)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ds" / "embeddings").iterdir()} == before


def test_places_and_time_ranges_are_added(tmp_path):
    source = FakeProvider()
    export(places(10), tmp_path / "ds", backend=source)
    export(places(15), tmp_path / "ds", backend=source)
    assert len(source.asked) == 15
    july = TemporalSpec.range("2022-07-01", "2022-08-01")
    summary = export(places(15), tmp_path / "ds", backend=source, temporal=july)
    assert (len(source.asked), summary.done) == (30, 30)
    assert len(vectors(tmp_path / "ds")) == 30
    assert sorted(DatasetFolder(tmp_path / "ds").done()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sensor": SensorSpec(cloudy_pct=20)}, "sensor.cloudy_pct: 30.0 in the folder, 20.0 now"),
        ({"output": OutputSpec.pooled("projected")}, 'output.pooling: "mean" in the folder, "projected" now'),
        ({"dtype": "float16"}, 'dtype: "float32" in the folder, "float16" now'),
        ({"backend": FakeProvider(name="other")}, 'backend: "fake" in the folder, "other" now'),
    ],
)
def test_any_other_change_is_refused_with_the_difference(tmp_path, change, says):
    export(places(2), tmp_path / "ds", backend=FakeProvider())
    with pytest.raises(RSEmbedError, match=says):
        export(places(2), tmp_path / "ds", **({"backend": FakeProvider()} | change))


def test_failures_are_rows_too_and_can_be_tried_again(tmp_path):
    source = Picky(broken={15.1, 15.3}, empty={15.2})
    summary = export(places(10), tmp_path / "ds", backend=source)
    assert (summary.done, summary.failed, summary.no_imagery) == (7, 2, 1)
    assert dict(summary.failures)["1"] == "timed out"
    failures = open_dataset(tmp_path / "ds").failures()
    assert sorted(zip(failures["id"].to_pylist(), failures["status"].to_pylist(), strict=True)) == [
        ("1", "failed"),
        ("2", "no_imagery"),
        ("3", "failed"),
    ]
    assert set(failures.column_names) == set(open_dataset(tmp_path / "ds").columns)
    first = vectors(tmp_path / "ds")
    source.broken, source.asked = {15.3}, []
    summary = export(places(10), tmp_path / "ds", backend=source, retry_failed=True)
    assert len(source.asked) == 2  # neither what is done nor what has no imagery
    assert (summary.done, summary.failed, summary.no_imagery) == (8, 1, 1)
    second = vectors(tmp_path / "ds")
    assert len(second) == 8
    assert all(np.array_equal(second[u], v) for u, v in first.items())
    assert sorted(open_dataset(tmp_path / "ds").failures()["id"].to_pylist()) == ["2", "3"]
    assert len(dict(open_dataset(tmp_path / "ds").thumbnails())) == 8
    export(places(10), tmp_path / "ds", backend=source, retry_failed=True)
    assert len(vectors(tmp_path / "ds")) == 8


def test_bad_rows_are_failures_with_their_line(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("id,lon,lat\na,15,48\nb,x,48\n,16,48\n")
    for _ in range(2):
        summary = export(file, tmp_path / "ds", backend=FakeProvider())
        assert (summary.places, summary.done, summary.failed) == (3, 2, 1)
        assert summary.bad_rows == ("line 3: lon='x', lat='48' are no numbers: write them as 13.72 and -8.21",)
        [row] = open_dataset(tmp_path / "ds").failures().to_pylist()
        assert (row["id"], row["input_row"], row["error"]) == ("b", 1, summary.bad_rows[0])


def test_a_folder_without_one_good_place_is_still_a_dataset(tmp_path):
    summary = export(places(3), tmp_path / "ds", backend=Picky(empty={15.0, 15.1, 15.2}))
    assert (summary.done, summary.no_imagery) == (0, 3)
    assert len(open_dataset(tmp_path / "ds")) == 0
    assert open_dataset(tmp_path / "ds").failures().num_rows == 3


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"chip_m": 200}, "20 px a side.*--chip of at least 320 m, or --allow-small"),
        ({"shard": (2, 2)}, r"shard 2/2 must be I/N"),
        ({"engine": "dask"}, "engine must be 'local' or 'ray'"),
        ({"partition_size": 0}, "at least 1"),
        ({"dtype": "float64"}, "'float32' or 'float16'"),
        ({"output": OutputSpec.grid()}, "take output pooled"),
        ({"every": "week"}, "every must be month"),
        ({"input_prep": "crop"}, "'resize' or 'tile'"),
        ({"checkpoint": object()}, "a path or hub repo, got a object"),
        ({"sensor": SensorSpec(bands=("B8", "B4", "B3"))}, "takes the bands"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(tmp_path, how, says):
    file = write_places(tmp_path / "p.csv", 3)
    with pytest.raises(RSEmbedError, match=says):
        export(file, tmp_path / "ds", backend=FakeProvider(), **how)
    assert not (tmp_path / "ds").exists()


def test_an_input_of_which_no_row_can_be_asked_for_is_one_error_before_anything_is_written(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("lon,lat\n500000,5316300\n500640,5316300\n")
    big, small = PointBuffer(15, 48, 60_000), PointBuffer(15, 48, 640)
    for where, how, says in (
        (places(2), {"temporal": None}, r"none of the 2 row\(s\).*no time range: give --start and --end"),
        (file, {}, r"line 2: longitude 500000 lies outside.*the name of their CRS: --crs EPSG"),
        ([big, big], {}, r"place 0: it is 12000 x 12000 px, and at most 8192"),
        ([BBox(15, 48, 17, 49)], {}, r"place 0: .* px at scale_m=10"),
        ([small], {"input_prep": "tile"}, r"place 0: it is 128 x 128 px, and input_prep='tile' needs at least 224 px"),
        ([], {}, r"the input has no places: it needs at least one row"),
    ):
        with pytest.raises(SpecError, match=says):
            export(where, tmp_path / "ds", backend=FakeProvider(), **how)
        assert not (tmp_path / "ds").exists()


def test_a_region_is_counted_before_it_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(shapely, "contains_xy", lambda *points: pytest.fail("the region was cut"))
    province = BBox(13.4, 48.0, 14.2, 48.6)
    with pytest.raises(SpecError, match=r"1 px a side.*--chip of at least 320 m, or --allow-small"):
        export(province, tmp_path / "ds", backend=FakeProvider(), chip_m=10)
    with pytest.raises(
        SpecError, match=r"chips of 10 m from this region make about 39,[0-9]{3},[0-9]{3} rows: 23 days"
    ):
        export(province, tmp_path / "ds", backend=FakeProvider(), chip_m=10, allow_small=True)
    with pytest.raises(SpecError, match=r"lift the limit of 1,000 rows with --yes"):
        export(province, tmp_path / "ds", backend=FakeProvider(), read=ReadOptions(max_places=1000), every="month")
    assert not (tmp_path / "ds").exists()


def test_shards_share_the_partitions_of_one_folder(tmp_path):
    sources = [FakeProvider(), FakeProvider()]
    for i, source in enumerate(sources):
        export(places(40), tmp_path / "ds", backend=source, shard=(i, 2))
    assert [len(s.asked) for s in sources] == [24, 16]
    assert len(vectors(tmp_path / "ds")) == 40


def test_two_runs_in_one_folder_do_each_place_once(tmp_path):
    sources = [FakeProvider(delay_s=0.02) for _ in range(2)]
    runs = [
        threading.Thread(target=export, args=(places(60), tmp_path / "ds"), kwargs={"backend": source})
        for source in sources
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(vectors(tmp_path / "ds")) == 60
    assert sum(len(s.asked) for s in sources) == 60


def test_an_output_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / ".rs-embed").write_text("in the way")
    (tmp_path / "ds" / ".rs-embed" / "locks" / "plan.lock").mkdir(parents=True)
    for out, says in (("file", r"cannot be written .*: check the folder"), ("ds", r"plan.lock is no regular file")):
        with pytest.raises(RSEmbedError, match=says):
            export_embeddings(
                MODEL, [PointBuffer(13.720948, 48.222307, 200)], tmp_path / out, temporal=JUNE, backend="sample"
            )


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tmp_path):
    if os.geteuid() == 0:
        _on_a_full_disk(tmp_path)
    else:
        pytest.skip("a small file system can only be mounted by root")


def _on_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow a mount")
    try:
        with pytest.raises(RSEmbedError, match=r"cannot be written.*No space left.*run the same again"):
            export(places(200), small / "ds", backend=FakeProvider())
        done = len(DatasetFolder(small / "ds").done())
        assert len(vectors(small / "ds")) == 8 * done
        assert not list((small / "ds" / ".rs-embed" / "parts").iterdir())
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        source = FakeProvider()
        export(places(200), small / "ds", backend=source)
        assert len(source.asked) == 200 - 8 * done
        assert len(vectors(small / "ds")) == 200
    finally:
        subprocess.run(["umount", small], check=True)


_KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
import numpy as np
from rs_embed import TemporalSpec, export_embeddings, get_embedding
from rs_embed.providers.registry import resolve

class Recorded:
    "The local archive; each place that is asked for leaves a line."
    def __init__(self, provider, log): self.provider, self.log = provider, log
    name = "recorded"
    def plan(self, requests): return self.provider.plan(requests)
    def fetch(self, requests):
        for i, result in self.provider.fetch(requests):
            left, top = requests[i].geobox.affine[2], requests[i].geobox.affine[5]
            os.write(self.log, f"{{left!r}} {{top!r}}\\n".encode())
            yield i, result
            time.sleep(0.01)

def run(places, out, log):
    provider = Recorded(resolve({backend!r}), os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY))
    export_embeddings("clip_eurosat_s2rgb", places, out, temporal=TemporalSpec.range("2022-06-01", "2022-07-01"),
                      chip_m=640, backend=provider, partition_size=6)

chance = random.Random(0)
places, out, logs, kills = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
get_embedding("clip_eurosat_s2rgb", input_chw=np.ones((3, 64, 64), np.uint16))  # so that a child's life is work
import async_tiff, odc.geo.geobox, pyarrow.parquet, rasterio, rs_embed.export.workers, rs_embed.providers.local.provider
for k in range(kills):
    child = os.fork()
    if child == 0:
        run(places, out, str(logs / f"{{k:03d}}.log"))
        os._exit(0)
    log, goal = logs / f"{{k:03d}}.log", chance.randrange(16)  # places that it may fetch
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if log.exists() and log.read_bytes().count(b"\\n") >= goal:
            time.sleep(chance.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    marks = sorted(p.stem for p in Path(out).glob(".rs-embed/done/*.json"))
    (logs / f"{{k:03d}}.done").write_text(" ".join(marks))
run(places, out, str(logs / "last.log"))
"""


def test_twenty_kills_lose_nothing_double_nothing_and_fetch_nothing_finished_again(archive, tmp_path):
    backend, _ = archive
    file, logs, kills = write_places(tmp_path / "places.csv", 80, seed=1), tmp_path / "logs", 20
    logs.mkdir()
    code = _KILLED.format(tests=str(Path(__file__).parent), backend=backend)
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "killed"), str(logs), str(kills)]
    subprocess.run(command, check=True, timeout=200)
    export(file, tmp_path / "calm", backend=_Named(backend), partition_size=6)
    killed, calm = vectors(tmp_path / "killed"), vectors(tmp_path / "calm")
    assert len(open_dataset(tmp_path / "killed")) == len(killed) == 80
    assert killed.keys() == calm.keys()
    for unique, vector in calm.items():
        np.testing.assert_allclose(killed[unique], vector, atol=1e-5 * np.abs(vector).max())
    folder = DatasetFolder(tmp_path / "killed")
    finished: set[str] = set()
    interrupted = 0
    for k in range(kills + 1):
        log = logs / (f"{k:03d}.log" if k < kills else "last.log")
        fetched = set(log.read_text().splitlines()) if log.exists() else set()
        assert not fetched & finished
        interrupted += bool(fetched)
        if k < kills:
            done = [int(mark) for mark in (logs / f"{k:03d}.done").read_text().split()]
            finished = {line for number in done for line in _corners(folder, number)}
    assert interrupted > kills / 3  # kills that came while there was work
    assert len(list((tmp_path / "killed" / ".rs-embed" / "parts").iterdir())) <= kills


def _Named(backend: str) -> object:
    """The local archive under the name that the killed runs gave it."""
    from rs_embed.providers.registry import resolve

    provider = resolve(backend)

    class Named:
        name = "recorded"

        def plan(self, requests: list[PatchRequest]) -> FetchPlan:
            return provider.plan(requests)

        def fetch(self, requests: list[PatchRequest]):
            return provider.fetch(requests)

    return Named()


def _corners(folder: DatasetFolder, number: int) -> list[str]:
    from rs_embed.export.partition_io import open_partition

    partition = open_partition(folder, folder.request, number)
    return [f"{p.geobox.affine[2]!r} {p.geobox.affine[5]!r}" for p in partition.patches.values()]


# --- ray -----------------------------------------------------------------------------------------------

_RAY = """
import json, os, signal, subprocess, sys, threading, time
import ray
from ray.cluster_utils import Cluster
from rs_embed import TemporalSpec, export_embeddings

places, backend, out = sys.argv[1], sys.argv[2], sys.argv[3]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")

def killer():
    done = out + "/killed/.rs-embed/done"
    while not os.path.isdir(done) or len(os.listdir(done)) < 2:
        time.sleep(0.02)
    found = subprocess.run(["pgrep", "-f", "^ray::MapWorker"], capture_output=True, text=True).stdout.split()
    os.kill(int(found[0]), signal.SIGKILL)
    print("killed", found[0], file=sys.stderr)

for mode in ("calm", "killed"):
    if mode == "killed":
        threading.Thread(target=killer, daemon=True).start()
    summary = export_embeddings("clip_eurosat_s2rgb", places, out + "/" + mode, backend=backend, engine="ray",
                                temporal=TemporalSpec.range("2022-06-01", "2022-07-01"), chip_m=640, partition_size=4)
    print(json.dumps([summary.places, summary.done, summary.failed]))
ray.shutdown()
cluster.shutdown()
"""


def test_a_ray_cluster_of_two_workers_gives_the_same_also_when_a_worker_is_killed(archive, tmp_path):
    backend, _ = archive
    file = write_places(tmp_path / "places.csv", 60, seed=2)
    command = [sys.executable, "-W", "ignore", "-c", _RAY, str(file), backend, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[60")]  # Ray prints too
    assert counts == [[60, 60, 0]] * 2
    assert "killed" in done.stderr
    export(file, tmp_path / "local", backend=backend, partition_size=4)
    local = vectors(tmp_path / "local")
    for mode in ("calm", "killed"):
        clustered = vectors(tmp_path / mode)
        assert clustered.keys() == local.keys()
        for unique, vector in local.items():
            np.testing.assert_allclose(clustered[unique], vector, atol=1e-5 * np.abs(vector).max())


# --- planning ------------------------------------------------------------------------------------------


def test_windows_begin_at_the_first_of_a_month():
    found = windows(TemporalSpec.range("2022-01-15", "2022-04-02"), "month")
    assert [(w.start, w.end) for w in found] == [
        ("2022-01-15", "2022-02-01"),
        ("2022-02-01", "2022-03-01"),
        ("2022-03-01", "2022-04-01"),
        ("2022-04-01", "2022-04-02"),
    ]
    quarters = windows(TemporalSpec.range("2022-02-01", "2023-01-01"), "quarter")
    assert [w.start for w in quarters] == ["2022-02-01", "2022-04-01", "2022-07-01", "2022-10-01"]
    assert len(windows(TemporalSpec.range("2020-06-01", "2023-01-01"), "year")) == 3


def test_neighbours_on_the_curve_are_neighbours_on_the_ground():
    x, y = (v.ravel() for v in np.meshgrid(np.arange(32), np.arange(32)))
    distance = hilbert(x, y)
    assert len(set(distance.tolist())) == 1024
    order = np.argsort(distance)
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert steps.max() == 1


def test_partitions_are_compact_and_the_same_every_time(tmp_path):
    rng = np.random.default_rng(0)
    scattered = [PointBuffer(15 + a, 47 + b, 320) for a, b in rng.random((200, 2))]
    found = read_places(scattered, ReadOptions())
    orders = [schedule(found, JUNE, None).place_of for _ in range(2)]
    assert np.array_equal(*orders)
    assert sorted(orders[0]) == list(range(200))
    spreads = [np.ptp(np.stack([found.lon[part], found.lat[part]]), axis=1) for part in orders[0].reshape(10, 20)]
    assert np.mean(np.prod(spreads, axis=1)) < 0.3  # of 1 square degree; 20 places at random would span 0.8 of it


def test_a_plan_has_the_ids_of_single_requests_and_keeps_rows_apart_by_them(tmp_path):
    mixed = [*places(3), BBox(15, 48, 15.1, 48.1), PointBuffer(-70.123456789, -33.4, 333.3)]
    found = read_places(mixed, ReadOptions())
    rows = schedule(found, TemporalSpec.range("2022-06-01", "2022-08-01"), "month")
    export(mixed[:1], tmp_path / "ds", backend=FakeProvider())
    request = DatasetFolder(tmp_path / "ds").request
    [table] = plan_tables(found, rows, request, DatasetFolder(tmp_path / "ds").planned_keys())
    assert table.num_rows == len(rows) - 1 == 9  # all but the one that is planned
    for row in table.to_pylist():
        place, time = mixed[row["input_row"]], TemporalSpec.range(row["start"], row["end"])
        assert parse_place(row["place"]) == place
        assert row["request_id"] == request.for_place(place, time).id()


def test_a_plan_says_what_it_would_cost_and_what_would_cost_less(archive):
    backend, file = archive
    plan = plan_export(file, temporal=JUNE, backend=backend, model=MODEL, chip_m=CHIP, grid=True)
    facts = plan.to_dict()
    assert (facts["places"], facts["scenes"]) == (30, 90)
    assert facts["read_bytes"] == 30 * 3 * 64 * 64 * 7
    assert facts["alternatives"]["half the chip"]["read_bytes"] == facts["read_bytes"] // 4
    assert facts["alternatives"]["max_scenes=3"]["scenes"] == 90
    gee = next(v for k, v in facts["alternatives"].items() if "gee" in k)
    assert gee["read_bytes"] == 30 * 64 * 64 * (3 * 4 + 1 + 2 * 4)
    assert facts["grid_bytes"] == 30 * 49 * 192 * 4
    with pytest.raises(SpecError, match="greater than 0 Mbit/s"):
        plan_export(file, temporal=JUNE, backend=backend, chip_m=CHIP, mbit_s=0)


def test_events_are_json_and_add_up(archive, tmp_path):
    backend, file = archive
    events: list[dict[str, object]] = []
    export(file, tmp_path / "ds", backend=backend, report=lambda event: events.append(json.loads(json.dumps(event))))
    last = events[-1]
    assert (last["event"], last["done"], last["total"]) == ("finished", 30, 30)
    assert set(last["waiting_for"]) == {"fetch", "embed", "write"}
    assert last["bottleneck"] in last["waiting_for"]


def test_a_card_of_another_weight_is_not_mixed_in(tmp_path, small):
    file = write_places(tmp_path / "p.csv", 2)
    how = {"temporal": JUNE, "chip_m": CHIP, "backend": FakeProvider()}
    export_embeddings("remoteclip_s2rgb", file, tmp_path / "ds", checkpoint=str(small), **how)
    other = find_card(MODEL).checkpoint
    with pytest.raises(RSEmbedError, match="weights_sha256"):
        export_embeddings("remoteclip_s2rgb", file, tmp_path / "ds", checkpoint=other, **how)


def test_a_config_or_tokenizer_that_changed_beside_equal_weights_is_not_mixed_in(tmp_path, small):
    checkpoint = shutil.copytree(small, tmp_path / "weights")
    folder = tmp_path / "ds"

    def run(n: int) -> object:
        how = {"temporal": JUNE, "chip_m": CHIP, "backend": FakeProvider(), "checkpoint": str(checkpoint)}
        return export_embeddings("remoteclip_s2rgb", places(n), folder, **how)

    run(1)
    config, tokenizer = checkpoint / "config.json", checkpoint / "tokenizer.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"note": "changes nothing"}, indent=2))
    tokenizer.write_text("{}")  # was not there before
    assert run(2).done == 2
    config.write_text(json.dumps(plain | {"model_name": "s-quickgelu"}))
    with pytest.raises(RSEmbedError, match=r'network: "gelu, .* in the folder, "quick_gelu, .*put back the config'):
        run(3)
    with pytest.raises(CheckpointError, match=r"config.json beside .* is not that of the rows .*put it back"):
        EmbeddingIndex(folder).search(image=np.full((3, 64, 64), 900.0))
    config.write_text(json.dumps(plain))
    manifest = folder / ".rs-embed" / "manifest.json"
    stored = json.loads(manifest.read_text())
    stored["request"]["tokenizer_sha256"] = "0" * 64
    manifest.write_text(json.dumps(stored))
    with pytest.raises(RSEmbedError, match=r'tokenizer_sha256: "000.*put back the config and tokenizer'):
        run(3)
    for name in ("network", "tokenizer_sha256"):  # of a dataset that an earlier version began
        del stored["request"][name]
    manifest.write_text(json.dumps(stored))
    assert run(3).done == 3


def test_time_goes_where_it_is_said_to(tmp_path):
    events: list[dict[str, object]] = []
    export(places(12), tmp_path / "ds", backend=FakeProvider(delay_s=0.6), report=events.append)
    assert events[-1]["waiting_for"]["fetch"] > 3.6  # of the 7.2 s that the imagery took; the model works meanwhile
