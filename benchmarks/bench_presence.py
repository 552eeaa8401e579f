"""Verdicts on whether a dataset holds what words ask for: how often they are wrong, and how often none is given.

`python -m benchmarks.bench_presence`. Datasets are drawn from EuroSAT chips, for the bundled model, and from
RemoteCLIP's own vectors of WHU-RS19. All thresholds were chosen on one half of the held-out chips;
all figures are of the other half, and of vectors that nothing was chosen on.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio

from benchmarks import bench_whurs19
from evaluation.eurosat import DATA, load_captions
from evaluation.presence import MODEL, Drawn, Ranked, draw, read_vectors, weights_sha256
from rs_embed import (
    Embedding,
    EmbeddingIndex,
    OutputSpec,
    PointBuffer,
    TemporalSpec,
    fetch_patch,
    get_embeddings_batch,
    list_samples,
)
from rs_embed.arrays import FloatArray
from rs_embed.cli.demo.samples import export_samples
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.familiarity import find_statistics
from rs_embed.embedders.text import load_text_embedder, unit
from rs_embed.providers.sample import Sample
from rs_embed.search.presence import JUDGED, judge, log_ratios
from rs_embed.search.query import known_words, query_vector, word_log_ratios, word_query

TRUE = (0, 1, 3, 20)
BINS = (0.05, 0.2, 0.5, 0.8, 0.95, 1.0)
SEEN = {
    *("annual crops", "bushes", "coniferous forest", "cropland", "deciduous forest", "farm fields", "forest"),
    *("grassland", "heath", "houses", "lake", "meadow", "open water", "pasture", "reservoir", "road", "shrubs"),
    *("vegetation", "village", "wheat field"),
}
"""Words of the page's suggestions that a person sees in the demo's places; the others are not there."""


def ranked_by(scores: FloatArray, ratios: FloatArray) -> Ranked:
    """Return the ranking of a search by scores (queries, n), with the ratios (queries, n) of the best rows."""

    def ranked(query: int, chosen: np.ndarray) -> tuple[np.ndarray, FloatArray]:
        order = np.argsort(-scores[query, chosen], kind="stable")[:JUDGED]
        return order, ratios[query, chosen[order]]

    return ranked


def of_eurosat() -> tuple[Ranked, np.ndarray]:
    """Return the ranking of the measured half by the ten class names, and its labels."""
    texts, half = load_text_embedder(find_card(MODEL), checkpoint=None, device="cpu"), read_vectors()["measured"]
    names, images = load_captions().names, half.projected
    scores = np.stack([images @ word_query(texts, [name]) for name in names])
    return ranked_by(scores, np.stack([word_log_ratios(texts, [name], images) for name in names])), half.labels


def of_whurs19() -> tuple[Ranked, np.ndarray]:
    """Return the ranking of RemoteCLIP's vectors by the 19 classes, each against the other 18, and their labels."""
    images, labels, prompts = bench_whurs19.read()
    texts = unit(np.mean([unit(prompts[name]) for name in bench_whurs19.EIGHT], axis=0))
    others = [np.delete(texts, c, axis=0) for c in range(len(texts))]
    scores = np.stack([images @ query_vector(t[None], background=o) for t, o in zip(texts, others, strict=True)])
    ratios = np.stack([log_ratios(text, other, images, 100) for text, other in zip(texts, others, strict=True)])
    return ranked_by(scores, ratios), labels


def verdicts(name: str, ranked: Ranked, labels: np.ndarray, sizes: Sequence[int]) -> list[str]:
    """Return one line for each size of a dataset."""
    lines = []
    for size in sizes:
        parts = []
        for true in TRUE[: 3 if size == 20 else 4]:
            drawn = list(draw(labels, ranked, size=size, true=true, repeats=100, seed=0))
            said = [d.presence.verdict for d in drawn]
            wrong = said.count("present" if true == 0 else "absent") / len(said)
            parts.append(f"{true} true {wrong:.1%} wrong, {said.count('unclear') / len(said):.0%} unclear")
        lines.append(f"presence, {name}, {size:,} places: {'; '.join(parts)}")
    return lines


def likelihood(name: str, drawn: Sequence[Drawn]) -> str:
    """Return the share of hits that are right, by the probability they are shown with, among the best 20 of each."""
    shown = np.concatenate([d.presence.probabilities[:20] for d in drawn])
    right = np.concatenate([d.right[:20] for d in drawn])
    parts = []
    for low, high in itertools.pairwise(BINS):
        inside = (shown >= low) & (shown < high)
        parts.append(f"{low:.0%} to {high:.0%}: {right[inside].mean():.0%} of {inside.sum():,}")
    return f"likelihood of hits, {name}, and the share that is right: {', '.join(parts)}"


