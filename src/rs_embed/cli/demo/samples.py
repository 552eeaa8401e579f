"""The demo on the sample places: look at them, embed them, compare them and search them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from math import cos, radians
from pathlib import Path

import typer

from rs_embed.api import fetch_patch, get_embeddings_batch
from rs_embed.cli.demo import DEGREES_PER_M, comparison, program
from rs_embed.cli.demo.comparison import SamplePlace
from rs_embed.embedding import Embedding
from rs_embed.inspection import inspect_array, save_quicklook
from rs_embed.patch import Patch
from rs_embed.providers.sample import Sample, list_samples
from rs_embed.specs import OutputSpec, PointBuffer, TemporalSpec


def run(out: Path, model: str) -> None:
    """Run all steps and write the pictures and a dataset to a folder."""
    log = logging.getLogger("rs_embed")
    log.addFilter(_is_new)
    try:
        _run(out, model)
    finally:
        log.removeFilter(_is_new)


def _is_new(record: logging.LogRecord) -> bool:
    """Drop the warnings that hold for every sample; the demo prints them once in its own words."""
    return not record.getMessage().startswith(("few scenes", "cloudy_pct"))


def _run(out: Path, model: str) -> None:
    samples = list_samples()
    typer.echo(f"1. Imagery: {len(samples)} places of real Sentinel-2 L2A, 1,200 m a side, from the package itself")
    patches = [_fetch(sample, out) for sample in samples]
    typer.echo("   (one date per place: a median of one scene removes no cloud, and each vector has a warning of it)")
    vectors = _embed(samples, model, OutputSpec.pooled("projected"), "2. Vectors")
    grids = _embed(samples, model, OutputSpec.grid(), "3. Token grids")
    places = [SamplePlace(*parts) for parts in zip(samples, patches, vectors, grids, strict=True)]
    typer.echo(_similarity(places))
    chips = comparison.cut_chips(places, model)
    rankings = comparison.rank(chips, model)
    typer.echo(_search(rankings, comparison.count_right(chips, model)))
    overview = comparison.draw_places(places, model).save(out / "demo.png")
    ranked = comparison.draw_rankings(rankings, model).save(out / "demo-search.png")
    typer.echo(f"5. Pictures: {overview} (imagery, token grid in false colour, most similar place)")
    typer.echo(f"             {ranked} (the best chips for each phrase)")
    dataset = export_samples(samples, out, model)
    typer.echo(f"6. A dataset: {dataset} (54 chips of 400 m; geopandas, DuckDB and pyarrow open it)\n")
    typer.echo(_next_steps(samples[0], model, dataset))


def _spec(sample: Sample) -> tuple[PointBuffer, TemporalSpec]:
    place = PointBuffer(sample.lon, sample.lat, sample.buffer_m)
    return place, TemporalSpec.range(sample.start, sample.end)


def _fetch(sample: Sample, out: Path) -> Patch:
    """Fetch a sample, write its quicklook and print a line about its pixels."""
    patch = fetch_patch(*_spec(sample), backend="sample")
    save_quicklook(patch.dn, out, sample.id)
    report = inspect_array(patch.dn, name=sample.id)
    medians = "/".join(f"{v:.0f}" for v in report["band_quantiles"]["p50"])
    typer.echo(
        f"   {'good' if report['ok'] else 'BAD '} {sample.date} {sample.lat:8.4f}, {sample.lon:8.4f} "
        f"{report['valid_frac']:4.0%} observed, median DN {medians:<14} {sample.labels[0]}"
    )
    return patch


def _embed(samples: Sequence[Sample], model: str, output: OutputSpec, title: str) -> list[Embedding]:
    started = time.perf_counter()
    places, times = zip(*map(_spec, samples), strict=True)
    results = get_embeddings_batch(model, spatials=places, temporal=times, output=output, backend="sample")
    embeddings = [r for r in results if isinstance(r, Embedding)]
    shape = " x ".join(map(str, embeddings[0].data.shape))
    seconds = time.perf_counter() - started
    typer.echo(f"{title}: {len(embeddings)} x ({shape}) by {model} in {seconds:.1f} s")
    return embeddings


def _similarity(places: Sequence[SamplePlace]) -> str:
    """Return the cosine similarity of all pairs as a table, with the numbers of the list above."""
    lines = ["   cosine  " + "".join(f"{number:>7}" for number in range(1, len(places) + 1))]
    for number, (place, row) in enumerate(zip(places, comparison.cosine(places), strict=True), start=1):
        lines.append(f"   {number:>6}  {''.join(f'{v:>7.2f}' for v in row)}   {place.sample.labels[0][:44]}")
    return "\n".join(lines)


def _search(rankings: comparison.Rankings, right: dict[int, int]) -> str:
    """Return the best chips for each phrase, and the count of chips that get a right label."""
    best = (f"   {phrase:<14}{' '.join(str(c.place) for c in chips[:8])}\n" for phrase, chips in rankings.items())
    return (
        f"4. Search by words: 24 chips of 600 m; the numbers are the places of the best eight\n{''.join(best)}"
        f"   {sum(right.values())} of 24 chips are classified as one of their place's labels, with ten classes to "
        f"choose from (of 4 per place: {', '.join(map(str, right.values()))}).\n"
        "   Place 6 lies under snow, which this model has never seen: see `rs-embed models clip_eurosat_s2rgb`"
    )


def export_samples(samples: Sequence[Sample], out: Path, model: str) -> Path:
    """Export nine chips per place, each place with its own time range; return the dataset's folder."""
    from rs_embed.export.run import export_embeddings

    rows = [
        f"{s.id}/{x}/{y},{s.lon + x * DEGREES_PER_M / cos(radians(s.lat)):.6f},{s.lat + y * DEGREES_PER_M:.6f},"
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


def _next_steps(sample: Sample, model: str, dataset: Path) -> str:
    rs_embed, point = program(), f"--point {sample.lon} {sample.lat}"
    when = f"--start {sample.start} --end {sample.end}"
    return f"""Next, on one place:
  {rs_embed} embed --model {model} --backend sample {point} --buffer-m 600 {when}
  {rs_embed} classify --model {model} --backend sample {point} --buffer-m 300 {when} \
--labels "farm fields,forest,houses"
  {rs_embed} embed --model {model} --backend local:FOLDER --point LON LAT --buffer-m 600 --start YYYY-MM-DD \
--end YYYY-MM-DD   # a folder of Sentinel-2 files
  {rs_embed} demo --at LON LAT   # search the 20 km around your own town on a map (needs a network)

Search the sample by words, on a map in your browser:
  {rs_embed} serve {dataset}"""
