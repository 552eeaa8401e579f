"""Options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rs_embed.errors import SpecError
from rs_embed.specs import SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from rs_embed.cli.places import NamedPlace
    from rs_embed.embedding import Embedding, EmbeddingFailure
    from rs_embed.providers.base import Provider

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
DEFAULT_MODEL = "remoteclip_s2rgb"

Point = Annotated[
    tuple[float, float] | None, typer.Option("--point", metavar="LON LAT", help="A point, longitude first.")
]
BufferM = Annotated[float | None, typer.Option("--buffer-m", help="Half the side of the square, ground metres.")]
Chip = Annotated[float | None, typer.Option("--chip", help="The whole side: --chip M is --buffer-m M/2.")]
Box = Annotated[
    tuple[float, float, float, float] | None, typer.Option("--bbox", metavar="W S E N", help="A box, degrees.")
]
PlacesFile = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Many places: CSV, GeoJSON or GeoParquet.")]
Start = Annotated[str, typer.Option("--start", metavar="YYYY-MM-DD", help="First day.")]
End = Annotated[str, typer.Option("--end", metavar="YYYY-MM-DD", help="Day after the last.")]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="sample, local:<folder>, earth-search (auto), planetary-computer, gee, stac:<api>#<collection>.",
    ),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Keep fetched imagery in this folder, and take it from there next time.")
]
Model = Annotated[str, typer.Option("--model", help="A name from `rs-embed models`.")]
Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="Hub repo[@revision][:file], folder or file of weights.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16, int8 (CPU), fp16 (CUDA).")]
ScaleM = Annotated[float, typer.Option("--scale-m", help="Ground metres a pixel.")]
CloudyPct = Annotated[float, typer.Option("--cloudy-pct", help="Leave out scenes with more cloud than this.")]
Composite = Annotated[str, typer.Option("--composite", help="median or mosaic.")]
CloudMask = Annotated[str | None, typer.Option("--cloud-mask", help="scl: leave out cloudy pixels.")]
MaxScenes = Annotated[int | None, typer.Option("--max-scenes", help="Only the N least cloudy scenes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def sensor(
    scale_m: float, cloudy_pct: float, composite: str, cloud_mask: str | None, max_scenes: int | None
) -> SensorSpec:
    """The sensor that the options describe; a bad value is its SpecError."""
    return SensorSpec(
        scale_m=scale_m,
        cloudy_pct=cloudy_pct,
        composite=composite,  # type: ignore[arg-type]  # checked by SensorSpec itself
        cloud_mask=cloud_mask,  # type: ignore[arg-type]
        max_scenes=max_scenes,
    )


def check_ending(option: str, path: Path, allowed: tuple[str, ...]) -> None:
    """Refuse, before anything is fetched, a file whose ending says nothing that can be written."""
    if path.suffix.lower() not in allowed:
        raise SpecError(f"{option} {path} must end in one of {', '.join(allowed)}")


def time_range(start: str | None, end: str | None) -> TemporalSpec | None:
    """The time range of two options that may both be left out."""
    if (start is None) != (end is None):
        raise SpecError(f"--start and --end come together, got only {'--start' if start else '--end'}")
    return TemporalSpec.range(start, end) if start is not None and end is not None else None


def source(backend: str, cache: Path | None) -> str | Provider:
    """What to pass as `backend=`."""
    from rs_embed.providers.registry import resolve

    return backend if cache is None else resolve(backend, cache)


def exit_on_failures(places: Sequence[NamedPlace], results: Sequence[Embedding | EmbeddingFailure]) -> None:
    """One line on stderr for each place that failed, and exit code 1 if there is one."""
    from rs_embed.embedding import EmbeddingFailure

    failed = [(p, r) for p, r in zip(places, results, strict=True) if isinstance(r, EmbeddingFailure)]
    for place, failure in failed:
        name = f"{place.id}: " if len(places) > 1 else ""
        print(f"error: {name}{' '.join(str(failure.error).split())}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
