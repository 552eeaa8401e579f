"""Zero-shot, retrieval, neighbours and linear probe of any checkpoint on EuroSAT, by any stretch and activation.

    python -m benchmarks.bench_eurosat                                         # the model that ships
    python -m benchmarks.bench_eurosat --checkpoint MVRL/remote-clip-vit-base-patch32

With a checkpoint and nothing else, DN 0…10000 (`remoteclip_s2rgb`) and 0…3000 (`_bright`) are measured, each with GELU
and QuickGELU: one command settles both questions. Each figure stands twice: chips as they are (L1C, haze in) and with
the haze taken out, which is near the L2A that the library feeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.scores import FloatArray, accuracy, linear_probe, nearest_neighbour, precision_at
from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.model import Activation
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import find_weights, load_embedder, load_text_embedder
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.text import RS_TEMPLATES, TextEmbedder, unit
from rs_embed.specs import OutputSpec
from training.eurosat import CLASSES, HAZE_OUT, Chips, load_captions, load_chips

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "eurosat" / "eurosat_rgb.tar"
SPLIT = {"held_out_frac": 0.1, "seed": 20261123}
"""The split of `training/config.toml`."""
NO_HAZE = (0.0, 0.0, 0.0)
PROBE_CHIPS = 5000


def eurosat(data: Path = DATA) -> Chips:
    """All chips, in the split that the bundled model was trained on; what was decoded once is kept."""
    return load_chips(data, ROOT / "benchmarks" / "data" / "eurosat.npz", **SPLIT)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: one checkpoint, read in one way."""

    images: RemoteClipEmbedder
    texts: TextEmbedder

    def embed(
        self, chips: Chips, indexes: np.ndarray, haze: tuple[float, float, float], output: OutputSpec
    ) -> FloatArray:
        ready = [self.images.preparation.cut(chips.dn(i, haze), fill_value=0.0, prep="resize") for i in indexes]
        return np.stack(self.images.embed(ready, output))


def open_subject(
    model: str,
    checkpoint: str | None,
    dn_range: tuple[float, float] | None = None,
    activation: Activation | None = None,
) -> Subject:
    card = find_card(model)
    card = card if dn_range is None else replace(card, dn_range=dn_range)
    images = load_embedder(card, checkpoint=checkpoint, device="auto", precision="fp32")
    texts = load_text_embedder(card, checkpoint=checkpoint, device="auto")
    if activation is None:
        return Subject(images, texts)
    opened = open_checkpoint(find_weights(checkpoint or card.checkpoint))
    other = replace(opened, config=replace(opened.config, activation=activation))
    return Subject(
        replace(images, network=other.load_vision().to(images.device), activation=activation),
        replace(texts, tower=other.load_text().to(texts.device)),
    )


def measure(
    subject: Subject, chips: Chips, held_out_wordings: Sequence[Sequence[str]], names: Sequence[str]
) -> dict[str, float]:
    """All figures of a subject; keys ending in `_haze_out` are those with the haze taken out."""
    labels = chips.labels[chips.held_out]
    found: dict[str, float] = {}
    by_name = subject.texts.embed(names, RS_TEMPLATES)
    others = [
        (c, subject.texts.embed([wording], RS_TEMPLATES)[0])
        for c, row in enumerate(held_out_wordings)
        for wording in row
    ]
    for ending, haze in (("", NO_HAZE), ("_haze_out", HAZE_OUT)):
        images = subject.embed(chips, chips.held_out, haze, OutputSpec.pooled("projected"))
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


def measure_pooling(subject: Subject, chips: Chips) -> dict[str, dict[str, float]]:
    """Linear probe and 1-NN of each vector: which one is for what."""
    train = np.random.default_rng(0).permutation(chips.train)[:PROBE_CHIPS]
    labels, train_labels = chips.labels[chips.held_out], chips.labels[train]
    found = {}
    for pooling in ("mean", "projected"):
        output = OutputSpec.pooled(pooling)
        fit, test = (subject.embed(chips, part, NO_HAZE, output) for part in (train, chips.held_out))
        standardised = (test - fit.mean(axis=0)) / (fit.std(axis=0) + 1e-6)
        found[pooling] = {
            "linear_probe": linear_probe(fit, train_labels, test, labels),
            "nearest_neighbour": nearest_neighbour(test, labels),
            "nearest_neighbour_standardised": nearest_neighbour(standardised, labels),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="default: clip_eurosat_s2rgb, with --checkpoint remoteclip_s2rgb")
    parser.add_argument("--checkpoint", help="hub repo, folder or file")
    parser.add_argument("--dn-range", nargs=2, type=float, metavar=("LOW", "HIGH"))
    parser.add_argument("--activation", choices=("gelu", "quick_gelu"))
    parser.add_argument("--data", type=Path, default=DATA, help="eurosat_rgb.tar")
    options = parser.parse_args()
    model = options.model or ("remoteclip_s2rgb" if options.checkpoint else "clip_eurosat_s2rgb")
    ranges, activations = [tuple(options.dn_range)] if options.dn_range else [None], [options.activation]
    if options.checkpoint and not options.dn_range:
        ranges = [(0.0, 10_000.0), (0.0, 3000.0)]
    if options.checkpoint and not options.activation:
        activations = ["gelu", "quick_gelu"]
    chips = eurosat(options.data)
    wordings = load_captions(ROOT / "training" / "captions.toml")
    for dn_range in ranges:
        for activation in activations:
            subject = open_subject(model, options.checkpoint, dn_range, activation)
            low, high = subject.images.card.dn_range
            print(f"\n{model} {options.checkpoint or ''} DN {low:g}…{high:g} {subject.images.activation}")
            for name, value in measure(subject, chips, wordings.held_out, wordings.names).items():
                print(f"   {name:<36}{value:.3f}")
            for pooling, row in measure_pooling(subject, chips).items():
                print(f"   {pooling:<12}" + "   ".join(f"{name} {value:.3f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
