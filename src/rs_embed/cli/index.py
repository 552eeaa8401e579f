"""`rs-embed index`: the search index of a dataset."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.progress import index_progress


def index(
    dataset: options.Dataset,
    rebuild: Annotated[bool, Option("--rebuild", help="Start anew, as after rows were edited by hand.")] = False,
    as_json: options.Json = False,
) -> None:
    """Build the search index of a dataset, or add new rows to it.

    `rs-embed search` and `rs-embed serve` do it by themselves.
    """
    from rs_embed.search.index import EmbeddingIndex

    with index_progress() as report:
        found = EmbeddingIndex(dataset, report, rebuild=rebuild)
    facts = {"rows": len(found), "model": found.request.model, "folder": str(dataset)}
    typer.echo(json.dumps(facts) if as_json else f"{len(found):,} row(s) of {found.request.model} can be searched")
