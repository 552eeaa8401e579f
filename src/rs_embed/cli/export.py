"""`rs-embed export` and `rs-embed plan`: a file of places to a dataset, and what it would cost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rs_embed.cli import options
from rs_embed.errors import SpecError
from rs_embed.specs import BBox, OutputSpec

if TYPE_CHECKING:
    from rs_embed.export.cost import ExportPlan
    from rs_embed.export.inputs import ReadOptions
    from rs_embed.export.run import ExportSummary
    from rs_embed.export.workers import Report

OptionalStart = Annotated[
    str | None, typer.Option("--start", metavar="YYYY-MM-DD", help="First day, for rows that have none of their own.")
]
OptionalEnd = Annotated[str | None, typer.Option("--end", metavar="YYYY-MM-DD", help="Day after the last.")]
Every = Annotated[str | None, typer.Option("--every", help="Cut time ranges at each month, quarter or year.")]
Region = Annotated[Path | None, typer.Option("--region", help="A GeoJSON file of polygons to cut into chips.")]
Crs = Annotated[str, typer.Option("--crs", help="Of a CSV's two columns, when they are no longitude and latitude.")]
IdColumn = Annotated[str, typer.Option("--id", help="Column of the rows' ids.")]
LonColumn = Annotated[str | None, typer.Option("--lon", help="Column of longitude or x.")]
LatColumn = Annotated[str | None, typer.Option("--lat", help="Column of latitude or y.")]
Pooling = Annotated[str | None, typer.Option("--pooling", help="mean (768) or projected (512).")]
Grid = Annotated[bool, typer.Option("--grid", help="Write token grids too (7 x 7 x 768 numbers a place).")]


def export(
    out: Annotated[Path, typer.Option("--out", help="The dataset's folder.")],
    file: options.PlacesFile = None,
    bbox: options.Box = None,
    region: Region = None,
    start: OptionalStart = None,
    end: OptionalEnd = None,
    every: Every = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    crs: Crs = "EPSG:4326",
    id_column: IdColumn = "id",
    lon: LonColumn = None,
    lat: LatColumn = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = "auto",
    cache: options.Cache = None,
    checkpoint: options.Checkpoint = None,
    pooling: Pooling = None,
    input_prep: Annotated[str, typer.Option("--input-prep", help="resize or tile.")] = "resize",
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float16.")] = "float32",
    normalise: Annotated[bool, typer.Option("--normalise", help="Vectors of length 1.")] = False,
    thumbnails: Annotated[bool, typer.Option("--thumbnails/--no-thumbnails", help="Quicklooks of 96 px.")] = True,
    grid: Grid = False,
    allow_small: Annotated[bool, typer.Option("--allow-small", help="Take places under 32 px a side.")] = False,
    shard: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only every N-th partition.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try places again that failed.")] = False,
    engine: Annotated[str, typer.Option("--engine", help="local or ray.")] = "local",
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster.")] = None,
    partition_size: Annotated[int, typer.Option("--partition-size", help="Places of one unit of work.")] = 256,
    as_json: options.Json = False,
) -> None:
    """Embed many places into a folder of files; the same command again goes on where it stopped."""
    # Fetching and embedding share the processor: a model's threads that spin while they wait take it from the others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rs_embed.export.run import export_embeddings

    with reporting(as_json) as report:
        summary = export_embeddings(
            model,
            _source(file, bbox, region),
            out,
            temporal=options.time_range(start, end),
            sensor=options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes),
            output=OutputSpec("pooled", pooling),  # type: ignore[arg-type]  # checked by OutputSpec itself
            backend=options.source(backend, cache),
            device=device,
            precision=precision,
            input_prep=input_prep,  # type: ignore[arg-type]
            checkpoint=checkpoint,
            chip_m=_chip(buffer_m, chip),
            every=every,  # type: ignore[arg-type]
            read=_read_options(crs, id_column, lon, lat),
            dtype=dtype,  # type: ignore[arg-type]
            normalise=normalise,
            thumbnails=thumbnails,
            grid=grid,
            allow_small=allow_small,
            shard=_shard(shard),
            retry_failed=retry_failed,
            engine=engine,  # type: ignore[arg-type]
            address=address,
            partition_size=partition_size,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps(_summary_facts(summary)))
    else:
        typer.echo("\n".join(summary_lines(summary)))
    if summary.failed or not summary.done:
        raise typer.Exit(1)


def plan(
    file: options.PlacesFile = None,
    bbox: options.Box = None,
    region: Region = None,
    start: OptionalStart = None,
    end: OptionalEnd = None,
    every: Every = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    crs: Crs = "EPSG:4326",
    id_column: IdColumn = "id",
    lon: LonColumn = None,
    lat: LatColumn = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = "auto",
    pooling: Pooling = None,
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    grid: Grid = False,
    mbit_s: Annotated[float, typer.Option("--mbit-s", help="The network's rate, megabits a second.")] = 200,
    as_json: options.Json = False,
) -> None:
    """What an export would read and write, from the catalog alone: no pixel is read."""
    from rs_embed.export.cost import plan_export

    found = plan_export(
        _source(file, bbox, region),
        temporal=options.time_range(start, end),
        sensor=options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes),
        model=model,
        output=OutputSpec("pooled", pooling),  # type: ignore[arg-type]  # checked by OutputSpec itself
        backend=backend,
        chip_m=_chip(buffer_m, chip),
        every=every,  # type: ignore[arg-type]
        read=_read_options(crs, id_column, lon, lat),
        grid=grid,
        mbit_s=mbit_s,
    )
    typer.echo(json.dumps(found.facts()) if as_json else "\n".join(plan_lines(found)))


def _source(file: Path | None, bbox: tuple[float, float, float, float] | None, region: Path | None) -> object:
    from rs_embed.export.inputs import read_region

    given = [name for name, value in (("FILE", file), ("--bbox", bbox), ("--region", region)) if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise SpecError(f"one source of places is needed: a file, --bbox W S E N or --region FILE; got {got}")
    if bbox is not None:
        return BBox(*bbox)
    return file if region is None else read_region(region)


def _chip(buffer_m: float | None, chip: float | None) -> float | None:
    if buffer_m is not None and chip is not None:
        raise SpecError("--chip M is --buffer-m M/2: give one of the two")
    return chip if buffer_m is None else 2 * buffer_m


def _read_options(crs: str, id_column: str, lon: str | None, lat: str | None) -> ReadOptions:
    from rs_embed.export.inputs import ReadOptions

    return ReadOptions(crs=crs, id_column=id_column, lon_column=lon, lat_column=lat)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise SpecError(f"--shard {text!r} must be I/N, such as 0/4")
    return int(index), int(count)


@contextmanager
def reporting(as_json: bool) -> Iterator[Report]:
    """Events as JSON lines on stdout for programs, as a bar on stderr for people."""
    if as_json:
        yield lambda event: typer.echo(json.dumps(event))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("embedding", total=None, facts="")

        def show(event: Mapping[str, Any]) -> None:
            if event["event"] == "waiting":
                bar.update(task, facts=f"waiting for {len(event['partitions'])} partition(s): {event['why']}")
                return
            finished = event["done"] + event["failed"] + event["no_imagery"]
            most = f", most time in {event['bottleneck']}" if "bottleneck" in event else ""
            facts = f"{event['per_s']:.1f}/s, {event['failed']} failed{most}"
            bar.update(task, total=event["total"], completed=finished, facts=facts)

        yield show


def _summary_facts(summary: ExportSummary) -> dict[str, Any]:
    return {
        "event": "summary",
        "folder": str(summary.folder),
        "places": summary.places,
        "done": summary.done,
        "failed": summary.failed,
        "no_imagery": summary.no_imagery,
        "seconds": summary.seconds,
        "slowest": [{"id": name, "seconds": round(seconds, 2)} for seconds, name in summary.slowest],
        "failures": [{"id": name, "error": error} for name, error in summary.failures],
        "bad_rows": list(summary.bad_rows),
    }


def summary_lines(summary: ExportSummary) -> Iterator[str]:
    """What became of an export, for a person."""
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


def plan_lines(plan: ExportPlan) -> Iterator[str]:
    """What an export would cost, for a person."""
    from rs_embed.export.cost import minutes_of

    fetch = plan.fetch
    yield f"{fetch.places:,} place(s), {fetch.scenes:,} scene(s) of them to read"
    yield f"{'':<46}{'blocks':>10}{'requests':>10}{'GB in':>9}{'minutes':>9}"
    for name, found in (("as asked", fetch), *plan.alternatives):
        minutes = minutes_of(found, plan.mbit_s)
        yield f"{name:<46}{found.blocks:>10,}{found.requests:>10,}{found.read_bytes / 1e9:>9.2f}{minutes:>9.1f}"
    yield f"minutes are those of the network at {plan.mbit_s:g} Mbit/s; with the model on two cores {plan.minutes:,.1f}"
    grids = f", token grids {plan.grid_bytes / 1e9:.2f} GB" if plan.grid_bytes else ""
    yield f"written: {plan.write_bytes / 1e9:.2f} GB{grids}"
    missing, partly = len(fetch.places_without_scene), plan.partly_covered
    if missing or partly:
        yield f"gaps: {missing:,} place(s) without any scene, {partly:,} only partly covered"
    if plan.bad_rows:
        yield f"{len(plan.bad_rows):,} row(s) are no places: {plan.bad_rows[0]}"
