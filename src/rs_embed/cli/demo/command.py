"""`rs-embed demo`: the main steps on imagery that installs with the package, or on a town of the user's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from rs_embed.cli import options
from rs_embed.cli.demo import DEMO_MODEL


def demo(
    out: Annotated[Path, Option(help="Folder for the pictures and datasets.")] = Path("demo-output"),
    model: Annotated[str | None, Option("--model", help="A name that `rs-embed models` lists.")] = None,
    at: Annotated[
        tuple[float, float] | None,
        Option(metavar="LON LAT", help="Search the 20 km around this point, last summer, on a map."),
    ] = None,
    backend: Annotated[str, Option(help="With --at: a backend as `rs-embed embed --help` lists them.")] = "auto",
    port: options.Port = 8000,
    page: Annotated[bool, Option(help="With --at: serve the web page at the end.")] = True,
) -> None:
    """Embed and compare six sample places, or search your own town.

    The sample places need no account and no download. --backend, --port and --page apply to --at only.
    """
    from rs_embed.embedders.cards import find_card
    from rs_embed.files import make_folder

    if model is not None:
        find_card(model)
    if at is not None:
        from rs_embed.cli.demo.town import search_around

        search_around(at, out, model, backend, port if page else None)
    else:
        from rs_embed.cli.demo.samples import run

        run(make_folder(out), model or DEMO_MODEL)
