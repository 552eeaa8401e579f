"""Effect of the background vocabulary on text search, with real RemoteCLIP vectors.

`python -m benchmarks.bench_whurs19`. The vectors are RemoteCLIP ViT-B/32's of WHU-RS19: 1,005 aerial
images of 19 classes, none of them from Sentinel-2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation.scores import average_precision, precision_at
from rs_embed.arrays import FloatArray
from rs_embed.embedders.text import unit
from rs_embed.search.query import query_vector

DATA = Path(__file__).parents[2] / "shared" / "data" / "remoteclip_whurs19" / "remoteclip_vit_b_32.npz"
EIGHT = (
    *("a_satellite_image_of_a", "a_satellite_image_of_the", "a_satellite_image_of_a_large", "a_satellite_photo_of_a"),
    *("an_aerial_image_of_a", "an_aerial_image_of_the", "a_remote_sensing_image_of_a", "a_remote_sensing_image_of_the"),
)
"""Names in the data of the library's own templates."""
PROMPT = "a_satellite_image_of_the"
SPLITS, BACKGROUND_CLASSES = 30, 9


def read(data: Path = DATA) -> tuple[FloatArray, np.ndarray, dict[str, FloatArray]]:
    """Return images (1005, 512), their classes, and the texts of each prompt (19, 512)."""
    with np.load(data, allow_pickle=True) as stored:  # names are stored as objects
        prompts = dict(zip(map(str, stored["prompt_names"]), stored["text_embeddings"], strict=True))
        return stored["image_embeddings"], stored["class_index"], prompts


def table(images: FloatArray, labels: np.ndarray, prompts: dict[str, FloatArray]) -> list[tuple[str, float, float]]:
    """Return name, mAP and P@10 of each kind of query, over all 19 classes."""
    one, eight = prompts[PROMPT], unit(np.mean([unit(prompts[name]) for name in EIGHT], axis=0))
    many = prompts["averageprompt"]
    rows = []
    for name, texts in (("one prompt", one), ("eight templates", eight), ("106 templates", many)):
        rows.append((f"cosine, {name}", *_scores(images, labels, unit(texts))))
        queries = np.stack([query_vector(texts[[c]], background=np.delete(texts, c, axis=0)) for c in range(19)])
        rows.append((f"minus the background, {name}", *_scores(images, labels, queries)))
    return rows


def unseen_classes(images: FloatArray, labels: np.ndarray, texts: FloatArray) -> float:
    """Return the mean mAP with 9 classes as background and the other 10 as queries, over 30 seeded splits."""
    found = []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(texts))
        background, asked = texts[order[:BACKGROUND_CLASSES]], order[BACKGROUND_CLASSES:]
        scores = [images @ query_vector(texts[[c]], background=background) for c in asked]
        found.append(np.mean([average_precision(s, labels == c) for s, c in zip(scores, asked, strict=True)]))
    return float(np.mean(found))


def _scores(images: FloatArray, labels: np.ndarray, queries: FloatArray) -> tuple[float, float]:
    scores = images @ queries.T
    relevant = [(scores[:, c], labels == c) for c in range(len(queries))]
    return (
        float(np.mean([average_precision(s, r) for s, r in relevant])),
        float(np.mean([precision_at(10, s, r) for s, r in relevant])),
    )


def report() -> list[str]:
    """Print the result as one line."""
    if not DATA.exists():
        print(f"{DATA.name} is not at hand: nothing was measured", flush=True)
        return []
    images, labels, prompts = read()
    found = "; ".join(f"{name} {ap:.3f} (P@10 {p10:.3f})" for name, ap, p10 in table(images, labels, prompts))
    unseen = unseen_classes(images, labels, prompts[PROMPT])
    line = (
        f"WHU-RS19 (aerial images), RemoteCLIP's own vectors, mAP: {found}; background of {BACKGROUND_CLASSES} other "
        f"classes, the others asked, {SPLITS} splits, one prompt {unseen:.3f}"
    )
    print(line, flush=True)
    return [line]


if __name__ == "__main__":
    report()
