"""Effect of bf16 and int8: cosine with float32, the ten best hits for words and for an image, and speed.

`python -m benchmarks.bench_precision`. The bundled model on the held-out EuroSAT chips, and random weights of
RemoteCLIP's shape on some of them, since RemoteCLIP's own weights are not available offline.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from benchmarks.oracle import random_checkpoint
from benchmarks.timing import seconds_of
from evaluation.eurosat import DATA, NO_HAZE, open_eurosat
from rs_embed import OutputSpec, get_embeddings_batch
from rs_embed.arrays import FloatArray
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.text import load_text_embedder, unit
from rs_embed.search.query import known_words, text_query

BUNDLED, SHAPED = "clip_eurosat_s2rgb", "remoteclip_s2rgb"
LOWER = ("bf16", "int8")
K, SHAPED_CHIPS, TURNS = 10, 480, 3


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors of the same chips in each precision, (n, d)."""

    by_precision: dict[str, FloatArray]
    seconds: dict[str, list[float]]
    """Seconds of each turn, by precision."""

    def speed(self, precision: str) -> float:
        """Return the speed relative to float32, the median over turns."""
        pairs = zip(self.seconds["fp32"], self.seconds[precision], strict=True)
        return statistics.median(exact / other for exact, other in pairs)

    def cosine(self, precision: str) -> FloatArray:
        """Return the cosine with float32 of each chip."""
        found: FloatArray = (self.by_precision["fp32"] * self.by_precision[precision]).sum(axis=1)
        return found

    def overlap(self, precision: str, queries: FloatArray) -> float:
        """Return the share of the ten best hits in float32 that are among the ten best hits."""
        exact, other = (_best(self.by_precision[p] @ queries.T) for p in ("fp32", precision))
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(exact.T, other.T, strict=True)]))


def _best(scores: FloatArray) -> np.ndarray:
    return np.argsort(-scores, axis=0)[:K]


def _embed(model: str, patches: list[np.ndarray], checkpoint: str | None) -> Vectors:
    output, found = OutputSpec.pooled("projected"), {}
    seconds: dict[str, list[float]] = {precision: [] for precision in ("fp32", *LOWER)}

    def run(precision: str) -> None:
        results = get_embeddings_batch(
            model, input_chws=patches, output=output, checkpoint=checkpoint, precision=precision, device="cpu"
        )
        found[precision] = unit(np.stack([np.asarray(r.data) for r in results]))

    for _ in range(TURNS):
        for precision, spent in seconds.items():
            spent.append(seconds_of(lambda p=precision: run(p)))
    return Vectors(found, seconds)


def _line(name: str, vectors: Vectors, precision: str, overlaps: dict[str, float]) -> str:
    cosine = vectors.cosine(precision)
    shares = ", ".join(f"{value:.1%} of the ten best for {what}" for what, value in overlaps.items())
    return (
        f"{precision}, {name}: cosine with fp32 at least {cosine.min():.4f}, "
        f"1st percentile {np.percentile(cosine, 1):.4f}, median {np.median(cosine):.4f}, "
        f"{shares}, {vectors.speed(precision):.2f} times as fast"
    )


def report() -> list[str]:
    """Print one line per precision and model."""
    if not DATA.exists():
        print(f"{DATA.name} is not at hand: nothing was measured", flush=True)
        return []
    chips = open_eurosat()
    held_out = [chips.dn(i, NO_HAZE) for i in chips.held_out]
    some = held_out[:: len(held_out) // SHAPED_CHIPS]
    texts = load_text_embedder(find_card(BUNDLED), checkpoint=None, device="cpu")
    words = np.stack([text_query(BUNDLED, word) for word in known_words(texts)])
    lines = []
    for name, model, patches, checkpoint in (
        (f"bundled model, {len(held_out):,} EuroSAT chips", BUNDLED, held_out, None),
        (f"random ViT-B/32, {len(some)} of them", SHAPED, some, str(random_checkpoint())),
    ):
        vectors = _embed(model, patches, checkpoint)
        images = vectors.by_precision["fp32"][::8]
        for precision in LOWER:
            overlaps = {"an image": vectors.overlap(precision, images)}
            if model == BUNDLED:
                overlaps = {"words": vectors.overlap(precision, words), **overlaps}
            lines.append(_line(name, vectors, precision, overlaps))
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    report()
