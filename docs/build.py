"""Build the documentation site into `site/`: `make docs`. Pages that follow from the code are written first.

Links are checked by `zensical build --strict`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from rs_embed.cli.app import new_app

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "docs"


def main() -> None:
    """Copy the pages, add those of the commands and of the decisions, and build the site."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "notebooks", "__pycache__"))
    (PAGES / "design" / "index.md").write_text(_decisions(), encoding="utf-8")
    (PAGES / "commands.md").write_text(_commands(), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], check=True, cwd=ROOT)


def _commands() -> str:
    """Return a page with every command and its options."""
    command = typer.main.get_command(new_app())
    context = typer.Context(command, info_name="rs-embed")
    page = get_docs_for_click(obj=command, ctx=context, name="rs-embed", title="Commands")
    return page.replace("][", "]\\[")  # of a help text, else taken for a link


def _decisions() -> str:
    """Return a page that lists the decision records, newest first."""
    records = sorted((PAGES / "design").glob("0*.md"), reverse=True)
    titles = [record.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for record in records]
    lines = [f"* [{title}]({record.name})" for title, record in zip(titles, records, strict=True)]
    return "\n".join(["# Decisions", "", "Each page has a context, a decision and its consequences.", "", *lines, ""])


if __name__ == "__main__":
    main()
