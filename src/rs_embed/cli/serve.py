"""`rs-embed serve`: a dataset over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.progress import index_progress
from rs_embed.errors import RSEmbedError, missing_package

MAP_REMEDY = "the build downloads it from npm; install a wheel, or install the clone again with a network"


def serve(
    dataset: options.Dataset,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: options.Port = 8000,
) -> None:
    """Search a dataset by words on a map in a browser.

    /openapi.json describes the HTTP API.
    """
    try:
        from rs_embed.web.server import has_map_library, listen
        from rs_embed.web.server import serve as run
    except ModuleNotFoundError as error:
        raise RSEmbedError(missing_package(error.name or "fastapi", extra="web")) from None
    if not has_map_library():
        print(f"warning: the map's JavaScript is missing, only the HTTP API works: {MAP_REMEDY}", file=sys.stderr)
    from rs_embed.search.index import EmbeddingIndex

    with index_progress() as report:
        index = EmbeddingIndex(dataset, report)
    listener = listen(host, port)
    typer.echo(f"http://{host}:{port}/   (Ctrl-C ends it)")
    run(index, listener)
