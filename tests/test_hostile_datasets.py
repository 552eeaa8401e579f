"""Datasets that are damaged or mean harm: one error, or a row or file less; no path leaves the folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from rs_embed import CheckpointError, EmbeddingIndex, RSEmbedError, open_dataset
from rs_embed.cli.main import main
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.plans import PartitionCounts
from vector_dataset import write_vectors

VECTORS = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A dataset of six rows with its index and a thumbnail of each row."""
    folder = write_vectors(tmp_path_factory.mktemp("good") / "ds", VECTORS, list("abcdef"))
    EmbeddingIndex(folder)
    thumbnails = folder / "thumbnails" / "part-000000.parquet"
    thumbnails.parent.mkdir()
    ids = [f"0-{name}" for name in "abcdef"]
    pq.write_table(
        pa.table({"unique_id": ids, "id": list("abcdef"), "thumbnail": [b"\x89PNG\r\n\x1a\n"] * 6}), thumbnails
    )
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "ds"))


def manifest(change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / ".rs-embed" / "manifest.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return damage


def write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


MANIFEST = ".rs-embed/manifest.json"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (write(MANIFEST, "[]"), "manifest.json is damaged .it holds no request.: copy the dataset again"),
        (write(MANIFEST, "[" * 100_000), "nested too deep"),
        (write(MANIFEST, b"\xff\xfe"), "is damaged"),
        (manifest(lambda m: m.pop("request")), "holds no request"),
        (manifest(lambda m: m.update(format=[2])), "has format"),
        (manifest(lambda m: m["request"].update(evil=1)), "does not fit this version"),
        (manifest(lambda m: m["request"].pop("grid")), "does not fit this version"),
        (manifest(lambda m: m["request"].update(model="nope")), "unknown model 'nope'"),
        (manifest(lambda m: m["request"].update(model=5)), "is damaged .*model cannot be 5"),
        (manifest(lambda m: m["request"]["sensor"].update(scale_m=[1])), "is damaged"),
        (manifest(lambda m: m["request"].update(columns=7)), "does not fit this version"),
    ],
)
def test_a_manifest_that_is_none_is_one_error(folder, damage, says):
    damage(folder)
    with pytest.raises(RSEmbedError, match=says):
        EmbeddingIndex(folder).search("lake")


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(name="../../../secret.parquet"),
        lambda plan: plan.update(name="/etc/passwd"),
        lambda plan: plan.update(first=-1),
        lambda plan: plan.update(first=10**9),
        lambda plan: plan.update(partitions="3"),
        lambda plan: plan.pop("places"),
        lambda plan: plan.update(more=1),
    ],
)
def test_a_plan_that_is_none_is_one_error(folder, change):
    manifest(lambda m: change(m["plans"][0]))(folder)
    with pytest.raises(RSEmbedError, match=r"manifest.json is damaged"):
        DatasetFolder(folder).planned_keys()


def test_a_damaged_plan_is_one_error(folder):
    (folder / ".rs-embed" / "plan-000.parquet").write_bytes(b"PAR1 no")
    for read in (DatasetFolder.planned_keys, DatasetFolder.time_range, lambda f: f.rows(0), lambda f: f.rows_in(0)):
        with pytest.raises(RSEmbedError, match=r"plan-000.parquet is damaged"):
            read(DatasetFolder(folder))


def test_a_partition_whose_mark_is_damaged_or_whose_file_is_gone_is_run_again(folder, caplog):
    dataset, done = DatasetFolder(folder), folder / ".rs-embed" / "done"
    done.mkdir()
    for name, text in (
        ("000000", '{"ok": 6, "partial": 0, "failed": 0, "no_imagery": 0}'),
        ("x", "{}"),
        ("000001", "{}"),
    ):
        (done / f"{name}.json").write_text(text)
    (done / "000002.json").write_text('{"ok": true, "partial": 0, "failed": 0, "no_imagery": 0}')
    assert dataset.done() == {0: PartitionCounts(ok=6, partial=0, failed=0, no_imagery=0)}
    assert "000001.json is damaged" in caplog.text
    (folder / "embeddings" / "part-000000.parquet").unlink()
    assert not dataset.is_done(0)


