"""`rs-embed serve`: a dataset over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rs_embed.cli.search import building
from rs_embed.errors import RSEmbedError, missing_package

MAP_REMEDY = "it comes from npm when the package is built; install a wheel, or again from the clone with a network"


def serve(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `rs-embed export` wrote.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; loopback unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Search a dataset by words on a map in a browser; the HTTP API is described at /openapi.json."""
    try:
        from rs_embed.web.server import listen, map_is_there
        from rs_embed.web.server import serve as run
    except ModuleNotFoundError as error:
        raise RSEmbedError(missing_package(error.name or "fastapi", extra="web")) from None
    if not map_is_there():
        print(f"warning: the map's JavaScript is missing, only the HTTP API works: {MAP_REMEDY}", file=sys.stderr)
    from rs_embed.search.index import EmbeddingIndex

    with building() as report:
        index = EmbeddingIndex(dataset, report)
    listener = listen(host, port)
    typer.echo(f"http://{host}:{port}/   (Ctrl-C ends it)")
    run(index, listener)
