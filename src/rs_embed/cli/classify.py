"""`rs-embed classify`: the label that fits each place best."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.embed import embed_places
from rs_embed.cli.places import NamedPlace, describe, exit_on_failures, read_places
from rs_embed.errors import SpecError
from rs_embed.specs import OutputSpec

_BAR_WIDTH = 24


def classify(
    labels: Annotated[str, Option(help='"forest,river,houses"; with synonyms "water=river|lake,forest".')],
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    file: options.PlacesFile = None,
    template: Annotated[str, Option(help="rs, none, or a sentence with {}.")] = "rs",
    as_json: options.Json = False,
) -> None:
    """Print the probability of each label for each place.

    The probabilities assume that one of the labels is right.
    """
    from rs_embed.cli.write import record_head
    from rs_embed.embedding import Embedding
    from rs_embed.texts import zero_shot

    words = read_labels(labels)
    places = read_places(request, file)
    results = embed_places(places, OutputSpec.pooled("projected"), request, imagery, model)
    records = [record_head(p, r) for p, r in zip(places, results, strict=True)]
    done = [(i, r) for i, r in enumerate(results) if isinstance(r, Embedding)]
    if done:
        probabilities = zero_shot(
            [r for _, r in done],
            words,
            model=model.name,
            template=None if template == "none" else template,
            checkpoint=model.checkpoint,
            device=model.device,
        )
        for (i, _), row in zip(done, probabilities.tolist(), strict=True):
            by_label = dict(zip(words, row, strict=True))
            records[i] |= {"label": max(by_label, key=by_label.__getitem__), "probabilities": by_label}
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        typer.echo("\n".join(_text(p, r) for p, r in zip(places, records, strict=True) if r["ok"]))
    exit_on_failures(places, results)


def read_labels(text: str) -> dict[str, list[str]]:
    """Parse `"water=river|lake,forest"` to `{"water": ["river", "lake"], "forest": ["forest"]}`.

    Raises:
        SpecError: if a label is empty or given twice.
    """
    labels: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, synonyms = (side.strip() for side in part.partition("="))
        words = [word.strip() for word in (synonyms or name).split("|")]
        if not name or not all(words) or name in labels:
            raise SpecError(f'--labels {text!r}: {part.strip()!r} is empty or twice; write "forest,water=river|lake"')
        labels[name] = words
    return labels


def _text(named: NamedPlace, record: dict[str, Any]) -> str:
    ranked = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])
    width = max(len(name) for name, _ in ranked)
    bars = [f"   {name:<{width}} {value:6.1%} {'█' * round(value * _BAR_WIDTH)}" for name, value in ranked]
    return "\n".join([f"{named.id}  {describe(named.place)}", *bars])
