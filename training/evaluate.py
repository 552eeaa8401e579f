"""Measure the bundled weights and write their figures to `metrics.json` and `CARD.md` beside them.

`python -m training.evaluate [--data eurosat_rgb.tar] [--checkpoint training/runs/clip_eurosat/checkpoint]`; with a
checkpoint, its files are first copied into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.eurosat import CLASSES, DATA, NO_HAZE, ROOT, Chips, Wordings, load_captions, open_eurosat
from evaluation.measure import EvaluatedModel, measure, measure_pooling, open_model
from evaluation.scores import average_precision
from rs_embed import OutputSpec, PointBuffer, TemporalSpec, get_embeddings_batch, list_samples, zero_shot
from rs_embed.cli.demo.comparison import CLASSES as WORDS
from rs_embed.cli.demo.comparison import right_answers
from rs_embed.embedders.text import RS_TEMPLATES, unit
from rs_embed.search.query import text_query
from training import statistics

MODEL = "clip_eurosat_s2rgb"
FOLDER = ROOT / "src" / "rs_embed" / "embedders" / "clip_eurosat"
FILES = ("model.safetensors", "config.json", "tokenizer.json")


def measure_shipped(data: Path, *, pooling: bool = False) -> dict[str, Any]:
    """Return all figures of the bundled weights."""
    chips = open_eurosat(data)
    wordings = load_captions()
    model = open_model(MODEL, None)
    held_out = measure(model, chips, wordings.held_out, wordings.names) | _background(model, chips, wordings)
    return {
        "weights_sha256": model.images.weights_sha256,
        "held_out_chips": len(chips.held_out),
        "held_out": {name: round(value, 4) for name, value in held_out.items()},
        "samples": _classify_samples(),
        **({"pooling": measure_pooling(model, chips)} if pooling else {}),
    }


def _background(model: EvaluatedModel, chips: Chips, wordings: Wordings) -> dict[str, float]:
    """Return the mean average precision of class-name queries, with and without the background vocabulary."""
    labels = chips.labels[chips.held_out]
    images = unit(model.embed(chips, chips.held_out, NO_HAZE, OutputSpec.pooled("projected")))
    plain = unit(model.texts.embed(wordings.names, RS_TEMPLATES))
    minus = np.stack([text_query(MODEL, name) for name in wordings.names])
    return {
        name: float(np.mean([average_precision(images @ q, labels == c) for c, q in enumerate(queries)]))
        for name, queries in (("map_cosine", plain), ("map_minus_background", minus))
    }


def _classify_samples() -> list[dict[str, Any]]:
    """Return the zero-shot answer for each labelled L2A sample, at 1,200 m and for the central 640 m."""
    samples = list_samples()
    rows: list[dict[str, Any]] = [{"id": s.id, "labels": list(s.labels)} for s in samples]
    for side_m in (1200, 640):
        vectors = get_embeddings_batch(
            MODEL,
            spatials=[PointBuffer(s.lon, s.lat, side_m / 2) for s in samples],
            temporal=[TemporalSpec.range(s.start, s.end) for s in samples],
            output=OutputSpec.pooled("projected"),
            backend="sample",
        )
        found = zero_shot(vectors, WORDS, model=MODEL)
        for row, sample, odds in zip(rows, samples, found, strict=True):
            answer = list(WORDS)[int(odds.argmax())]
            row[f"{side_m}_m"] = {
                "answer": answer,
                "probability": round(float(odds.max()), 3),
                "right": answer in right_answers(sample.labels),
            }
    return rows


def write_card(metrics: dict[str, Any]) -> str:
    """Return the model card as Markdown."""
    figures, pooling = metrics["held_out"], metrics["pooling"]
    names = {
        "zero_shot": "zero-shot accuracy, 10 class names",
        "p_at_10_names": "text to image P@10, class names",
        "p_at_10_other_wordings": "text to image P@10, wordings held out of training",
        "nearest_neighbour": "image to image, nearest neighbour of the same class",
    }
    rows = [f"| {text} | {figures[key]:.3f} | {figures[f'{key}_haze_out']:.3f} |" for key, text in names.items()]
    vectors = [
        f"| `pooled({name!r})` | {row['linear_probe']:.3f} | {row['nearest_neighbour']:.3f} | "
        f"{row['nearest_neighbour_standardised']:.3f} |"
        for name, row in pooling.items()
    ]
    samples = [
        f"| {row['labels'][0]} | {_answer(row['1200_m'])} | {_answer(row['640_m'])} |" for row in metrics["samples"]
    ]
    return _CARD.format(
        classes=", ".join(CLASSES),
        chips=metrics["held_out_chips"],
        rows="\n".join(rows),
        vectors="\n".join(vectors),
        samples="\n".join(samples),
        cosine=figures["map_cosine"],
        minus=figures["map_minus_background"],
        sha256=metrics["weights_sha256"],
    )


def _answer(row: dict[str, Any]) -> str:
    return f"{row['answer']} ({row['probability']:.0%}){'' if row['right'] else ', wrong'}"


_CARD = """# clip_eurosat_s2rgb

A small CLIP that ships with the package, so that everything works without a download. Written by
`training/evaluate.py`; every figure is measured on the file beside this card.

* **Network**: CLIP, image tower ViT 192 x 6 with patches of 32 px on 224 px (7 x 7 tokens), text tower 128 x 2 with
  16 tokens, projection 128; RemoteCLIP's checkpoint layout, float16. 3.7 million parameters.
* **Pixels**: Sentinel-2 red, green, blue; DN 0…2750 (`dn_range`).
* **Trained on** EuroSAT (Helber et al., MIT licence; modified Copernicus Sentinel data): 64 x 64 px chips of 10 m, with
  captions of our own (`training/captions.toml`). EuroSAT is L1C, with haze; random amounts of haze were subtracted,
  so that the model reads L2A too. `make train` reproduces it.
* **Licence** of the weights: Apache-2.0.
* **It knows** ten kinds of land ({classes}) and some 180 English words for them.
* **It does not know** anything else: no cloud, snow, desert or season, and no places much larger than a kilometre.
  Unknown words are reported, and so are places unlike its training images (`training_statistics.safetensors`: 1 % of
  EuroSAT's own chips, 95 % of a desert). For real work use **RemoteCLIP** (`remoteclip_s2rgb`).

## Figures

{chips} chips that were held out of training, unchanged and with the haze subtracted (R 140, G 250, B 590 DN):

| | unchanged | haze subtracted |
|---|---|---|
{rows}

The nearest-neighbour figure was meant to reach 0.90 on unchanged chips and does not: it was 0.865 after two cycles of
training, and a third cycle with a loss between images raised it to this. A neighbour is the nearest other held-out
chip.

Mean average precision of class names: {cosine:.3f} by cosine, {minus:.3f} with the background vocabulary.

Comparison of the vectors (5,000 training chips, tested on the held-out chips):

| | linear probe | 1-NN | 1-NN, standardised |
|---|---|---|---|
{vectors}

The six labelled L2A places of the sample (first label; answer for 1,200 m and for the central 640 m); the last one is
snow-covered:

| label | 1,200 m | 640 m |
|---|---|---|
{samples}

sha256 of `model.safetensors`: `{sha256}`
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder to bundle")
    options = parser.parse_args()
    if options.checkpoint is not None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(options.checkpoint / name, FOLDER / name)
    statistics.write(FOLDER)
    metrics = measure_shipped(options.data, pooling=True)
    (FOLDER / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    card = write_card(metrics)
    (FOLDER / "CARD.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
