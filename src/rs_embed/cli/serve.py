"""`rs-embed serve`: a dataset over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rs_embed.errors import RSEmbedError, missing_package


def serve(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `rs-embed export` wrote.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on; loopback unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Answer searches of a dataset over HTTP (the routes are at /docs)."""
    try:
        from rs_embed.web.server import serve as run
    except ModuleNotFoundError as error:
        raise RSEmbedError(missing_package(error.name or "fastapi", extra="web")) from None
    typer.echo(f"http://{host}:{port}/api/search?text=forest   routes: http://{host}:{port}/docs   Ctrl-C ends it")
    run(dataset, host, port)
