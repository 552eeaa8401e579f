"""`rs-embed models`: the list of models, and the card of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer import Argument

from rs_embed.cli import options


def models(
    name: Annotated[str | None, Argument(help="Describe this model.")] = None, as_json: options.Json = False
) -> None:
    """List the models, or describe one."""
    from rs_embed.embedders.cards import describe_model, list_models

    described = [describe_model(n) for n in ([name] if name else list_models())]
    if as_json:
        typer.echo(json.dumps(described[0] if name else described, indent=1))
    elif name:
        typer.echo("\n".join(_card(described[0])))
    else:
        typer.echo("\n".join(f"{card['name']:<26}{card['summary']}" for card in described))


def _card(card: dict[str, Any]) -> Iterator[str]:
    yield f"{card['name']}: {card['summary']}"
    yield f"   weights     {card['checkpoint']} ({card['licence']})"
    yield f"   network     {card['backbone']}, {card['image_px']} px, patches of {card['patch_px']} px"
    yield f"   pixels      {card['input']['pixels']}"
    yield from (f"   {output:<20}{meaning}" for output, meaning in card["outputs"].items())
    for row in card["place_sizes"]:
        detail = f"{row['metres_per_pixel']:.1f} m a pixel, {row['metres_per_token']:.0f} m a token"
        yield f"   a place of {row['side_m']:>5} m: {detail}"
    yield f"   limits      {card['limits']}"
    if card["card"]:
        yield f"\n{card['card'].strip()}"
