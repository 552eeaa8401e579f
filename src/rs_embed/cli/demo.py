"""`rs-embed demo`: the main job on real Sentinel-2 imagery that installs with the package, and a picture of it."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from math import cos, radians
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rs_embed.cli import options

if TYPE_CHECKING:
    from rs_embed.cli.demo_search import Ranking
    from rs_embed.embedding import Embedding
    from rs_embed.providers.sample import Sample

DEMO_MODEL = "clip_eurosat_s2rgb"
DEGREES_LAT_M = 1 / 111_320
"""Degrees of latitude a metre."""


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures and datasets.")] = Path("demo-output"),
    model: Annotated[str | None, typer.Option("--model", help="A name from `rs-embed models`.")] = None,
    at: Annotated[
        tuple[float, float] | None,
        typer.Option("--at", metavar="LON LAT", help="Instead: 20 km around this point, last summer, on a map."),
    ] = None,
    backend: options.Backend = "auto",
    port: Annotated[int, typer.Option("--port", help="With --at: of the page.", min=1, max=65535)] = 8000,
    page: Annotated[bool, typer.Option("--page/--no-page", help="With --at: serve the page at the end.")] = True,
) -> None:
    """Inspect, embed and compare the sample places, with no account and no download; or a place of yours (--at)."""
    if at is not None:
        from rs_embed.cli.demo_at import search_around

        search_around(at, out, model, backend, port if page else None)
        return
    log = logging.getLogger("rs_embed")
    log.addFilter(_said_below)
    try:
        _run(out, model or DEMO_MODEL)
    finally:
        log.removeFilter(_said_below)


def _said_below(record: logging.LogRecord) -> bool:
    """Leave out the warnings that every sample has; the demo says them once, in its own words."""
    return not record.getMessage().startswith(("few scenes", "cloudy_pct"))


def _run(out: Path, model: str) -> None:
    from rs_embed.cli import demo_picture, demo_search
    from rs_embed.providers.sample import list_samples
    from rs_embed.specs import OutputSpec

    samples = list_samples()
    typer.echo(f"1. Imagery: {len(samples)} places of real Sentinel-2 L2A, 1,200 m a side, from the package itself")
    looked = [_inspect(sample, out) for sample in samples]
    typer.echo("   (one date a place: a median of one scene removes no cloud, and each vector's warnings say so)")
    vectors = _embed(samples, model, OutputSpec.pooled("projected"))
    grids = _embed(samples, model, OutputSpec.grid())
    typer.echo(_similarity(samples, vectors))
    rows = [
        demo_picture.Row(sample, Path(result["artifacts"]["quicklook"]), vector, grid)
        for sample, result, vector, grid in zip(samples, looked, vectors, grids, strict=True)
    ]
    chips = demo_search.cut_chips(samples, [result["array_chw"] for result in looked], model)
    rankings = demo_search.rank(chips, model)
    typer.echo(_search(rankings, demo_search.count_right(chips, model)))
    picture = demo_picture.draw(rows, out / "demo.png", model)
    words = demo_search.draw(rankings, out / "demo-search.png", model)
    typer.echo(f"5. Pictures: {picture} (patch, token grid in false colour, nearest neighbour)")
    typer.echo(f"             {words} (the best chips for each phrase)")
    dataset = _export(samples, out, model)
    typer.echo(f"6. A dataset: {dataset} (54 chips of 400 m; geopandas, DuckDB and pyarrow open it)\n")
    typer.echo(_next_steps(samples[0], model, dataset))


def _search(rankings: list[Ranking], right: dict[int, int]) -> str:
    """The best chips for each phrase, and how far the labels are met."""
    lines = ["4. By words: 24 chips of 600 m, the places of the best eight"]
    lines += [f"   {r.phrase:<14}{' '.join(str(chip.place) for chip in r.chips[:8])}" for r in rankings]
    each = ", ".join(f"{count} of 4 at {place}" for place, count in right.items())
    lines.append(f"   right by the places' labels, one of ten classes each: {sum(right.values())} of 24 ({each};")
    lines.append("   6 lies under snow, which this model has never seen: see `rs-embed models clip_eurosat_s2rgb`)")
    return "\n".join(lines)


def _inspect(sample: Sample, out: Path) -> dict[str, Any]:
    from rs_embed.api import inspect_provider_patch
    from rs_embed.specs import PointBuffer, SensorSpec, TemporalSpec

    result = inspect_provider_patch(
        spatial=PointBuffer(sample.lon, sample.lat, sample.buffer_m),
        temporal=TemporalSpec.range(sample.start, sample.end),
        sensor=SensorSpec(check_save_dir=str(out)),
        backend="sample",
        name=sample.id,
        return_array=True,
    )
    report = result["report"]
    medians = "/".join(f"{v:.0f}" for v in report["band_quantiles"]["p50"])
    typer.echo(
        f"   {'good' if result['ok'] else 'BAD '} {sample.date} {sample.lat:8.4f}, {sample.lon:8.4f} "
        f"{report['valid_frac']:4.0%} observed, median DN {medians:<14} {sample.labels[0]}"
    )
    return result


def _embed(samples: list[Sample], model: str, output: object) -> list[Embedding]:
    from rs_embed.api import get_embeddings_batch
    from rs_embed.embedding import Embedding
    from rs_embed.specs import OutputSpec, PointBuffer, TemporalSpec

    assert isinstance(output, OutputSpec)
    started = time.perf_counter()
    results = get_embeddings_batch(
        model,
        spatials=[PointBuffer(s.lon, s.lat, s.buffer_m) for s in samples],
        temporal=[TemporalSpec.range(s.start, s.end) for s in samples],
        output=output,
        backend="sample",
    )
    embeddings = [r for r in results if isinstance(r, Embedding)]
    shape = " x ".join(map(str, embeddings[0].data.shape))
    what = "2. Vectors" if output.mode == "pooled" else "3. Token grids"
    typer.echo(f"{what}: {len(embeddings)} x ({shape}) by {model} in {time.perf_counter() - started:.1f} s")
    return embeddings


def _similarity(samples: list[Sample], vectors: list[Embedding]) -> str:
    """Cosine similarity of all pairs as a table; places are numbered as in the list above."""
    from rs_embed.cli.demo_picture import cosine

    table = cosine(vectors)
    head = "   cosine  " + "".join(f"{i:>7}" for i in range(1, len(samples) + 1))
    lines = [
        f"   {i:>6}  " + "".join(f"{value:>7.2f}" for value in row) + f"   {samples[i - 1].labels[0][:44]}"
        for i, row in enumerate(table, start=1)
    ]
    return "\n".join([head, *lines])


def _export(samples: list[Sample], out: Path, model: str) -> Path:
    """Nine chips a place, each place with its own time range, as a dataset that can be searched."""
    from rs_embed.export.run import export_embeddings

    rows = [
        f"{s.id}/{x}/{y},{s.lon + x * DEGREES_LAT_M / cos(radians(s.lat)):.6f},{s.lat + y * DEGREES_LAT_M:.6f},"
        f"{s.start},{s.end}"
        for s in samples
        for x in (-400, 0, 400)
        for y in (-400, 0, 400)
    ]
    places = out / "places.csv"
    places.write_text("\n".join(["id,lon,lat,start,end", *rows, ""]))
    folder = out / f"dataset-{model}"
    export_embeddings(model, places, folder, backend="sample", chip_m=400)
    return folder


def command() -> str:
    """How this program is called here: by its name where that is on the path."""
    return "rs-embed" if shutil.which("rs-embed") else str(Path(sys.argv[0]))


def _next_steps(sample: Sample, model: str, dataset: Path) -> str:
    rs_embed = command()
    return f"""Next, on a place of yours:
  {rs_embed} embed --model {model} --backend sample --point {sample.lon} {sample.lat} --buffer-m 600 \
--start {sample.start} --end {sample.end}
  {rs_embed} classify --model {model} --backend sample --point {sample.lon} {sample.lat} --buffer-m 300 \
--start {sample.start} --end {sample.end} --labels "farm fields,forest,houses"
  {rs_embed} embed --model {model} --backend local:FOLDER --point LON LAT --buffer-m 600 --start YYYY-MM-DD \
--end YYYY-MM-DD   # a folder of Sentinel-2 files
  {rs_embed} demo --at LON LAT   # 20 km around your own town, by words, on a map (needs a network)

Search the sample by words, on a map in your browser:
  {rs_embed} serve {dataset}"""
