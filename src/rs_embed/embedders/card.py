"""What a model is, in one row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One row of the table of models."""

    name: str
    summary: str
    checkpoint: str
    """Hub repo, or `package:<folder>` for weights that install with the package."""
    dn_range: tuple[float, float] = (0.0, 10_000.0)
    """DN stretched to 0…255 before the network sees them."""
    aliases: tuple[str, ...] = ()
    backbone: str = "CLIP ViT-B/32"
    image_px: int = 224
    patch_px: int = 32
    token_dim: int = 768
    projection_dim: int = 512
    activation: str = "gelu"
    """What the default checkpoint is run with, unless its own config says otherwise."""
    licence: str = ""
    limits: str = ""
    """What it does not know, and what nobody has measured."""
