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

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("python", "command-line", "map", "province", "own-files", "change")  # `docs/linear-probe.md` has its own test


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the examples of a page that run: their language and their lines."""
    return [(language, code) for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)]


def run(language: str, code: str, scope: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    if language == "python":
        exec(compile(code, "example", "exec"), scope)
    for line in code.splitlines() if language == "sh" else ():
        command = line.partition("   #")[0].strip()
        if command.startswith("rs-embed "):
            with pytest.raises(SystemExit) as stopped:
                main(shlex.split(command)[1:])
            assert not stopped.value.code, command
            assert capsys.readouterr().out, command


@pytest.mark.parametrize("block", blocks(README), ids=lambda block: block[1].split()[0])
def test_each_example_of_the_readme_runs_by_itself(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(*block, {}, capsys)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_the_docs_run_in_their_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, scope = blocks((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")), {}
    assert any(language in ("python", "sh") for language, _ in found)
    for language, code in found:
        run(language, code, scope, capsys)


@pytest.mark.filterwarnings("ignore")  # scikit-learn's own, on folds where a class is rare
def test_the_recipe_of_the_linear_probe_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for language, code in blocks((ROOT / "docs" / "linear-probe.md").read_text(encoding="utf-8")):
        run(language, code, scope, capsys)
    accuracy = scope["accuracy"]
    assert set(accuracy) == {"vectors", "mean colour", "always the most frequent"}
    assert all(0 <= value <= 1 for value in accuracy.values())


def test_the_readme_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 130


def test_the_image_is_built_from_what_is_here():
    """No engine is at hand: the file is compared with what it names."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^FROM python:([\d.]+)-", text, re.MULTILINE)
    assert version is not None
    assert project["requires-python"] == f">={version[1]}"
    assert set(re.findall(r"'\.\[([\w,]+)\]'", text)[0].split(",")) <= set(project["optional-dependencies"])
    assert (ROOT / re.findall(r"--constraint (\S+)", text)[0]).exists()
    assert re.findall(r'ENTRYPOINT \["(\S+)"\]', text)[0] in project["scripts"]
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)


def test_the_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / link).exists(), link


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
