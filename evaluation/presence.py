"""Vectors of EuroSAT chips for presence and familiarity, and datasets drawn from them.

Chips that were held out of training are halved: thresholds are chosen on one half and measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.eurosat import HAZE_OUT, NO_HAZE, ROOT, Chips, open_eurosat
from evaluation.measure import open_model
from rs_embed.arrays import FloatArray
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import find_weights
from rs_embed.embedders.text import unit
from rs_embed.search.presence import Presence, judge
from rs_embed.specs import OutputSpec

MODEL = "clip_eurosat_s2rgb"
CACHE = ROOT / "benchmarks" / "data"
TRAINING_CHIPS = 1500
TURNS = 4
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Vectors:
    """CLIP projections and token means of the same chips."""

    projected: FloatArray
    """(n, 128) unit vectors."""
    token_mean: FloatArray
    labels: np.ndarray


def read_vectors(folder: Path = CACHE) -> dict[str, Vectors]:
    """Return the vectors of training chips ("training") and of both halves of the others ("chosen", "measured").

    All are there with the haze and without. Those without it are also flipped in the half "measured", so that 5,000 can
    be drawn. Vectors are kept in `folder`, for each file of weights.
    """
    file = folder / f"presence-{weights_sha256()[:12]}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(file, **_embed_all(open_eurosat()))
    with np.load(file) as stored:
        return {
            name: Vectors(unit(stored[f"{name}_projected"]), stored[f"{name}_token_mean"], stored[f"{name}_labels"])
            for name in ("training", "chosen", "measured")
        }


def weights_sha256() -> str:
    """Return the digest of the bundled weights."""
    return digest_of(find_weights(find_card(MODEL).checkpoint)).result()


def _embed_all(chips: Chips) -> dict[str, np.ndarray]:
    training = np.random.default_rng(0).permutation(chips.train)[:TRAINING_CHIPS]
    halves = {"training": training, "chosen": chips.held_out[::2], "measured": chips.held_out[1::2]}
    found: dict[str, np.ndarray] = {}
    for name, indexes in halves.items():
        variants = [(HAZE_OUT, 0), (NO_HAZE, 0)] + [(HAZE_OUT, t) for t in range(1, TURNS) if name == "measured"]
        parts = [_embed(chips, indexes, haze, turn) for haze, turn in variants]
        for kind, arrays in zip(("projected", "token_mean"), zip(*parts, strict=True), strict=True):
            found[f"{name}_{kind}"] = np.concatenate(arrays)
        found[f"{name}_labels"] = np.tile(chips.labels[indexes], len(variants))
    return found


def _embed(
    chips: Chips, indexes: np.ndarray, haze: tuple[float, float, float], turn: int
) -> tuple[FloatArray, FloatArray]:
    """Return projections and token means of chips; `turn` 1 flips rows, 2 columns, 3 both."""
    images, found = open_model(MODEL, None).images, []
    for part in np.split(indexes, range(_BATCH, len(indexes), _BATCH)):
        turned = [chips.dn(i, haze)[:, :: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1] for i in part]
        ready = [images.preparation.cut(np.ascontiguousarray(dn), fill_value=0.0, prep="resize") for dn in turned]
        found += images.encode(ready, OutputSpec.pooled("mean"))
    return np.stack([e.projected for e in found]), np.stack([e.array for e in found])


Ranked = Callable[[int, np.ndarray], tuple[np.ndarray, FloatArray]]
"""Function of a query and positions of chips: the order of the best, and their logarithmic ratios."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One dataset drawn from chips, the judgement about it, and which of its rows, best first, show the words."""

    query: int
    presence: Presence
    right: np.ndarray


def draw(
    labels: np.ndarray,
    ranked: Ranked,
    *,
    size: int,
    true: int,
    repeats: int,
    seed: int,
) -> Iterator[Drawn]:
    """Yield datasets of `size` chips, `true` of which show the words of a query, `repeats` for each query."""
    rng = np.random.default_rng(seed)
    for query in range(int(labels.max()) + 1):
        shown, others = np.flatnonzero(labels == query), np.flatnonzero(labels != query)
        for _ in range(repeats):
            chosen = np.concatenate(
                [rng.choice(shown, true, replace=False), rng.choice(others, size - true, replace=False)]
            )
            order, ratios = ranked(query, chosen)
            presence = judge(ratios, np.zeros(len(ratios), bool), searched=size, unlike=0)
            yield Drawn(query, presence, labels[chosen[order]] == query)
