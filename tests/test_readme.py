"""What the README prints works as printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rs_embed.cli.main import main

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
LINES = [line.partition(" #")[0].strip() for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("rs-embed ")]


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    assert PYTHON
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), scope)


def test_the_commands_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(command)[1:])
        assert not stopped.value.code, command
        assert capsys.readouterr().out, command


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, on folds where a class is rare
def test_the_recipe_of_the_linear_probe_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "linear-probe.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(compile(code, "linear-probe.md", "exec"), scope)
        else:
            with pytest.raises(SystemExit) as stopped:
                main(shlex.split(code)[1:])
            assert not stopped.value.code
    accuracy = scope["accuracy"]
    assert set(accuracy) == {"vectors", "mean colour", "always the most frequent"}
    assert all(0 <= value <= 1 for value in accuracy.values())


def test_the_make_targets_and_files_exist():
    root = Path(__file__).parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(LINES), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (root / link).exists(), link


def test_the_notebook_runs(tmp_path):
    """In a process of its own: Jupyter's warnings are not ours."""
    notebook = Path(__file__).parents[1] / "docs" / "notebooks" / "search.ipynb"
    script = (
        "import json, nbclient, nbformat, sys; "
        "nb = nbformat.read(sys.argv[1], 4); nbclient.NotebookClient(nb, timeout=120).execute(); "
        "print(json.dumps([o for c in nb.cells for o in c.get('outputs', [])]))"
    )
    line = [sys.executable, "-c", script, str(notebook)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = json.loads(done.stdout)
    shown = ["".join(output["data"].get("text/html", "")) for output in outputs if "data" in output]
    for kind in ("Imagery", "Token grid", "Where is", "Plan", "Dataset", "Search results", '<progress value="1"'):
        assert any(kind in html for html in shown), kind
    assert "\\u001b" not in done.stdout  # no code of a terminal


def test_readme_and_changelog_quote_the_results_of_the_benchmarks():
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import quote

    for path, text in quote.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m benchmarks.quote"
