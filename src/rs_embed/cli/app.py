"""The commands of the program `rs-embed`, and its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated

import typer
from typer import Option

from rs_embed.cli.demo.command import demo
from rs_embed.cli.doctor import doctor
from rs_embed.cli.embed import classify, embed, inspect
from rs_embed.cli.export import export, plan
from rs_embed.cli.heatmap import heatmap
from rs_embed.cli.models import models
from rs_embed.cli.options import Interrupted, expand_groups
from rs_embed.cli.search import index, search, serve
from rs_embed.cli.usage import explain, split_coordinates
from rs_embed.errors import SpecError, visible

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


@cache
def new_app() -> typer.Typer:
    """Return the command line as a typer application."""
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


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; bad usage is a SpecError."""
    try:
        return new_app()(args=split_coordinates(arguments), prog_name="rs-embed", standalone_mode=False) or 0
    except typer.TyperException as error:  # an unknown option, a missing value
        raise SpecError(explain(error, arguments)) from error
    except (Interrupted, typer.Abort) as error:
        raise KeyboardInterrupt(str(error)) from None


class _VisibleFormatter(logging.Formatter):
    """Formatter of log messages that spells out control characters: messages quote ids and names from anywhere."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return visible(super().formatMessage(record))
