"""`rs-embed`: one line an error, exit 0 when it worked, 1 when a request failed, 2 for bad usage, 130 on Ctrl-C."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from typing import Annotated

import typer

from rs_embed.errors import RSEmbedError, SpecError, UnknownModelError, missing_core

app = typer.Typer(
    name="rs-embed",
    help="What does this place look like, as a vector: RemoteCLIP embeddings of Sentinel-2 imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from rs_embed import __version__

        typer.echo(f"rs-embed-remoteclip {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)


def _register() -> None:
    """Attach the commands; their modules import what is heavy only when they run."""
    from rs_embed.cli import classify, demo, doctor, embed, export, heatmap, inspect, models, search, serve

    app.command("embed")(embed.embed)
    app.command("inspect")(inspect.inspect)
    app.command("classify")(classify.classify)
    app.command("plan")(export.plan)
    app.command("export")(export.export)
    app.command("index")(search.index)
    app.command("search")(search.search)
    app.command("serve")(serve.serve)
    app.command("heatmap")(heatmap.heatmap)
    app.command("models")(models.models)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if arguments is None:  # the program itself
        arguments = sys.argv[1:]
        atexit.register(gc.freeze)  # a search for garbage at the end takes a quarter of a second once torch is there
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    _register()
    try:
        code = app(args=arguments, standalone_mode=False)
    except RSEmbedError as error:
        if debug:
            raise
        code = _fail(str(error), 2 if isinstance(error, (SpecError, UnknownModelError)) else 1)
    except typer.TyperException as error:  # usage: an unknown option, a missing value
        code = _fail(f"{error.format_message().rstrip('.')}; see rs-embed --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", 130)
    except (OSError, ModuleNotFoundError) as error:
        ours = missing_core(error) if isinstance(error, ModuleNotFoundError) else error
        if debug or ours is None:
            raise
        code = _fail(str(ours), 1)
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
