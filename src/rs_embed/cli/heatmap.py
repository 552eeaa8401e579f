"""`rs-embed heatmap`: where in one place some words are, as a picture and as a GeoTIFF."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rs_embed.cli import options
from rs_embed.cli.places import describe, read_places
from rs_embed.errors import SpecError
from rs_embed.files import atomic_write
from rs_embed.specs import TemporalSpec

if TYPE_CHECKING:
    from rs_embed.search.heatmap import HeatMap

_TIFFS = (".tif", ".tiff")


def heatmap(
    text: Annotated[str, typer.Argument(metavar="TEXT", help='Words, such as "river".')],
    start: options.Start,
    end: options.End,
    point: options.Point = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    bbox: options.Box = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", help="Words for what is not wanted: for the score in --out.")
    ] = None,
    window_m: Annotated[
        float, typer.Option("--window-m", help="Side of the windows that are compared; under 64 px they are guesses.")
    ] = 640,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = "auto",
    cache: options.Cache = None,
    checkpoint: options.Checkpoint = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write probability and score as a GeoTIFF.")] = None,
    plot: Annotated[Path, typer.Option("--plot", help="The picture.")] = Path("heatmap.png"),
    as_json: options.Json = False,
) -> None:
    """Show where in one place some words are."""
    from rs_embed.cli.heatmap_picture import draw
    from rs_embed.search.heatmap import heat_map

    options.check_ending("--plot", plot, options.PICTURES)
    if out is not None:
        options.check_ending("--out", out, _TIFFS)
    _make_folders(plot, out)
    [named] = read_places(None, point, bbox, buffer_m, chip)
    heat = heat_map(
        model,
        text,
        spatial=named.place,
        temporal=TemporalSpec.range(start, end),
        negative=negative or (),
        window_m=window_m,
        sensor=options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes),
        backend=options.source(backend, cache),
        device=device,
        checkpoint=checkpoint,
        precision=precision,
        progress=sys.stderr.isatty(),
    )
    written = [] if out is None else [heat.write_geotiff(out)]
    with atomic_write(plot) as part:
        draw(heat).save(part)
    written.append(plot)
    facts = _facts(heat) | {"files": [str(path) for path in written]}
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join([describe(named.place), *_lines(facts)]))


def _make_folders(*paths: Path | None) -> None:
    for path in (p for p in paths if p is not None):
        if path.is_dir():
            raise SpecError(f"{path} is a folder: name a file")
        path.parent.mkdir(parents=True, exist_ok=True)


def _facts(heat: HeatMap) -> dict[str, Any]:
    lon, lat, probability = heat.best
    best = {"lon": lon, "lat": lat, "probability": probability}
    return {"notice": heat.notice, "best": best, "likely_frac": heat.likely_frac, "meta": heat.meta}


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    from rs_embed.providers.archive import lonlat_text

    meta, best = facts["meta"], facts["best"]
    yield from (f"warning: {text}" for text in meta["warnings"])
    if facts["notice"]:
        yield facts["notice"]
    where = lonlat_text(best["lon"], best["lat"])
    share = facts["likely_frac"]
    yield f"likeliest at {where} ({best['probability']:.0%}); likelier than not on {share:.0%} of what was seen"
    yield f"{meta['windows']} window(s) of {meta['window_m']:g} m, {len(meta['scenes'])} scene(s)"
    yield from (f"wrote {path}" for path in facts["files"])
