"""Files are there whole or not at all; what was made of one is made again when it changed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rs_embed.errors import RSEmbedError
from rs_embed.files import FileMemo, atomic_write


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.png"
    with atomic_write(path) as part:
        assert part.suffix == ".png"  # writers choose the format by it
        part.write_text("old")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="in the middle"):
        _break_off(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _break_off(path: Path) -> None:
    with atomic_write(path) as part:
        part.write_text("new, ha")
        raise RuntimeError("in the middle")


def test_a_write_that_the_system_refuses_is_one_error_with_its_remedy(tmp_path):
    with pytest.raises(RSEmbedError, match=r"none/a.json cannot be written \(No such file.*check the folder"):
        _write(tmp_path / "none" / "a.json")
    with pytest.raises(RSEmbedError, match=r"No space left on device.*make room, then run the same again"):
        _write(tmp_path / "b.json", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert not list(tmp_path.iterdir())


def test_a_temporary_file_may_lie_in_another_folder(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with atomic_write(tmp_path / "a.json", scratch=scratch, durable=True) as part:
        assert part.parent == scratch
        part.write_text("{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    assert not list(scratch.iterdir())


def _write(path: Path, error: OSError | None = None) -> None:
    with atomic_write(path) as part:
        part.write_text("{}")
        if error is not None:
            raise error


def test_what_was_made_is_kept_by_file_and_kind_and_the_oldest_goes(tmp_path):
    made: list[str] = []
    kept: FileMemo[str] = FileMemo(keep=2)

    def get(name: str, kind: str = "") -> str:
        return kept.get(tmp_path / name, lambda: made.append(name + kind) or name, kind)

    for name in "abc":
        (tmp_path / name).write_text(name)
    for asked in ("a", "a", "b", "a", "c", "a", "b"):
        get(asked)
    assert made == ["a", "b", "c", "b"]  # b was the oldest when c came
    get("b", "float16")
    (tmp_path / "b").write_text("longer")
    get("b", "float16")
    assert made[4:] == ["bfloat16", "bfloat16"]
