"""The demo on a town: its surroundings planned, embedded and served on a map."""

from __future__ import annotations

import sys
from datetime import date
from math import cos, radians
from pathlib import Path

import typer

from rs_embed.cli.demo import DEGREES_PER_M, DEMO_MODEL, program
from rs_embed.cli.export import plan_lines, summary_lines
from rs_embed.cli.progress import export_progress
from rs_embed.cli.search import serve
from rs_embed.errors import NoImageryError, SpecError
from rs_embed.export.cost import plan_export
from rs_embed.export.run import export_embeddings
from rs_embed.grid import lonlat_text
from rs_embed.specs import BBox, SensorSpec, TemporalSpec

HALF_SIDE_M, CHIP_M = 10_000, 640
_SENSOR = SensorSpec(cloud_mask="scl", cloudy_pct=40, max_scenes=6)
_QUESTION = f"""Which model?
  1  {DEMO_MODEL}: in this package, knows ten kinds of land and some 180 words
  2  remoteclip_s2rgb: RemoteCLIP, any words, 605 MB to download once"""


def last_summer(lat: float, today: date) -> TemporalSpec:
    """Return the last summer that is over: June to August, or December to February south of the equator."""
    north = lat >= 0
    end = date(today.year, 9 if north else 3, 1)
    if end > today:
        end = end.replace(year=today.year - 1)
    start = date(end.year, 6, 1) if north else date(end.year - 1, 12, 1)
    return TemporalSpec.range(start.isoformat(), end.isoformat())


def _around(lon: float, lat: float) -> BBox:
    """Return a box of 20 km centred on a point; refuse one too close to a pole or the antimeridian."""
    if not (-180 <= lon <= 180 and -84 <= lat <= 84):
        raise SpecError(f"--at {lon:g} {lat:g} must be longitude, then latitude, in degrees, at most 84 north or south")
    height = HALF_SIDE_M * DEGREES_PER_M
    width = height / cos(radians(lat))
    if abs(lon) + width > 180:
        raise SpecError(f"--at {lon:g} {lat:g} is too close to the antimeridian: take a point 20 km away from it")
    return BBox(lon - width, lat - height, lon + width, lat + height)


def search_around(at: tuple[float, float], out: Path, model: str | None, backend: str, port: int | None) -> None:
    """Plan, export and serve 20 km around a point; the same command again goes on where it stopped."""
    lon, lat = at
    area, temporal = _around(lon, lat), last_summer(lat, date.today())
    model = model or _ask_model()
    folder = out / f"at_{lon:.4f}_{lat:.4f}_{temporal.start}_{model}"
    typer.echo(f"{lonlat_text(lon, lat)}, 20 km around it, {temporal.start} to {temporal.end}, chips of {CHIP_M} m")
    plan = plan_export(area, temporal=temporal, sensor=_SENSOR, model=model, backend=backend, chip_m=CHIP_M)
    typer.echo("\n".join(plan_lines(plan)))
    if not plan.fetch.scenes:
        raise NoImageryError(f"{backend} has no scene there in {temporal.start} to {temporal.end}: take another --at")
    with export_progress(False) as report:
        summary = export_embeddings(
            model, area, folder, temporal=temporal, sensor=_SENSOR, backend=backend, chip_m=CHIP_M, report=report
        )
    typer.echo("\n".join(summary_lines(summary)))
    if not summary.done:
        raise typer.Exit(1)
    if port is None:
        typer.echo(f"Search it by words, on a map in your browser:\n  {program()} serve {folder}")
    else:
        serve(folder, port=port)


def _ask_model() -> str:
    if not sys.stdin.isatty():
        print(f"model {DEMO_MODEL}; for any words: --model remoteclip_s2rgb (605 MB)", file=sys.stderr)
        return DEMO_MODEL
    typer.echo(_QUESTION)
    return "remoteclip_s2rgb" if typer.prompt("1 or 2", default="1", type=str).strip() == "2" else DEMO_MODEL
