"""The program `rs-embed`: its commands, and the text and exit code of each error."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from typing import Annotated

import typer
from typer import Option

from rs_embed.cli.demo.command import demo
from rs_embed.cli.doctor import doctor
from rs_embed.cli.embed import classify, embed, inspect
from rs_embed.cli.export import export, plan
from rs_embed.cli.heatmap import heatmap
from rs_embed.cli.models import models
from rs_embed.cli.options import expand_groups
from rs_embed.cli.search import index, search, serve
from rs_embed.errors import RSEmbedError, SpecError, UnknownModelError, missing_core, visible

_COMMANDS = (embed, inspect, classify, plan, export, index, search, serve, heatmap, models, doctor, demo)
"""Commands in the order of the help; their modules import heavy packages only when they run."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from rs_embed import __version__

        typer.echo(f"rs-embed-remoteclip {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


def _app() -> typer.Typer:
    app = typer.Typer(
        help="Embed any place on Earth as a vector: Sentinel-2 imagery through RemoteCLIP.\n\n"
        "Exit codes: 0 success, 1 a request failed, 2 bad usage, 130 interrupted. With --debug, any command shows the "
        "traceback of an error.",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for command in _COMMANDS:
        app.command(command.__name__)(expand_groups(command))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 for success, 1 for a failed request, 2 for bad usage, 130 on Ctrl-C."""
    if arguments is None:
        arguments = sys.argv[1:]
        atexit.register(gc.freeze)  # a last garbage collection takes a quarter of a second once torch is loaded
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        code = _app()(args=arguments, prog_name="rs-embed", standalone_mode=False)
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
    print(f"error: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


class _VisibleFormatter(logging.Formatter):
    """Formatter of log messages that spells out control characters: messages quote ids and names from anywhere."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return visible(super().formatMessage(record))
