"""Progress of long commands: bars on stderr for people, JSON lines on stdout for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from rs_embed.export.progress import ProgressListener


def progress_bar(*more: ProgressColumn, transient: bool = False) -> Progress:
    """Return a progress bar on stderr, hidden where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=transient)


@contextmanager
def export_progress(as_json: bool) -> Iterator[ProgressListener]:
    """Show the events of an export."""
    if as_json:
        yield lambda event: typer.echo(json.dumps(event))
        return
    from rich.progress import TextColumn, TimeRemainingColumn

    with progress_bar(TimeRemainingColumn(), TextColumn("{task.fields[facts]}")) as bar:
        task = bar.add_task("embedding", total=None, facts="")

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "waiting":
                bar.update(task, facts=f"waiting for {len(event['partitions'])} partition(s): {event['why']}")
                return
            finished = event["done"] + event["failed"] + event["no_imagery"]
            slowest = f", most time in {event['bottleneck']}" if "bottleneck" in event else ""
            facts = f"{event['per_s']:.1f}/s, {event['failed']} failed{slowest}"
            bar.update(task, total=event["total"], completed=finished, facts=facts)

        yield show
