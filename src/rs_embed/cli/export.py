"""`rs-embed export`: a dataset of many places."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.progress import export_progress
from rs_embed.cli.rows import Grid, RowOptions
from rs_embed.errors import SpecError
from rs_embed.specs import OutputSpec

if TYPE_CHECKING:
    from rs_embed.export.run import ExportSummary


def export(
    out: Annotated[Path, Option(help="Folder of the dataset.")],
    rows: RowOptions,
    time: options.OptionalTimeOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    pooling: options.Vector = None,
    input_prep: options.Prep = "resize",
    dtype: Annotated[options.VectorType, options.choice(options.VectorType, "Number type of the vectors.")] = "float32",
    normalise: Annotated[bool, Option("--normalise", help="Scale the vectors to length 1.")] = False,
    thumbnails: Annotated[bool, Option(help="Write quicklooks of 96 px.")] = True,
    grid: Grid = False,
    allow_small: Annotated[bool, Option("--allow-small", help="Accept places under 32 px a side.")] = False,
    shard: Annotated[str | None, Option(metavar="I/N", help="Do only each N-th partition.")] = None,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try failed places again.")] = False,
    engine: Annotated[options.Engine, options.choice(options.Engine, "Run here, or on a Ray cluster.")] = "local",
    address: Annotated[str | None, Option(help="Address of the Ray cluster.")] = None,
    partition_size: Annotated[int, Option(help="Number of places in a partition, the unit of work.")] = 256,
    as_json: options.Json = False,
) -> None:
    """Embed many places into a folder of files.

    The same command again goes on where it stopped.
    """
    # Fetching and embedding share the cores: a model's threads that spin while they wait slow the fetching down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rs_embed.export.run import export_embeddings

    with export_progress(as_json) as report:
        summary = export_embeddings(
            model.name,
            rows.places(),
            out,
            temporal=time.time_range(),
            sensor=imagery.sensor(),
            output=OutputSpec("pooled", pooling),
            backend=imagery.provider(),
            device=model.device,
            precision=model.precision,
            input_prep=input_prep,
            checkpoint=model.checkpoint,
            chip_m=rows.chip_m,
            every=rows.every,
            read=rows.reading(),
            dtype=dtype,
            normalise=normalise,
            thumbnails=thumbnails,
            grid=grid,
            allow_small=allow_small,
            shard=_shard(shard),
            retry_failed=retry_failed,
            engine=engine,
            address=address,
            partition_size=partition_size,
            report=report,
        )
    typer.echo(json.dumps(_summary_facts(summary)) if as_json else "\n".join(summary_lines(summary)))
    if summary.failed or not summary.done:
        raise typer.Exit(1)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise SpecError(f"--shard {text!r} must be I/N, such as 0/4")
    return int(index), int(count)


def _summary_facts(summary: ExportSummary) -> dict[str, Any]:
    return {
        "event": "summary",
        **asdict(summary),
        "folder": str(summary.folder),
        "slowest": [{"id": name, "seconds": round(seconds, 2)} for seconds, name in summary.slowest],
        "failures": [{"id": name, "error": error} for name, error in summary.failures],
    }


def summary_lines(summary: ExportSummary) -> Iterator[str]:
    """Yield the result of an export, for a person."""
    yield (
        f"{summary.done:,} of {summary.places:,} place(s) embedded in {summary.seconds:,.0f} s; {summary.no_imagery:,} "
        f"without imagery, {summary.failed:,} failed"
    )
    for name, error in summary.failures[:5]:
        yield f"   {name}: {' '.join(error.split())}"
    if len(summary.failures) > 5 or summary.failed + summary.no_imagery > len(summary.failures):
        yield f"   all of them: {summary.folder / 'failures'}"
    if summary.slowest:
        yield "slowest: " + ", ".join(f"{name} ({seconds:.1f} s)" for seconds, name in summary.slowest)
    yield f"dataset: {summary.folder} (geopandas.read_parquet('{summary.folder / 'embeddings'}'))"
