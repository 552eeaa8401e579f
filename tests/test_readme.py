"""What the README prints works as printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rs_embed.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
LINES = [line.partition(" #")[0].strip() for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("rs-embed ")]


def test_the_python_examples_run():
    scope: dict[str, object] = {}
    assert PYTHON
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), scope)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(command)[1:])
    assert not stopped.value.code
    assert capsys.readouterr().out


def test_the_make_targets_and_files_exist():
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(LINES), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (root / link).exists(), link
