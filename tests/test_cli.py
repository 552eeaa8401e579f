from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from local_archive import write_archive
from rs_embed import TemporalSpec, list_samples
from rs_embed.cli.demo.town import last_summer
from rs_embed.cli.main import main

MODEL = ["--model", "clip_eurosat_s2rgb", "--backend", "sample"]
SAMPLE = list_samples()[0]
AT = ["--point", str(SAMPLE.lon), str(SAMPLE.lat), "--buffer-m", "600"]
WHEN = ["--start", SAMPLE.start, "--end", SAMPLE.end]
ONE = [*MODEL, *AT, *WHEN]


@pytest.fixture
def run(capsys):
    """The command line in this process: its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """All samples, whose dates lie in one year, and a place that has none."""
    path = tmp_path / "places.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "longitude", "latitude"])
        writer.writerows((s.id, s.lon, s.lat) for s in list_samples())
        writer.writerow(["nowhere", 0, 0])
    return path


YEAR = ["--start", "2017-01-01", "--end", "2019-01-01"]


# --- embed -------------------------------------------------------------------------------------------


def test_one_place_is_printed_for_a_person(run, caplog):
    code, out, _ = run("embed", *ONE)
    assert code == 0
    assert "48.2223°N 13.7209°E" in out
    assert "UTM 33N" in out
    assert "https://www.openstreetmap.org/?mlat=48.22231&mlon=13.72095" in out
    assert "clip_eurosat_s2rgb token_mean: 192 float32 [" in out
    assert "few scenes" in caplog.text  # to stderr, like all logs


def test_json_is_for_programs(run):
    code, out, _ = run("embed", *ONE, "--json", "--pooling", "projected")
    [record] = json.loads(out)
    assert code == 0
    assert record["ok"]
    assert record["shape"] == [128] == [len(record["embedding"])]
    assert record["meta"]["pooling"] == "clip_projection"


def test_every_file_holds_the_same_vectors(run, places, tmp_path):
    import pyarrow.parquet as pq
    import xarray as xr

    found = {}
    for suffix in ("npy", "npz", "json", "nc", "parquet"):
        code, out, err = run(
            "embed", str(places), "--buffer-m", "600", *MODEL, *YEAR, "--out", str(tmp_path / f"v.{suffix}")
        )
        assert code == 1  # one place of seven has no imagery
        assert out == ""
        assert "wrote 6 embedding(s)" in err
        assert re.search(r"error: nowhere: .*nearest scene", err)
    found["npy"] = np.load(tmp_path / "v.npy")
    with np.load(tmp_path / "v.npz", allow_pickle=False) as stored:
        found["npz"] = stored["embeddings"]
        assert stored["id"][0] == SAMPLE.id
        assert json.loads(str(stored["meta"][0]))["model"] == "clip_eurosat_s2rgb"
    with xr.open_dataset(tmp_path / "v.nc", engine="h5netcdf") as data:
        found["nc"] = data["embedding"].values
        assert list(data["id"].values[:2]) == [s.id for s in list_samples()[:2]]
    for name, values in found.items():
        assert values.shape == (7, 192), name
        assert np.isnan(values[6]).all()
        np.testing.assert_array_equal(values[:6], found["npy"][:6])
    records = json.loads((tmp_path / "v.json").read_text())
    np.testing.assert_allclose(np.array(records[0]["embedding"], np.float32), found["npy"][0])
    assert records[6]["error"]["type"] == "NoImageryError"
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.num_rows == 6  # a row without a vector breaks readers
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), found["npy"][:6])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "places.csv",
        *(f"v.{s}" for s in sorted(("json", "nc", "npy", "npz", "parquet"))),
    ]


def test_one_grid_in_netcdf_keeps_its_coordinates(run, tmp_path):
    import xarray as xr

    out = tmp_path / "grid.nc"
    assert run("embed", *ONE, "--output", "grid", "--out", str(out))[0] == 0
    with xr.open_dataset(out, engine="h5netcdf") as data:
        assert data["tokens"].shape == (192, 7, 7)
        assert data["tokens"].attrs["crs"] == "EPSG:32633"
        assert float(data["y"][0] - data["y"][6]) == pytest.approx(1200 * 6 / 7)
        assert json.loads(data.attrs["meta"])[0]["grid_hw"] == [7, 7]


@pytest.mark.parametrize("suffix", ["geojson", "parquet"])
def test_places_come_from_geojson_and_geoparquet(run, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from shapely import Point, box, to_wkb

    path = tmp_path / f"places.{suffix}"
    square = box(SAMPLE.lon - 0.01, SAMPLE.lat - 0.01, SAMPLE.lon + 0.01, SAMPLE.lat + 0.01)
    if suffix == "geojson":
        features = [
            {"type": "Feature", "properties": {"id": "p"}, "geometry": Point(SAMPLE.lon, SAMPLE.lat).__geo_interface__},
            {"type": "Feature", "properties": {}, "geometry": square.__geo_interface__},
        ]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    else:
        table = pa.table({"id": ["p", "1"], "geometry": [to_wkb(Point(SAMPLE.lon, SAMPLE.lat)), to_wkb(square)]})
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB"}}}
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    code, out, _ = run("embed", str(path), "--chip", "1200", *MODEL, *WHEN, "--json")
    assert code == 0
    records = json.loads(out)
    assert [r["id"] for r in records] == ["p", "1"]
    np.testing.assert_allclose(records[0]["embedding"], records[1]["embedding"], atol=1e-5)
    assert records[0]["place"]["buffer_m"] == 600


def test_more_than_200_places_point_at_export(run, tmp_path):
    path = tmp_path / "many.csv"
    path.write_text("lon,lat\n" + "\n".join(f"{SAMPLE.lon},{SAMPLE.lat}" for _ in range(201)))
    code, _, err = run("embed", str(path), "--buffer-m", "600", *MODEL, *WHEN, "--out", str(tmp_path / "v.npy"))
    assert code == 0
    assert "201 places" in err
    assert "export" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*MODEL, *WHEN], "one place or one file is needed"),
        ([*MODEL, *WHEN, "--point", "13.7", "48.2"], "--buffer-m M"),
        ([*MODEL, *WHEN, *AT, "--chip", "5"], "one of the two"),
        ([*MODEL, *WHEN, *AT, "--bbox", "1", "2", "3", "4"], "--point and --bbox"),
        ([*MODEL, *WHEN, "--point", "48.2", "113.7", "--buffer-m", "600"], "swapped"),
        ([*MODEL, *AT, "--start", "2017-07-01", "--end", "2017-06-01"], "reversed"),
        ([*MODEL, *AT, "--start", "June", "--end", "2017-06-01"], "'June'"),
        ([*MODEL, *AT, "--start", "2017-06-01"], "--end"),
        ([*ONE, "--output", "tokens"], "'tokens'"),
        ([*ONE, "--pooling", "max"], "'max'"),
        ([*ONE, "--out", "vectors.txt"], ".npy, .npz, .json, .nc, .parquet"),
        ([*ONE, "--out", "/no/such/folder/v.npy"], "does not exist"),
        ([*ONE, "--output", "grid", "--out", "v.parquet"], "does not fit a table"),
        ([*ONE, "--input-prep", "crop"], "'crop'"),
        ([*ONE, "--model", "resnet"], "unknown model 'resnet'"),
        ([*ONE, "--nonsense"], "--nonsense"),
        (["missing.csv", "--buffer-m", "600", *MODEL, *WHEN], "no such file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(run, arguments, says):
    code, out, err = run("embed", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert says in err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a,b\n1,2\n", "no column lon or longitude; it has a, b"),
        ("lon,lat\n13.7,north\n", "line 2: lon='13.7', lat='north'"),
        ("lon,lat\n13.7,48.2\n13.7,148.2\n", "line 3: latitude 148.2"),
        ("id,lon,lat\nx,13.7,48.2\nx,13.8,48.2\n", "'x' stands there twice"),
    ],
)
def test_a_bad_row_is_named_by_its_line(run, tmp_path, content, says):
    path = tmp_path / "p.csv"
    path.write_text(content)
    code, _, err = run("embed", str(path), "--buffer-m", "600", *MODEL, *WHEN)
    assert code == 2
    assert says in err


def test_a_failed_request_is_exit_1(run):
    code, _, err = run("embed", *MODEL, "--point", "121.5", "31.2", "--buffer-m", "2048", *WHEN)
    assert code == 1
    assert "nearest scene" in err


def test_a_traceback_comes_only_with_debug(run):
    from rs_embed import ProviderError

    arguments = ["embed", "--backend", "nope", "--model", "clip_eurosat_s2rgb", *AT, *WHEN]
    code, _, err = run(*arguments)
    assert code == 1
    assert "Traceback" not in err
    with pytest.raises(ProviderError):
        main([*arguments, "--debug"])


# --- the other commands ------------------------------------------------------------------------------


def test_inspect_reports_and_draws(run, tmp_path):
    code, out, _ = run("inspect", "--backend", "sample", *AT, *WHEN, "--save-dir", str(tmp_path))
    assert code == 0
    assert "good: 3 x 120 x 120" in out
    assert "UTM 33N" in out
    assert list(tmp_path.glob("*.png"))
    result = json.loads(run("inspect", "--backend", "sample", *AT, *WHEN, "--json")[1])
    assert result["ok"]
    assert result["report"]["shape"] == [3, 120, 120]


def test_models_are_listed_and_described(run):
    code, out, _ = run("models")
    assert code == 0
    assert {"remoteclip_s2rgb", "remoteclip_s2rgb_bright", "clip_eurosat_s2rgb"} <= set(out.split())
    described = run("models", "remoteclip_s2rgb")[1]
    assert "18.3 m a pixel, 585 m a token" in described
    assert json.loads(run("models", "remoteclip_s2rgb", "--json")[1])["token_dim"] == 768
    assert len(json.loads(run("models", "--json")[1])) >= 3
    shipped = run("models", "clip_eurosat_s2rgb")[1]
    for text in ("DN 0…2750", "Apache-2.0", "EuroSAT", "zero-shot accuracy", "wrong", "limits"):
        assert text in shipped


def test_doctor_says_what_works_and_the_remedy_for_the_rest(run, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, _ = run("doctor")
    assert code == 0
    for text in ("packages", "device", "sample imagery", "RemoteCLIP", "hub", "Earth Engine", "-> "):
        assert text in out
    findings = json.loads(run("doctor", "--json")[1])
    assert {"name", "ok", "found", "remedy", "needed"} == set(findings[0])
    assert {"extra gee", "extra ray", "extra search", "extra web", "extra zarr"} <= {f["name"] for f in findings}
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_BATCH_SIZE", "many")
    code, out, _ = run("doctor")
    assert code == 1
    assert "RS_EMBED_REMOTECLIP_BATCH_SIZE='many'" in out


def test_the_demo_draws_its_picture_and_its_next_steps_work(run, tmp_path):
    from PIL import Image

    code, out, _ = run("demo", "--out", str(tmp_path))
    assert code == 0
    with Image.open(tmp_path / "demo.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 1000
    assert len(list(tmp_path.glob("S2*.png"))) == 6
    with Image.open(tmp_path / "demo-search.png") as image:
        assert image.width > 1000
    steps = [line.strip() for line in out.splitlines() if "--backend sample" in line]
    assert len(steps) == 2
    for command in steps:
        assert run(*shlex.split(command)[1:])[0] == 0
    serve, folder = shlex.split(out.splitlines()[-1])[1:]  # the last line opens the page on the sample
    assert serve == "serve"
    assert run("search", folder, "forest", "--k", "3")[0] == 0
    assert run("demo", "--out", str(tmp_path))[0] == 0  # again


def test_the_demo_on_a_town_plans_exports_and_says_how_to_serve(run, tmp_path, monkeypatch):
    from rs_embed.cli.demo import town

    monkeypatch.setattr(town, "HALF_SIDE_M", 1000)
    monkeypatch.setattr(town, "last_summer", lambda lat, today: TemporalSpec.range("2022-06-01", "2022-09-01"))
    write_archive(tmp_path / "archive")
    options = ("--backend", f"local:{tmp_path / 'archive'}", "--out", str(tmp_path / "out"), "--no-page")
    code, out, err = run("demo", "--at", "15.04", "48.008", *options)
    assert code == 0
    assert "--model remoteclip_s2rgb (605 MB)" in err
    assert "9 place(s), 27 scene(s)" in out
    folder = shlex.split(out.splitlines()[-1])[-1]
    assert run("search", folder, "forest")[0] == 0
    code, _, err = run("demo", "--at", "48.008", "15.04", *options)
    assert code == 1
    assert "take another --at" in err
    assert run("demo", "--at", "15", "95", *options)[0] == 2
    assert run("demo", "--at", "180", "0", *options)[0] == 2


@pytest.mark.parametrize(
    ("lat", "today", "expected"),
    [
        (48, date(2026, 11, 24), ("2026-06-01", "2026-09-01")),
        (48, date(2026, 7, 1), ("2025-06-01", "2025-09-01")),
        (-33, date(2026, 11, 24), ("2025-12-01", "2026-03-01")),
        (-33, date(2026, 1, 5), ("2024-12-01", "2025-03-01")),
    ],
)
def test_the_last_summer_is_over_on_both_hemispheres(lat, today, expected):
    found = last_summer(lat, today)
    assert (found.start, found.end) == expected


@pytest.mark.parametrize("command", ["", "embed", "inspect", "models", "doctor", "demo"])
def test_every_command_has_help(run, command):
    code, out, _ = run(*([command] if command else []), "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_bare_command_shows_its_help(run, words):
    code, out, err = run(*words)
    assert code == 0
    assert err == ""
    assert "Usage: rs-embed [OPTIONS] COMMAND" in out
    assert "Commands:" in out


def test_the_module_is_the_command():
    line = [sys.executable, "-m", "rs_embed", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"rs-embed-remoteclip \d+\.\d+\.\d+\n", done.stdout)


def test_a_negative_coordinate_is_a_value_not_an_option(run):
    code, _, err = run("embed", *MODEL, "--point", "-8.2132", "-39.3638", "--buffer-m", "600", *WHEN)
    assert code == 1
    assert "39.3638°S 8.2132°W" in err
    assert (
        run("plan", "--bbox", "-8.22", "39.36", "-8.21", "39.37", "--chip", "320", "--backend", "sample", *YEAR)[0] == 0
    )


def test_the_shell_completes_commands_and_choices():
    def completed(words: str, position: int) -> list[str]:
        script = {"_RS_EMBED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
        line = [sys.executable, "-m", "rs_embed"]
        done = subprocess.run(line, capture_output=True, text=True, env=os.environ | script, check=False)
        return done.stdout.split()

    assert completed("rs-embed e", 1) == ["embed", "export"]
    assert completed("rs-embed embed --composite ", 3) == ["median", "mosaic"]
    assert "--cloud-mask" in completed("rs-embed inspect --cl", 2)


def test_the_installed_command_runs_and_tells_its_version():
    command = Path(sys.executable).parent / "rs-embed"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"rs-embed-remoteclip \d+\.\d+\.\d+\n", done.stdout)


def test_a_closed_pipe_is_no_traceback():
    command = Path(sys.executable).parent / "rs-embed"
    line = f"'{command}' models --json | head -c 10"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": ""})
    assert "Traceback" not in done.stderr
