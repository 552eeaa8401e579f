"""`rs-embed models`: the list of models, and the card of each."""

from __future__ import annotations

import json
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
        return
    for card in described:
        typer.echo(_card(card) if name else f"{card['name']:<26}{card['summary']}")


def _card(card: dict[str, Any]) -> str:
    lines = [
        f"{card['name']}: {card['summary']}",
        f"   weights     {card['checkpoint']} ({card['licence']})",
        f"   network     {card['backbone']}, {card['image_px']} px, patches of {card['patch_px']} px",
        f"   pixels      {card['input']['pixels']}",
    ]
    lines += [f"   {output:<20}{meaning}" for output, meaning in card["outputs"].items()]
    lines += [
        f"   a place of {row['side_m']:>5} m: {row['metres_per_pixel']:.1f} m a pixel, "
        f"{row['metres_per_token']:.0f} m a token"
        for row in card["place_sizes"]
    ]
    lines += [f"   limits      {card['limits']}"]
    if card["card"]:
        lines += ["", card["card"].strip()]
    return "\n".join(lines)
