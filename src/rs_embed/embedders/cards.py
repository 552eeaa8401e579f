"""The table of models. It needs no numpy or torch, no weights and no network."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rs_embed.errors import UnknownModelError

_REMOTECLIP = "MVRL/remote-clip-vit-base-patch32"


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
    """Activation of the default checkpoint, unless its config names another."""
    licence: str = ""
    limits: str = ""


CARDS = (
    ModelCard(
        name="remoteclip_s2rgb",
        aliases=("remoteclip",),
        summary="RemoteCLIP ViT-B/32 on Sentinel-2 RGB, DN/10000 as the seed has it",
        checkpoint=_REMOTECLIP,
        licence="Apache-2.0 (weights: chendelong/RemoteCLIP)",
        limits="Trained on aerial and high-resolution images; not measured on Sentinel-2. DN/10000 gives dark images.",
    ),
    ModelCard(
        name="remoteclip_s2rgb_bright",
        summary="the same weights with DN 0…3000 stretched to the full grey range",
        checkpoint=_REMOTECLIP,
        dn_range=(0.0, 3000.0),
        licence="Apache-2.0 (weights: chendelong/RemoteCLIP)",
        limits="Not measured on Sentinel-2, nor compared with remoteclip_s2rgb.",
    ),
    ModelCard(
        name="clip_eurosat_s2rgb",
        aliases=("clip_eurosat",),
        summary="a small CLIP that ships with the package, trained on EuroSAT: works at once, with no download",
        checkpoint="package:clip_eurosat",
        dn_range=(0.0, 2750.0),
        backbone="CLIP ViT-S (192 x 6)/32",
        token_dim=192,
        projection_dim=128,
        licence="Apache-2.0 (weights); trained on EuroSAT (Helber et al., MIT), modified Copernicus Sentinel data",
        limits="Knows ten kinds of land and some 180 English words for them, nothing else: no cloud, snow, desert or "
        "season. For a first run, tests and teaching; use RemoteCLIP for work.",
    ),
)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Agreement of a lower precision with fp32, for the bundled model on 3,000 chips that nothing was tuned to."""

    cosine: float
    """The lowest cosine of two projections, rounded down."""
    words_pct: float
    """Share of the ten best chips for a word that are the same."""

    def text(self) -> str:
        """Return both figures as a sentence for the model card."""
        return f"cosine with fp32 at least {self.cosine}, {self.words_pct} % of the ten best for words are the same"


LOWER_PRECISIONS = {"bf16": Fidelity(0.997, 96.1), "int8": Fidelity(0.993, 93.6)}
"""The only place of these figures; README and `describe_model` quote it."""

PACKAGE = "package:"  # marks a checkpoint that is a folder beside this module

_EXAMPLE_SIDES_M = (640, 1200, 2240, 4096)


def find_card(model: str) -> ModelCard:
    """Return the card of a model's name or alias."""
    names = {name: card for card in CARDS for name in (card.name, *card.aliases)}
    if isinstance(model, str) and model in names:
        return names[model]
    close = difflib.get_close_matches(str(model).lower().replace("-", "_"), names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    raise UnknownModelError(f"unknown model {model!r}{guess}; known: {', '.join(c.name for c in CARDS)}")


def list_models() -> list[str]:
    """Return the names of the models, without their aliases.

    Examples:
        >>> from rs_embed import list_models
        >>> list_models()
        ['remoteclip_s2rgb', 'remoteclip_s2rgb_bright', 'clip_eurosat_s2rgb']
    """
    return [card.name for card in CARDS]


def describe_model(model: str) -> dict[str, Any]:
    """Return a model's card, its outputs and the scale of its tokens for places of several sizes, JSON-ready.

    Args:
        model: a name of `list_models()`, or an alias such as "remoteclip".

    Raises:
        UnknownModelError: for an unknown name.

    Examples:
        >>> from rs_embed import describe_model
        >>> card = describe_model("remoteclip")
        >>> card["name"], card["backbone"], card["projection_dim"]
        ('remoteclip_s2rgb', 'CLIP ViT-B/32', 512)
    """
    card = find_card(model)
    grid = card.image_px // card.patch_px
    return {
        **asdict(card),
        **_shipped_facts(card),
        "type": "on_the_fly",
        "input": {
            "bands": ["B4", "B3", "B2"],
            "collection": "COPERNICUS/S2_SR_HARMONIZED",
            "scale_m": 10,
            "cloudy_pct": 30,
            "composite": "median",
            "temporal": "TemporalSpec.range(start, end) required",
            "pixels": f"DN {card.dn_range[0]:g}…{card.dn_range[1]:g} to 0…255, truncated; shorter side to "
            f"{card.image_px} px bicubic; centre crop; CLIP mean and standard deviation",
        },
        "outputs": {
            "pooled('mean')": f"({card.token_dim},) mean of all tokens; standardise before cosine similarity",
            "pooled('projected')": f"({card.projection_dim},) CLIP projection, the space shared with texts",
            "grid()": f"({card.token_dim}, {grid}, {grid}) patch tokens, row 0 north",
        },
        "precision": {
            "fp32": "at most 1e-5 of the largest element from batch to batch",
            **{name: measured.text() for name, measured in LOWER_PRECISIONS.items()},
            "fp16": "CUDA; not measured",
        },
        "place_sizes": [
            {"side_m": side, "metres_per_pixel": side / card.image_px, "metres_per_token": side / grid}
            for side in _EXAMPLE_SIDES_M
        ],
    }


@lru_cache(maxsize=64)
def shipped_folder(checkpoint: str) -> Path | None:
    """Return the folder of a checkpoint that installs with the package; None for any other."""
    name = checkpoint.removeprefix(PACKAGE)
    return Path(__file__).parent / name if checkpoint.startswith(PACKAGE) and name.isidentifier() else None


def _shipped_facts(card: ModelCard) -> dict[str, Any]:
    """Return the long card and the measured figures of weights that install with the package."""
    folder = shipped_folder(card.checkpoint)
    if folder is None:
        return {"card": None, "figures": None}
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"card": (folder / "CARD.md").read_text(encoding="utf-8"), "figures": figures["held_out"]}
