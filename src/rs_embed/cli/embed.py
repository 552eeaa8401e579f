"""`rs-embed embed`: vectors of places, printed or written to a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.places import EXPORT_FROM, NamedPlace, describe, exit_on_failures, read_places
from rs_embed.specs import InputPrep, OutputSpec

if TYPE_CHECKING:
    from rs_embed.embedding import Embedding, Result


def embed(
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    file: options.PlacesFile = None,
    output: Annotated[
        options.OutputMode, options.choice(options.OutputMode, "One vector, or one per token.")
    ] = "pooled",
    pooling: options.Vector = None,
    input_prep: options.Prep = "resize",
    out: Annotated[Path | None, Option(help="Write .npy, .npz, .json, .nc or .parquet instead of printing.")] = None,
    as_json: options.Json = False,
) -> None:
    """Embed one place, or a file of places."""
    from rs_embed.cli.write import check_suffix, write
    from rs_embed.embedding import EmbeddingFailure

    places = read_places(request, file)
    spec = OutputSpec(output, pooling)
    if out is not None:
        check_suffix(out, spec)
    if len(places) > EXPORT_FROM:
        print(
            f"note: `rs-embed embed` holds the {len(places)} places in memory and cannot resume: "
            "`rs-embed export` writes results as they come, and goes on where it stopped",
            file=sys.stderr,
        )
    results = embed_places(places, spec, request, imagery, model, input_prep)
    done = sum(not isinstance(r, EmbeddingFailure) for r in results)
    if out is not None and done:
        write(out, places, results)
        print(f"wrote {done} embedding(s) to {out}", file=sys.stderr)
    elif out is None:
        _print(places, results, as_json)
    exit_on_failures(places, results)


def embed_places(
    places: Sequence[NamedPlace],
    output: OutputSpec,
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    input_prep: InputPrep = "resize",
) -> list[Result]:
    """Return one embedding or failure per place, in order."""
    from rs_embed.api import get_embeddings_batch

    return get_embeddings_batch(
        model.name,
        spatials=[named.place for named in places],
        temporal=request.time_range(),
        sensor=imagery.sensor(),
        output=output,
        backend=imagery.provider(),
        device=model.device,
        precision=model.precision,
        input_prep=input_prep,
        checkpoint=model.checkpoint,
        on_error="return",
        progress=len(places) > 1 and sys.stderr.isatty(),
    )


def _print(places: list[NamedPlace], results: list[Result], as_json: bool) -> None:
    from rs_embed.cli.write import to_json
    from rs_embed.embedding import Embedding

    if as_json:
        typer.echo(to_json(places, results))
        return
    for named, result in zip(places, results, strict=True):
        if isinstance(result, Embedding):
            typer.echo("\n   ".join([f"{named.id}  {describe(named.place)}", *_lines(result)]))


def _lines(result: Embedding) -> list[str]:
    """Summarise a result in two lines."""
    import numpy as np

    values, meta = np.asarray(result.data), result.meta
    shape = " x ".join(map(str, values.shape))
    first = ", ".join(f"{v:.4f}" for v in values.ravel()[:4])
    scenes = ", ".join(f"{s['datetime'][:10]} {s['id']}" for s in meta["scenes"][:3])
    return [
        f"{meta['model']} {meta.get('pooling') or 'token grid'}: {shape} float32 [{first}, …]",
        f"{meta['n_scenes']} scene(s): {scenes}; {meta['valid_frac']:.0%} of the pixels observed; "
        f"{meta['model_input']['effective_gsd_m']:.3g} m per model pixel",
    ]
