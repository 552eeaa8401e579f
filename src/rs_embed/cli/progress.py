"""Progress of long commands: bars on stderr for people, JSON lines on stdout for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from rs_embed.progress import progress_bar

if TYPE_CHECKING:
    from rs_embed.export.progress import ProgressListener


@contextmanager
def export_progress(as_json: bool) -> Iterator[ProgressListener]:
    """Show the events of an export."""
    if as_json:
        yield lambda event: typer.echo(json.dumps(event))
        return
    from rich.progress import TextColumn, TimeRemainingColumn

    columns = TimeRemainingColumn(), TextColumn("{task.fields[facts]}")
    with progress_bar(*columns, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("embedding", total=None, facts="")

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "waiting":
                bar.update(task, facts=f"waiting for {len(event['partitions'])} partition(s): {event['why']}")
                return
            if event["event"] in ("cutting", "planning"):
                bar.update(task, description=event["event"], total=event["total"], completed=event["done"])
                return
            finished = event["done"] + event["failed"] + event["no_imagery"]
            slowest = f", most time in {event['bottleneck']}" if "bottleneck" in event else ""
            facts = f"{event['per_s']:.1f}/s, {event['failed']} failed{slowest}"
            bar.update(task, description="embedding", total=event["total"], completed=finished, facts=facts)

        yield show
