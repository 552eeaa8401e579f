"""`rs-embed embed`: places to vectors, printed or written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rs_embed.cli import options
from rs_embed.cli.places import EXPORT_FROM, NamedPlace, describe, read_places
from rs_embed.errors import SpecError
from rs_embed.specs import OutputSpec, TemporalSpec

if TYPE_CHECKING:
    from rs_embed.embedding import Embedding, Result


def embed(
    start: options.Start,
    end: options.End,
    file: options.PlacesFile = None,
    point: options.Point = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    bbox: options.Box = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = "auto",
    cache: options.Cache = None,
    checkpoint: options.Checkpoint = None,
    output: Annotated[str, typer.Option("--output", help="pooled or grid.")] = "pooled",
    pooling: Annotated[str | None, typer.Option("--pooling", help="mean (768) or projected (512).")] = None,
    input_prep: Annotated[str, typer.Option("--input-prep", help="resize or tile.")] = "resize",
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write .npy, .npz, .json, .nc or .parquet instead of printing.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Embed one place, or a file of places."""
    from rs_embed.api import get_embeddings_batch
    from rs_embed.cli.write import check_suffix, write
    from rs_embed.embedding import EmbeddingFailure

    places = read_places(file, point, bbox, buffer_m, chip)
    spec = OutputSpec(output, pooling)  # type: ignore[arg-type]  # checked by OutputSpec itself
    if out is not None:
        check_suffix(out, spec)
    if len(places) > EXPORT_FROM:
        print(
            f"note: {len(places)} places are held in memory until the end and cannot be resumed: "
            "`rs-embed export` writes them as they come, and goes on where it stopped",
            file=sys.stderr,
        )
    if input_prep not in ("resize", "tile"):
        raise SpecError(f"--input-prep must be resize or tile, got {input_prep!r}")
    results = get_embeddings_batch(
        model,
        spatials=[p.place for p in places],
        temporal=TemporalSpec.range(start, end),
        sensor=options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes),
        output=spec,
        backend=options.source(backend, cache),
        device=device,
        precision=precision,
        input_prep=input_prep,  # type: ignore[arg-type]
        checkpoint=checkpoint,
        on_error="return",
        progress=len(places) > 1 and sys.stderr.isatty(),
    )
    done = sum(not isinstance(r, EmbeddingFailure) for r in results)
    if out is not None and done:
        write(out, places, results)
        print(f"wrote {done} embedding(s) to {out}", file=sys.stderr)
    elif out is None:
        _print(places, results, as_json)
    options.exit_on_failures(places, results)


def _print(places: list[NamedPlace], results: list[Result], as_json: bool) -> None:
    from rs_embed.cli.write import to_json
    from rs_embed.embedding import Embedding

    if as_json:
        typer.echo(to_json(places, results))
        return
    for named, result in zip(places, results, strict=True):
        if isinstance(result, Embedding):
            typer.echo(f"{named.id}  {describe(named.place)}")
            typer.echo("\n".join(f"   {line}" for line in _lines(result)))


def _lines(result: Embedding) -> list[str]:
    """A result in a few lines."""
    import numpy as np

    values, meta = np.asarray(result.data), result.meta
    shape = " x ".join(map(str, values.shape))
    first = ", ".join(f"{v:.4f}" for v in values.ravel()[:4])
    scenes = ", ".join(f"{s['datetime'][:10]} {s['id']}" for s in meta["scenes"][:3])
    return [
        f"{meta['model']} {meta.get('pooling') or 'token grid'}: {shape} float32 [{first}, …]",
        f"{meta['n_scenes']} scene(s): {scenes}; {meta['valid_frac']:.0%} of the pixels observed; "
        f"{meta['model_input']['effective_gsd_m']:.3g} m a model pixel",
    ]