def removed(ranked: Ranked, labels: np.ndarray) -> str:
    """Return how the verdicts are on all of WHU-RS19, with each class there and taken out."""
    right = 0
    for query in range(int(labels.max()) + 1):
        for chosen, wanted in ((np.arange(len(labels)), "present"), (np.flatnonzero(labels != query), "absent")):
            _, ratios = ranked(query, chosen)
            found = judge(ratios, np.zeros(len(ratios), bool), searched=len(chosen), unlike=0)
            right += found.verdict == wanted
    return f"presence, WHU-RS19, whole and without each class: {right} of {2 * int(labels.max() + 1)} right"


def familiarity() -> str:
    """Return how often imagery is said to be unlike the training images: of the same kind, desert, and snow."""
    statistics, half = find_statistics(weights_sha256()), read_vectors()["measured"]
    assert statistics is not None
    snow = fetch_patch(*_place(list_samples()[-1]), backend="sample").dn
    groups = {"squares of the Sahara at 100 m": _desert(), "squares of the demo's snow": list(_squares(snow, 28))}
    found = {"EuroSAT's measured chips": statistics.unlike(half.token_mean)}
    for name, pixels in groups.items():
        vectors = get_embeddings_batch(MODEL, input_chws=pixels, output=OutputSpec.pooled())
        found[name] = statistics.unlike(np.stack([np.asarray(v.data) for v in vectors if isinstance(v, Embedding)]))
    shares = ", ".join(f"{share.mean():.1%} of {len(share):,} {name}" for name, share in found.items())
    return f"unlike the training images: {shares}"


def _place(sample: Sample) -> tuple[PointBuffer, TemporalSpec]:
    return PointBuffer(sample.lon, sample.lat, sample.buffer_m), TemporalSpec.range(sample.start, sample.end)


def _desert() -> list[FloatArray]:
    """Return observed squares of the real Earth Search scene of the Sahara, which is thinned out to 100 m."""
    folder, bands = DATA.parents[1] / "earth_search_cogs", []
    for band in ("B04", "B03", "B02"):
        with rasterio.open(folder / f"S2A_29RKH_20200219_0_L2A_{band}.tif") as file:
            bands.append(file.read(1).astype(np.float32))
    return [square for square in _squares(np.stack(bands), 64) if square.all()][:120]


def _squares(dn: FloatArray, step: int, side: int = 64) -> Iterator[FloatArray]:
    """Yield all squares (3, side, side) of imagery (3, y, x)."""
    _, height, width = dn.shape
    for y, x in itertools.product(range(0, height - side + 1, step), range(0, width - side + 1, step)):
        yield dn[:, y : y + side, x : x + side]


def demo() -> str:
    """Return how the verdicts on the demo's dataset compare with what a person sees."""
    with tempfile.TemporaryDirectory() as folder:
        index = EmbeddingIndex(export_samples(list_samples(), Path(folder), MODEL))
        words = known_words(index.weights.texts())
        said = [(index.search(word).presence, word in SEEN) for word in words]
    right = sum(verdict == ("present" if seen else "absent") for verdict, seen in said)
    unclear = sum(verdict == "unclear" for verdict, _ in said)
    return f"presence, the demo's 54 places, {len(said)} suggested words: {right} right by eye, {unclear} unclear"


def report() -> list[str]:
    """Print the results, a line each."""
    if not (DATA.exists() and bench_whurs19.DATA.exists()):
        print(f"{DATA.name} or {bench_whurs19.DATA.name} is not at hand: nothing was measured", flush=True)
        return []
    eurosat, whurs19 = of_eurosat(), of_whurs19()
    lines = [
        *verdicts("EuroSAT, bundled model", *eurosat, (20, 200, 5000)),
        *verdicts("WHU-RS19, RemoteCLIP's own vectors", *whurs19, (20, 200, 900)),
        removed(*whurs19),
    ]
    for name, (ranked, labels) in (("EuroSAT", eurosat), ("WHU-RS19", whurs19)):
        drawn = [d for t in (1, 3, 20) for d in draw(labels, ranked, size=200, true=t, repeats=40, seed=1)]
        lines.append(likelihood(f"{name}, 200 places", drawn))
    lines += [familiarity(), demo()]
    print("\n".join(lines), flush=True)
    return lines


if __name__ == "__main__":
    report()
