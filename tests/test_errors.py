"""What is printed cannot steer a terminal: control characters of foreign strings are spelled out, in one place."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from rs_embed import RSEmbedError, SpecError
from rs_embed.cli.main import main
from rs_embed.errors import visible
from rs_embed.search.draw import contact_sheet
from rs_embed.search.results import Hit, SearchResults
from vector_dataset import write_vectors

STEERING = "a\x1b[31m\x9b2J\x07\n\u202eb\u2028\ud800"


def test_control_characters_are_spelled_out_and_letters_are_not():
    assert visible(STEERING) == r"a\x1b[31m\x9b2J\x07\n\u202eb\u2028\ud800"
    for text in ("", "plain", "Zürich 日本 أرض 🌍", "a\u00a0b"):
        assert visible(text) == text


def test_an_error_is_one_line_that_cannot_steer():
    error = RSEmbedError(f"no row {STEERING}:\n  take another")
    assert str(error) == r"no row a\x1b[31m\x9b2J\x07 \u202eb\u2028\ud800: take another"
    assert isinstance(SpecError("x"), ValueError)


def run(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(list(arguments))
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert not [c for c in text if not c.isprintable() and c != "\n"], text
    return text


@pytest.mark.parametrize("command", ["embed", "export", "classify"])
def test_the_commands_print_no_id_as_it_is(tmp_path, capsys, command):
    file = tmp_path / "places.csv"
    file.write_text('id,lon,lat\n"good\x1b[31m",13.720948,48.222307\n"away\x1b]0;x\x07",0,0\n')
    more = {"embed": [], "export": ["--out", str(tmp_path / "ds")], "classify": ["--labels", "forest,lake"]}[command]
    common = ["--model", "clip_eurosat_s2rgb", "--backend", "sample", "--start", "2017-06-01", "--end", "2017-07-01"]
    printed = run(capsys, command, str(file), *common, "--chip", "400", *more)
    assert r"good\x1b[31m" in printed
    assert r"\x1b]0;x\x07" in printed


def test_a_search_prints_no_id_as_it_is_nor_does_a_log(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    folder = write_vectors(tmp_path / "ds", vectors, ["a\x1b[31m", "b\nc", "d"])
    printed = run(capsys, "search", str(folder), "--like", "d")
    assert r"a\x1b[31m" in printed
    assert r"b\nc" in printed
    logging.getLogger("rs_embed").warning("an id %s", "\x1b[31m")
    assert run(capsys, "search", str(folder), "--like", "\x1b[31m")


def test_a_contact_sheet_is_drawn_whatever_the_thumbnails_and_words_are():
    facts = {"rank": 1, "score": 1.0, "percentile": 1.0, "probability": None, "id": "a", "lon": 1.0, "lat": 2.0}
    facts |= {"bounds": (0, 0, 1, 1), "footprint": (), "start": "", "end": "", "status": "ok", "scene_ids": ()}
    bad = {
        "text": b"<svg/>",
        "cut": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "huge": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00\x08\x02\x00\x00\x00",
    }
    hits = tuple(Hit(unique_id=name, **facts) for name in bad)
    sheet = contact_sheet(SearchResults(hits=hits), bad, "a\x1b[31m\nb")
    assert sheet.image.width > 500
