"""Files are there whole or not at all; what was made of one is made again when it changed."""

from __future__ import annotations

from pathlib import Path

import pytest

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