def facts(**values: object) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / ".rs-embed" / "index" / "index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def with_column(name: str, values: list[object], kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array(values, kind or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


def index_rows(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / ".rs-embed" / "index" / "rows-000000000.parquet"
        pq.write_table(change(pq.read_table(file)), file)

    return damage


def part_rows(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "embeddings" / "part-000000.parquet"
        shutil.rmtree(folder / ".rs-embed" / "index")
        pq.write_table(change(pq.read_table(file)), file)

    return damage


def to_a_folder(folder: Path) -> None:
    file = folder / ".rs-embed" / "index" / "index.json"
    file.unlink()
    file.mkdir()


def linked_vectors(folder: Path) -> None:
    """A link that the next row would be written through."""
    victim = folder.parent / "victim"
    victim.write_text("untouched")
    file = folder / ".rs-embed" / "index" / "vectors.f16"
    file.unlink()
    file.symlink_to(victim)


INDEX = ".rs-embed/index/"
NPY_OF_400_GB = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }"
SQUARE = shapely.to_wkb(shapely.box(0, 47, 1, 48))


@pytest.mark.parametrize(
    "damage",
    [
        facts(dim=10**15),
        facts(count=10**12),
        facts(count=-1),
        facts(count=True),
        facts(dim=0),
        facts(parts=[1]),
        facts(parts={"part-000000.parquet": "6"}),
        facts(left_out={"part-000000.parquet": [1]}),
        write(INDEX + "index.json", '{"a":' * 100_000),
        lambda folder: np.save(folder / INDEX / "mean.npy", np.array([object()]), allow_pickle=True),
        lambda folder: np.save(folder / INDEX / "mean.npy", np.full(128, np.nan, np.float32)),
        write(
            INDEX + "mean.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }",
        ),
        write(INDEX + "mean.npy", b""),
        write(INDEX + "mean.npy", b"PK\x03\x04"),
        write(INDEX + "mean.npy", b"\x93NUMPY\x01\x00\x05\x00{'a':"),
        write(INDEX + "vectors.f16", np.full(6 * 128, np.nan, np.float16).tobytes()),
        index_rows(lambda t: t.drop_columns(["bbox"])),
        index_rows(with_column("part", ["../../../elsewhere/thumbnails/part-000000.parquet"] * 6)),
        index_rows(with_column("part", ["/etc/passwd.parquet"] * 6)),
        index_rows(with_column("centre_lon", [float("nan")] * 6)),
        index_rows(with_column("geometry", [b"xx"] * 6)),
        index_rows(with_column("geometry", [SQUARE[:13] + b"\xff" * 80] * 6)),
        index_rows(with_column("geometry", [shapely.to_wkb(shapely.Point(1, 2))] * 6)),
        index_rows(with_column("unique_id", [None] * 6)),
        index_rows(with_column("id", [b"\xff"] * 6, pa.binary())),
        index_rows(with_column("datetime_start", [2**62] * 6, pa.int64())),
        write(INDEX + "rows-x.parquet", b""),
        to_a_folder,
        linked_vectors,
    ],
)
def test_a_damaged_index_is_built_again_from_the_dataset(folder, damage):
    damage(folder)
    index = EmbeddingIndex(folder)
    assert index.search(vector=VECTORS[2], k=6).hits[0].id == "c"
    assert len(index.places().hits) == 6
    assert len(index.thumbnails([hit.unique_id for hit in index.places().hits])) == 6
    assert index.problems == ()
    victim = folder.parent / "victim"
    assert not victim.exists() or victim.read_text() == "untouched"


def some(name: str, bad: object) -> Callable[[pa.Table], pa.Table]:
    """Give the second row a bad value."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[1] = bad
        return with_column(name, values)(table)

    return change


def ragged(table: pa.Table) -> pa.Table:
    vectors = [[1.0, 2.0] if i == 1 else row for i, row in enumerate(table["embedding_projected"].to_pylist())]
    return with_column("embedding_projected", vectors, pa.list_(pa.float32()))(table)


BAD_BOX = {"xmin": float("nan"), "ymin": 0.0, "xmax": 1.0, "ymax": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        some("embedding_projected", [float("nan")] * 128),
        some("embedding_projected", [float("inf")] * 128),
        some("embedding_projected", [0.0] * 128),
        some("embedding_projected", None),
        ragged,
        some("geometry", b"\xff" * 9),
        some("geometry", None),
        some("geometry", shapely.to_wkb(shapely.Point(1, 2))),
        some("geometry", SQUARE[:13] + np.full(10, np.nan).tobytes()),
        some("centre_lat", float("nan")),
        some("centre_lon", None),
        some("centre_lon", 1e300),
        some("bbox", None),
        some("bbox", BAD_BOX),
        some("unique_id", None),
        some("datetime_end", None),
        some("scene_ids", None),
    ],
)
def test_a_bad_row_costs_itself(folder, change, caplog):
    part_rows(change)(folder)
    for _ in range(2):  # built, and opened again
        index = EmbeddingIndex(folder)
        found = index.search(vector=VECTORS[2], k=6)
        assert sorted(hit.id for hit in found.hits) == list("acdef")
        assert index.problems == (
            "1 row(s) of part-000000.parquet are left out: their vector, outline or time range cannot be used",
        )
    assert json.dumps(found.to_geojson(), allow_nan=False)
    assert "are left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_column("embedding_projected", ["a"] * 6, pa.string()), "holds string, not vectors"),
        (lambda t: t.drop_columns(["embedding_projected"]), "embedding_projected"),
        (lambda t: t.drop_columns(["geometry"]), "has no column geometry"),
        (with_column("id", list(range(6)), pa.int64()), "column id holds int64"),
        (
            with_column("embedding_projected", [[float("nan")] * 128] * 6),
            "6 row.s. of part-000000.parquet are left out",
        ),
    ],
)
def test_a_dataset_without_any_row_that_can_be_used_says_why(folder, change, says):
    part_rows(change)(folder)
    with pytest.raises(RSEmbedError, match=rf"no row of .* can be searched: .*{says}"):
        EmbeddingIndex(folder)


@pytest.mark.parametrize(
    "damage",
    [
        write("embeddings/part-000007.parquet", b"xx"),
        lambda folder: os.symlink("/etc/passwd", folder / "embeddings" / "part-000007.parquet"),
        lambda folder: os.mkfifo(folder / "embeddings" / "part-000007.parquet"),
        lambda folder: (folder / "embeddings" / "part-000007.parquet").mkdir(),
        lambda folder: pq.write_table(pa.table({"x": [1]}), folder / "embeddings" / "part-000007.parquet"),
    ],
)
def test_a_bad_file_is_left_out_of_a_search_and_named_to_readers(folder, damage, caplog):
    damage(folder)
    index = EmbeddingIndex(folder)
    assert len(index) == 6
    [problem] = index.problems
    assert "part-000007.parquet" in problem
    index.refresh()
    assert caplog.text.count(problem) == 1
    for read in (len, list, lambda data: data.to_table(["id"]), lambda data: data.to_numpy("embedding_projected")):
        with pytest.raises(RSEmbedError, match=r"part-000007.parquet"):
            read(open_dataset(folder))


def test_readers_refuse_rows_without_a_vector_and_columns_that_are_not_there(folder):
    part_rows(some("embedding_projected", None))(folder)
    with pytest.raises(RSEmbedError, match=r"1 row.s. of .*, the first at 1, have no embedding_projected"):
        open_dataset(folder).to_numpy("embedding_projected")
    with pytest.raises(RSEmbedError, match="has no column 'colour'; it has unique_id, id"):
        open_dataset(folder).to_table(["colour"])
    with pytest.raises(RSEmbedError, match=r"the condition .* does not fit the columns"):
        open_dataset(folder).filter(where=pa.compute.field("colour") == 1).to_table()


@pytest.mark.parametrize(
    "name", ["embeddings", ".rs-embed", ".rs-embed/index", ".rs-embed/parts", "thumbnails", "concepts"]
)
def test_a_folder_that_is_a_link_out_of_the_dataset_is_refused(folder, name):
    elsewhere = folder.parent / "elsewhere"
    if (folder / name).exists():
        (folder / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(RSEmbedError, match="is a link that leads out of the dataset"):
        EmbeddingIndex(folder)


def test_a_link_inside_of_the_dataset_is_followed(folder):
    part = folder / "embeddings" / "part-000000.parquet"
    part.rename(folder / "kept.parquet")
    part.symlink_to(folder / "kept.parquet")
    assert len(open_dataset(folder)) == 6


def test_thumbnails_of_a_damaged_file_or_a_link_are_none(folder, caplog):
    file, index = folder / "thumbnails" / "part-000000.parquet", EmbeddingIndex(folder)
    elsewhere = file.rename(folder.parent / "secret.parquet")
    file.symlink_to(elsewhere)
    assert index.thumbnails(["a"]) == index.thumbnails(["a"]) == {}
    assert caplog.text.count("leads out of the dataset") == 1
    file.unlink()
    file.write_bytes(b"PAR1")
    assert index.thumbnails(["a"]) == {}
    pq.write_table(pa.table({"unique_id": ["0-a"], "thumbnail": [b"<script>"]}), file)
    assert index.thumbnails(["a"]) == {}


CONCEPT = {"name": "c", "model": "m", "weights_sha256": "0" * 64, "positives": [], "negatives": [], "text": []}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(CONCEPT | {"direction": direction})
        for direction in (
            [float("nan")] * 128,
            [10**400] * 128,
            [1e39] * 128,
            [True] * 128,
            [0.0] * 128,
            [[1]],
            "abc",
            5,
            [1.0] * 2_000_000,
        )
    ]
    + ["[" * 100_000, "[]", "{}"],
)
def test_a_concept_that_is_none_is_one_error(folder, content):
    (folder / "concepts").mkdir()
    (folder / "concepts" / "c.json").write_text(content)
    with pytest.raises(RSEmbedError, match=r"c.json is no concept"):
        EmbeddingIndex(folder).search(concept="c")


def test_a_concept_is_no_link_out_of_the_dataset(folder):
    (folder / "concepts").mkdir()
    (folder / "concepts" / "c.json").symlink_to("/etc/passwd")
    with pytest.raises(RSEmbedError, match="leads out of the dataset"):
        EmbeddingIndex(folder).search(concept="c")


@pytest.fixture
def no_network(monkeypatch) -> list[object]:
    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return asked


def test_a_checkpoint_that_a_dataset_names_is_not_fetched_unasked(folder, no_network):
    manifest(lambda m: m["request"].update(checkpoint="evil/repo"))(folder)
    with pytest.raises(CheckpointError, match=r"'evil/repo', which are not on this machine: if you trust it, .*--yes"):
        EmbeddingIndex(folder).search("lake")
    with pytest.raises(CheckpointError, match="not on this machine"):
        EmbeddingIndex(folder).search(image=np.full((3, 64, 64), 900, np.uint16))
    assert EmbeddingIndex(folder).search(id="a", k=2).hits  # needs no weights
    assert no_network == []
    with pytest.raises(CheckpointError, match="cannot be reached"):
        EmbeddingIndex(folder, download=True).search("lake")
    assert no_network


@pytest.mark.parametrize("checkpoint", ["package:../../..", "package:nope", "package:clip_eurosat/../x"])
def test_no_checkpoint_leads_out_of_the_package(folder, no_network, checkpoint):
    manifest(lambda m: m["request"].update(checkpoint=checkpoint))(folder)
    with pytest.raises(CheckpointError):
        EmbeddingIndex(folder, download=True).search("lake")
    assert no_network == []


@pytest.mark.parametrize("named", ["file", "folder"])
def test_weights_are_compared_before_they_are_read(folder, small, named):
    checkpoint = str(small / "model.safetensors" if named == "file" else small)
    manifest(lambda m: m["request"].update(checkpoint=checkpoint))(folder)
    with pytest.raises(CheckpointError, match=r"but the rows were made with 000000000000…"):
        EmbeddingIndex(folder).search("lake")
    manifest(lambda m: m["request"].update(checkpoint="/etc/passwd"))(folder)
    with pytest.raises(CheckpointError, match=r"/etc/passwd has the sha256 .*, but the rows were made with"):
        EmbeddingIndex(folder).search("lake")


def test_the_command_refuses_a_download_unless_a_person_or_yes_allows_it(folder, no_network, capsys):
    """A real terminal is asked; without one, the remedy is told."""
    manifest(lambda m: m["request"].update(checkpoint="evil/repo"))(folder)
    for options, says in ([], "'evil/repo', which are not on this machine: if you trust it"), (["--yes"], "be reached"):
        with pytest.raises(SystemExit) as stopped:
            main(["search", str(folder), "lake", *options])
        assert stopped.value.code == 1
        assert says in capsys.readouterr().err
        assert bool(no_network) == bool(options)
    command = [sys.executable, "-m", "rs_embed", "search", str(folder), "lake"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ours, theirs = os.openpty()
    for answer, says in ((b"n\n", b"if you trust it"), (b"y\n", b"HF_HUB_OFFLINE is set")):
        os.write(ours, answer)
        asked = subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, timeout=100)
        assert asked.returncode == 1
        printed = os.read(ours, 1 << 16)
        assert b"'evil/repo', which are not on this machine" in printed
        assert b"Do you trust the dataset" in printed
        assert says in printed


CLAIMS = """
import json, resource, shutil, sys, zipfile
from pathlib import Path
import numpy as np
from rs_embed import EmbeddingIndex, RSEmbedError, open_dataset
from rs_embed.clip.checkpoint import open_checkpoint

good, small, scratch = map(Path, sys.argv[1:])
EmbeddingIndex(good).search(vector=np.ones(128, np.float32))
open_checkpoint(small / "model.safetensors")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def dataset(name, content, read=EmbeddingIndex):
    folder = Path(shutil.copytree(good, scratch / "ds"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    attempt(lambda: read(folder))

def checkpoint(write):
    folder = Path(shutil.copytree(small, scratch / "ck"))
    write(folder)
    attempt(lambda: open_checkpoint(folder / "model.safetensors"))

def attempt(act):
    try:
        act()
    except RSEmbedError as error:
        print("refused", error)
    for name in ("ds", "ck"):
        shutil.rmtree(scratch / name, ignore_errors=True)

def bomb(folder):
    with zipfile.ZipFile(folder / "model.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(1 << 10):
                entry.write(bytes(1 << 20))

index = ".rs-embed/index/"
header = json.loads((good / index / "index.json").read_text())
dataset(index + "mean.npy", NPY_OF_400_GB)
for facts in ({"count": 10**12}, {"dim": 10**15}, {"count": 2**62, "dim": 2**62}):
    dataset(index + "index.json", json.dumps(header | facts).encode())
dataset(".rs-embed/manifest.json", b"[" + b"[]," * (30 << 20) + b"[]]", open_dataset)
many = b'{"direction": [' + b"1," * (30 << 20) + b"1]}"
dataset("concepts/c.json", many, lambda folder: EmbeddingIndex(folder).search(concept="c"))
checkpoint(lambda folder: (folder / "config.json").write_text("[" + "[]," * (10 << 20) + "[]]"))
checkpoint(lambda folder: (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{"))
checkpoint(bomb)
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_sizes_that_are_only_claimed_take_no_memory(good, small, tmp_path):
    command = [
        sys.executable,
        "-c",
        f"NPY_OF_400_GB = {NPY_OF_400_GB!r}\n{CLAIMS}",
        str(good),
        str(small),
        str(tmp_path),
    ]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.count("refused") == 5
    assert int(child.stdout.split()[-1]) < 300


def test_the_command_waits_for_another_process_that_writes_to_the_index(folder, capsys):
    """A search does not, and says that rows come later; this command says how many can be searched."""
    write_vectors(folder, VECTORS, list("ghijkl"))
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:  # in a thread of its own: one that waits for its own lock is an error
        with DatasetFolder(folder).lock("index"):
            is_held.set()
            is_over.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    assert is_held.wait(60)
    assert len(EmbeddingIndex(folder)) == 6
    threading.Timer(1.0, is_over.set).start()
    with pytest.raises(SystemExit) as stopped:
        main(["index", str(folder), "--json"])
    assert (stopped.value.code, json.loads(capsys.readouterr().out)["rows"]) == (0, 12)
