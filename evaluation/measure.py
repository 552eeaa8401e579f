"""Figures of a CLIP model on EuroSAT: zero-shot, retrieval, nearest neighbour and linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.eurosat import CLASSES, HAZE_OUT, NO_HAZE, Chips
from evaluation.scores import accuracy, linear_probe, nearest_neighbour, precision_at
from rs_embed.arrays import FloatArray
from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.model import Activation
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import find_weights, load_embedder
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.text import RS_TEMPLATES, TextEmbedder, load_text_embedder, unit
from rs_embed.specs import OutputSpec

PROBE_CHIPS = 5000


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """Checkpoint under test, with its DN range and activation."""

    images: RemoteClipEmbedder
    texts: TextEmbedder

    def embed(
        self, chips: Chips, indexes: np.ndarray, haze: tuple[float, float, float], output: OutputSpec
    ) -> FloatArray:
        ready = [self.images.preparation.cut(chips.dn(i, haze), fill_value=0.0, prep="resize") for i in indexes]
        return np.stack(self.images.embed(ready, output))


def open_model(
    name: str,
    checkpoint: str | None,
    dn_range: tuple[float, float] | None = None,
    activation: Activation | None = None,
) -> EvaluatedModel:
    """Load a model by its name; `dn_range` and `activation` replace those of its card and its checkpoint."""
    card = find_card(name)
    card = card if dn_range is None else replace(card, dn_range=dn_range)
    images = load_embedder(card, checkpoint=checkpoint, device="auto", precision="fp32")
    texts = load_text_embedder(card, checkpoint=checkpoint, device="auto")
    if activation is None:
        return EvaluatedModel(images, texts)
    opened = open_checkpoint(find_weights(checkpoint or card.checkpoint))
    other = replace(opened, config=replace(opened.config, activation=activation))
    return EvaluatedModel(
        replace(images, network=other.load_vision().to(images.device), activation=activation),
        replace(texts, tower=other.load_text().to(texts.device)),
    )


def measure(
    model: EvaluatedModel, chips: Chips, held_out_wordings: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, float]:
    """Return all figures of a model; keys that end in `_haze_out` are for chips with the haze subtracted."""
    labels = chips.labels[chips.held_out]
    found: dict[str, float] = {}
    by_name = model.texts.embed(names, RS_TEMPLATES)
    others = [
        (c, model.texts.embed([wording], RS_TEMPLATES)[0]) for c, row in enumerate(held_out_wordings) for wording in row
    ]
    for ending, haze in (("", NO_HAZE), ("_haze_out", HAZE_OUT)):
        images = model.embed(chips, chips.held_out, haze, OutputSpec.pooled("projected"))
        scores = unit(images) @ unit(by_name).T
        found[f"zero_shot{ending}"] = accuracy(images, by_name, labels)
        found[f"p_at_10_names{ending}"] = float(
            np.mean([precision_at(10, scores[:, c], labels == c) for c in range(len(CLASSES))])
        )
        found[f"p_at_10_other_wordings{ending}"] = float(
            np.mean([precision_at(10, unit(images) @ text, labels == c) for c, text in others])
        )
        found[f"nearest_neighbour{ending}"] = nearest_neighbour(images, labels)
    return found


def measure_pooling(model: EvaluatedModel, chips: Chips) -> dict[str, dict[str, float]]:
    """Return linear probe and nearest-neighbour accuracy of each pooling."""
    train = np.random.default_rng(0).permutation(chips.train)[:PROBE_CHIPS]
    labels, train_labels = chips.labels[chips.held_out], chips.labels[train]
    found = {}
    for pooling in ("mean", "projected"):
        output = OutputSpec.pooled(pooling)
        fit, test = (model.embed(chips, part, NO_HAZE, output) for part in (train, chips.held_out))
        standardised = (test - fit.mean(axis=0)) / (fit.std(axis=0) + 1e-6)
        found[pooling] = {
            "linear_probe": linear_probe(fit, train_labels, test, labels),
            "nearest_neighbour": nearest_neighbour(test, labels),
            "nearest_neighbour_standardised": nearest_neighbour(standardised, labels),
        }
    return found
