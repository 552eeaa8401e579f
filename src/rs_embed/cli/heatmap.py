"""`rs-embed heatmap`: the parts of one place that match some words, as a picture and as a GeoTIFF."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from rs_embed.cli import options
from rs_embed.cli.places import describe, read_places
from rs_embed.errors import SpecError
from rs_embed.files import make_folder

if TYPE_CHECKING:
    from rs_embed.search.heatmap import HeatMap


def heatmap(
    text: Annotated[str, Argument(metavar="TEXT", help='Words, such as "river".')],
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    negative: options.Negative = None,
    window_m: Annotated[float, Option(help="Side of the compared windows; under 64 px, results are guesses.")] = 640,
    out: Annotated[Path | None, Option(help="Write probability and score as a GeoTIFF.")] = None,
    plot: Annotated[Path, Option(help="File for the picture.")] = Path("heatmap.png"),
    as_json: options.Json = False,
) -> None:
    """Map the parts of one place that match some words."""
    from rs_embed.search.draw import heat_map_sheet
    from rs_embed.search.heatmap import heat_map

    options.check_ending("--plot", plot, options.PICTURES)
    if out is not None:
        options.check_ending("--out", out, (".tif", ".tiff"))
    _make_folders(plot, out)
    [named] = read_places(request)
    heat = heat_map(
        model.name,
        text,
        spatial=named.place,
        temporal=request.time_range(),
        negative=negative or (),
        window_m=window_m,
        sensor=imagery.sensor(),
        backend=imagery.provider(),
        device=model.device,
        checkpoint=model.checkpoint,
        precision=model.precision,
        progress=sys.stderr.isatty(),
    )
    written = [] if out is None else [heat.to_geotiff(out)]
    written.append(heat_map_sheet(heat).save(plot))
    lon, lat, probability = heat.best
    facts = {
        "notice": heat.notice,
        "best": {"lon": lon, "lat": lat, "probability": probability},
        "likely_frac": heat.likely_frac,
        "meta": heat.meta,
        "files": [str(path) for path in written],
    }
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join([describe(named.place), *_lines(heat, written)]))


def _make_folders(*paths: Path | None) -> None:
    """Make the folders of the files before anything is fetched."""
    for path in (p for p in paths if p is not None):
        if path.is_dir():
            raise SpecError(f"{path} is a folder: name a file")
        make_folder(path.parent)


def _lines(heat: HeatMap, written: list[Path]) -> Iterator[str]:
    from rs_embed.grid import lonlat_text

    lon, lat, probability = heat.best
    yield from (f"warning: {text}" for text in heat.meta["warnings"])
    if heat.notice:
        yield heat.notice
    share = f"above 50 % on {heat.likely_frac:.0%} of the observed area"
    yield f"likeliest at {lonlat_text(lon, lat)} ({probability:.0%}); {share}"
    yield f"{heat.meta['windows']} window(s) of {heat.meta['window_m']:g} m, {len(heat.meta['scenes'])} scene(s)"
    yield from (f"wrote {path}" for path in written)
