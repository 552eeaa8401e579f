"""`rs-embed plan` and `export`: the cost of a dataset of many places, and the dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.places import check_one_source, side_m
from rs_embed.cli.progress import export_progress
from rs_embed.errors import SpecError, visible
from rs_embed.specs import BBox, Engine, Every, OutputSpec, VectorType

if TYPE_CHECKING:
    from rs_embed.export.cost import ExportPlan
    from rs_embed.export.formats import ReadOptions
    from rs_embed.export.run import ExportSummary

Grid = Annotated[bool, Option("--grid", help="Add the token grids (7 x 7 x 768 numbers per place).")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """The rows of a dataset: a file, or an area that is cut into chips."""

    file: options.PlacesFile = None
    bbox: options.Box = None
    region: Annotated[Path | None, Option(help="GeoJSON file of polygons to cut into chips.")] = None
    every: Annotated[Every | None, options.choice(Every, "Cut time ranges into these periods.")] = None
    buffer_m: options.BufferM = None
    chip: options.Chip = None
    crs: Annotated[str, Option(help="CRS of the two columns of a CSV file.")] = "EPSG:4326"
    id: Annotated[str, Option(help="Column with the ids of the rows.")] = "id"
    lon: Annotated[str | None, Option(help="Column with longitude or x.")] = None
    lat: Annotated[str | None, Option(help="Column with latitude or y.")] = None

    def places(self) -> object:
        """Return the file, the box or the polygons to embed; refuse several of them, and none."""
        from rs_embed.export.regions import read_region

        check_one_source(
            {"FILE": self.file, "--bbox": self.bbox, "--region": self.region},
            "one source of places is needed: a file, --bbox W S E N or --region FILE",
        )
        if self.bbox is not None:
            return BBox(*self.bbox)
        return self.file if self.region is None else read_region(self.region)

    @property
    def chip_m(self) -> float | None:
        """Side of each place in metres, or None where the rows have boxes."""
        return side_m(self.buffer_m, self.chip)

    def reading(self, *, unlimited: bool = False) -> ReadOptions:
        """Return the names of the columns, and the limit on the number of rows."""
        from rs_embed.export.formats import MAX_PLACES, ReadOptions

        most = None if unlimited else MAX_PLACES
        return ReadOptions(crs=self.crs, id_column=self.id, lon_column=self.lon, lat_column=self.lat, max_places=most)


def plan(
    rows: RowOptions,
    time: options.OptionalTimeOptions,
    source: options.SourceOptions,
    model: options.Model = "remoteclip_s2rgb",
    pooling: options.Vector = None,
    grid: Grid = False,
    mbit_s: Annotated[float, Option(help="Rate of the network in megabits per second.")] = 200,
    as_json: options.Json = False,
) -> None:
    """Print how much an export would read and write.

    It asks the catalog and reads no pixel.
    """
    from rs_embed.export.cost import plan_export

    found = plan_export(
        rows.places(),
        temporal=time.time_range(),
        sensor=source.sensor(),
        model=model,
        output=OutputSpec("pooled", pooling),
        backend=source.backend,
        chip_m=rows.chip_m,
        every=rows.every,
        read=rows.reading(),
        grid=grid,
        mbit_s=mbit_s,
    )
    typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(plan_lines(found)))


def plan_lines(plan: ExportPlan) -> Iterator[str]:
    """Yield the cost of an export, for a person."""
    fetch = plan.fetch
    about = f"about, from a sample of {fetch.places:,}: " if plan.share > 1 else ""
    yield f"{about}{plan.rows:,} place(s), {plan.all('scenes'):,} scene(s) to read for them"
    yield f"{'':<46}{'blocks':>10}{'requests':>10}{'GB in':>9}{'minutes':>9}"
    for title, found in (("as asked", fetch), *plan.alternatives):
        blocks, requests, read_bytes = (plan.all(name, found) for name in ("blocks", "requests", "read_bytes"))
        yield f"{title:<46}{blocks:>10,}{requests:>10,}{read_bytes / 1e9:>9.2f}{plan.minutes_of(found):>9.1f}"
    yield f"minutes of the network at {plan.mbit_s:g} Mbit/s; with the model on two cores {plan.minutes:,.1f}"
    grids = f", token grids {plan.grid_bytes / 1e9:.2f} GB" if plan.grid_bytes else ""
    yield f"written: {plan.write_bytes / 1e9:.2f} GB{grids}"
    missing, partly = round(plan.share * len(fetch.places_without_scene)), plan.partly_covered
    if missing or partly:
        yield f"gaps: {missing:,} place(s) without any scene, {partly:,} only partly covered"
    if plan.bad_rows:
        yield visible(f"{len(plan.bad_rows):,} row(s) are no places: {plan.bad_rows[0]}")


def export(
    out: Annotated[Path, Option(help="Folder of the dataset.")],
    rows: RowOptions,
    time: options.OptionalTimeOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    pooling: options.Vector = None,
    input_prep: options.Prep = "resize",
    dtype: Annotated[VectorType, options.choice(VectorType, "Number type of the vectors.")] = "float32",
    normalise: Annotated[bool, Option("--normalise", help="Scale the vectors to length 1.")] = False,
    thumbnails: Annotated[bool, Option(help="Write quicklooks of 96 px.")] = True,
    grid: Grid = False,
    allow_small: Annotated[bool, Option("--allow-small", help="Accept places under 32 px a side.")] = False,
    yes: Annotated[bool, Option("--yes", help="Embed more than 200,000 places.")] = False,
    shard: Annotated[str | None, Option(metavar="I/N", help="Do only each N-th partition.")] = None,
    on_lost_scene: options.LostScene = "keep",
    retry_failed: Annotated[
        bool, Option("--retry-failed", help="Try places again that failed or lack scenes.")
    ] = False,
    engine: Annotated[Engine, options.choice(Engine, "Run here, or on a Ray cluster.")] = "local",
    address: Annotated[str | None, Option(help="Address of the Ray cluster.")] = None,
    partition_size: Annotated[int, Option(help="Number of places in a partition, the unit of work.")] = 256,
    as_json: options.Json = False,
) -> None:
    """Embed many places into a folder of files.

    The same command again goes on where it stopped.
    """
    # Fetching and embedding share the cores: a model's threads that spin while they wait slow the fetching down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if address is not None:
        os.environ["RAY_ADDRESS"] = address  # Ray's own variable
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
            read=rows.reading(unlimited=yes),
            dtype=dtype,
            normalise=normalise,
            thumbnails=thumbnails,
            grid=grid,
            allow_small=allow_small,
            shard=_shard(shard),
            retry_failed=retry_failed,
            on_lost_scene=on_lost_scene,
            engine=engine,
            partition_size=partition_size,
            report=report,
        )
    _print_summary(summary, as_json)


def _print_summary(summary: ExportSummary, as_json: bool) -> None:
    """Print the result; the exit code is 1 where a place failed, or none of them was embedded."""
    typer.echo(json.dumps(_summary_facts(summary)) if as_json else "\n".join(summary_lines(summary)))
    if summary.failed or (summary.places and not summary.done):  # a shard may have no place
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
        "warnings": dict(summary.warnings),
        "failures": [{"id": name, "error": error} for name, error in summary.failures],
    }


def summary_lines(summary: ExportSummary) -> Iterator[str]:
    """Yield the result of an export, for a person."""
    yield (
        f"{summary.done:,} of {summary.places:,} place(s) embedded in {summary.seconds:,.0f} s; {summary.no_imagery:,} "
        f"without imagery, {summary.failed:,} failed"
    )
    if summary.lost:
        yield f"{summary.lost:,} of them lack scenes that could not be read (column dropped_scenes): --retry-failed"
    for name, error in summary.failures[:5]:
        yield visible(f"   {name}: {' '.join(error.split())}")
    for line in summary.bad_rows[:5]:
        yield visible(f"   {line}")
    if len(summary.failures) > 5 or summary.failed + summary.no_imagery > len(summary.failures):
        yield f"   all of them: {summary.folder / 'failures'}"
    if summary.warnings:
        yield "warnings: " + ", ".join(f"{places:,} place(s) {kind}" for kind, places in summary.warnings)
    if not summary.done:
        yield f"{summary.folder} holds no vector: a corrected command with the same --out starts it over"
    if summary.slowest:
        yield visible("slowest: " + ", ".join(f"{name} ({seconds:.1f} s)" for seconds, name in summary.slowest))
    yield f"dataset: {summary.folder} (geopandas.read_parquet('{summary.folder / 'embeddings'}'))"
