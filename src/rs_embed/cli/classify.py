"""`rs-embed classify`: which of some labels fits each place best, by the model's text side."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rs_embed.cli import options
from rs_embed.cli.places import NamedPlace, describe, read_places
from rs_embed.errors import SpecError
from rs_embed.specs import OutputSpec, TemporalSpec

if TYPE_CHECKING:
    from rs_embed.embedding import Embedding, EmbeddingFailure

_BAR = 24


def classify(
    start: options.Start,
    end: options.End,
    labels: Annotated[
        str, typer.Option("--labels", help='"forest,river,houses"; with synonyms "water=river|lake,forest".')
    ],
    file: options.PlacesFile = None,
    point: options.Point = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    bbox: options.Box = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = "auto",
    cache: options.Cache = None,
    checkpoint: options.Checkpoint = None,
    device: options.Device = "auto",
    template: Annotated[str, typer.Option("--template", help="rs, none, or a sentence with {}.")] = "rs",
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    as_json: options.Json = False,
) -> None:
    """Say how likely each label is for each place, if one of them is right."""
    from rs_embed.api import get_embeddings_batch
    from rs_embed.embedding import Embedding
    from rs_embed.texts import zero_shot

    wanted = read_labels(labels)
    places = read_places(file, point, bbox, buffer_m, chip)
    results = get_embeddings_batch(
        model,
        spatials=[p.place for p in places],
        temporal=TemporalSpec.range(start, end),
        sensor=options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes),
        output=OutputSpec.pooled("projected"),
        backend=options.source(backend, cache),
        device=device,
        checkpoint=checkpoint,
        on_error="return",
        progress=len(places) > 1 and sys.stderr.isatty(),
    )
    done = [r for r in results if isinstance(r, Embedding)]
    frames = None if template == "none" else template
    rows = (
        zero_shot(done, wanted, model=model, template=frames, checkpoint=checkpoint, device=device).tolist()
        if done
        else []
    )
    odds = iter([dict(zip(wanted, row, strict=True)) for row in rows])
    records = [
        _record(p, r, next(odds) if isinstance(r, Embedding) else None) for p, r in zip(places, results, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        typer.echo("\n".join(_text(p, r) for p, r in zip(places, records, strict=True) if r["ok"]))
    options.exit_on_failures(places, results)


def read_labels(text: str) -> dict[str, list[str]]:
    """`"water=river|lake,forest"` to `{"water": ["river", "lake"], "forest": ["forest"]}`.

    Raises:
        SpecError: for a label that is empty or stands there twice.
    """
    found: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, synonyms = (side.strip() for side in part.partition("="))
        words = [word.strip() for word in (synonyms or name).split("|")]
        if not name or not all(words) or name in found:
            raise SpecError(f'--labels {text!r}: {part.strip()!r} is empty or twice; write "forest,water=river|lake"')
        found[name] = words
    return found


def _record(named: NamedPlace, result: Embedding | EmbeddingFailure, odds: dict[str, float] | None) -> dict[str, Any]:
    from rs_embed.cli.write import record_head

    head = record_head(named, result)
    return head if odds is None else {**head, "label": max(odds, key=odds.__getitem__), "probabilities": odds}


def _text(named: NamedPlace, record: dict[str, Any]) -> str:
    ranked = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])
    width = max(len(name) for name, _ in ranked)
    lines = [f"   {name:<{width}} {value:6.1%} {'█' * round(value * _BAR)}" for name, value in ranked]
    return "\n".join([f"{named.id}  {describe(named.place)}", *lines])
