"""Public functions of the text side: words into the space of `pooled("projected")`, and places sorted into labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.arrays import FloatArray
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.text import TextEmbedder, check_texts, frames_of, likelihoods, load_text_embedder, unit
from rs_embed.embedding import Embedding, EmbeddingFailure
from rs_embed.errors import ModelError, naming_missing

Labels = Sequence[str] | Sequence[Sequence[str]] | Mapping[str, Sequence[str]]
"""Names; or names with synonyms, as a mapping or as one list a label whose first is its name."""

_log = logging.getLogger("rs_embed")


@naming_missing()
def embed_text(
    model: str,
    texts: str | Sequence[str],
    *,
    template: str | Sequence[str] | None = "rs",
    checkpoint: str | Path | None = None,
    device: str = "auto",
) -> FloatArray:
    """Embed texts in the space of `OutputSpec.pooled("projected")`; compare the two by cosine.

    The logger "rs_embed" warns of words that the model's vocabulary lacks.

    Args:
        model: a name of `list_models()`.
        texts: words to look for, such as "river" or "houses with gardens".
        template: "rs" averages eight remote-sensing sentences; None takes each text as it is; or sentences with `{}`.
        checkpoint: hub repo or path; the model's own when None.
        device: "auto", "cpu", "cuda", …

    Returns:
        (n, d) float32, d the length of the CLIP projection (512 for ViT-B/32). With a template of unit length, without
        one as the network gives them.

    Raises:
        ModelError: for an empty text, or weights that are missing.
        SpecError: for a template without `{}`.

    Examples:
        >>> from rs_embed import embed_text
        >>> embed_text("clip_eurosat_s2rgb", ["river", "forest"]).shape
        (2, 128)
    """
    frames, asked = frames_of(template), check_texts(texts)
    embedder = load_text_embedder(find_card(model), checkpoint=checkpoint, device=device)
    for text in asked:
        for remark in embedder.remarks(text):
            _log.warning("%s", remark)
    return embedder.embed(asked, frames)


@naming_missing()
def zero_shot(
    embeddings: Sequence[Embedding] | npt.ArrayLike,
    labels: Labels,
    *,
    model: str,
    template: str | Sequence[str] | None = "rs",
    checkpoint: str | Path | None = None,
    device: str = "auto",
) -> FloatArray:
    """Return the probability of each label for each place, if one of them is right: a softmax over the labels.

    Args:
        embeddings: results of `OutputSpec.pooled("projected")` by the same model, or their vectors (n, d).
        labels: names, or names with synonyms: `{"water": ["river", "lake"], "forest": ["forest", "trees"]}`.
        model: the model that made the embeddings.
        template: as for `embed_text`.
        checkpoint: as for `embed_text`.
        device: as for `embed_text`.

    Returns:
        (n, labels) float32, rows sum to 1, columns in the order of the labels.

    Raises:
        ModelError: for embeddings of another model or output, fewer than two labels, or a label without any word
            that the model knows.

    Examples:
        >>> from rs_embed import OutputSpec, PointBuffer, TemporalSpec, get_embedding, list_samples, zero_shot
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 320), TemporalSpec.range(sample.start, sample.end)
        >>> output = OutputSpec.pooled("projected")
        >>> vector = get_embedding(
        ...     "clip_eurosat_s2rgb", spatial=place, temporal=month, output=output, backend="sample"
        ... )
        >>> zero_shot([vector], ["forest", "sea or lake", "annual crop"], model="clip_eurosat_s2rgb").shape
        (1, 3)
    """
    names = label_names(labels)
    if len(names) < 2:
        raise ModelError(f"zero_shot needs at least two labels to choose from, got {names}")
    embedder, frames = load_text_embedder(find_card(model), checkpoint=checkpoint, device=device), frames_of(template)
    prototypes = np.stack([_prototype(embedder, words, frames) for words in _synonyms(labels)])
    images = unit(_vectors(embeddings, embedder))
    if images.shape[1] != prototypes.shape[1]:
        raise ModelError(
            f"the embeddings have {images.shape[1]} numbers and the texts of {embedder.model} {prototypes.shape[1]}: "
            'embed the places with OutputSpec.pooled("projected") and the same model'
        )
    return likelihoods(images, prototypes, embedder.logit_scale)


def label_names(labels: Labels) -> list[str]:
    """Return the names of labels, without their synonyms."""
    if isinstance(labels, Mapping):
        return list(labels)
    return [label if isinstance(label, str) else str(next(iter(label), "")) for label in labels]


def _synonyms(labels: Labels) -> list[list[str]]:
    groups = labels.values() if isinstance(labels, Mapping) else labels
    return [check_texts(group) for group in groups]


def _prototype(embedder: TextEmbedder, words: Sequence[str], frames: Sequence[str] | None) -> FloatArray:
    """Return one unit vector for a label: the mean of its synonyms that the model can read."""
    readable = [word for word in words if embedder.reads(word)]
    for word in words:
        for remark in embedder.remarks(word):
            _log.warning("%s", remark)
    if not readable:
        raise ModelError(
            f"{embedder.model} knows no word of the label {words[0]!r}, and any probability for it would be a guess: "
            "use another word, give a synonym, or use a RemoteCLIP model"
        )
    return unit(unit(embedder.embed(readable, frames)).mean(axis=0))


def _vectors(embeddings: Sequence[Embedding] | npt.ArrayLike, embedder: TextEmbedder) -> FloatArray:
    """Return vectors (n, d), of results of this model and output, or of an array as it is."""
    rows: Any = [embeddings] if isinstance(embeddings, Embedding) else embeddings
    if isinstance(rows, Sequence):
        results = (Embedding, EmbeddingFailure)
        rows = [_vector(r, i, embedder) if isinstance(r, results) else r for i, r in enumerate(rows)]
    array = np.asarray(rows, dtype=np.float32)
    if array.ndim != 2:
        raise ModelError(f"embeddings must be (n, d), got shape {array.shape}")
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ModelError(f"embeddings[{rows[0]}] holds NaN or infinity: leave failed places out")
    return array


def _vector(result: Embedding | EmbeddingFailure, position: int, embedder: TextEmbedder) -> npt.NDArray[np.float32]:
    if isinstance(result, EmbeddingFailure):
        raise ModelError(f"embeddings[{position}] is a failure ({result.error}): leave failed places out")
    pooling, sha256 = result.meta.get("pooling"), result.meta.get("weights_sha256")
    if pooling != "clip_projection":
        raise ModelError(
            f"embeddings[{position}] is a {pooling or 'token grid'}, which texts cannot be compared with: embed with "
            'OutputSpec.pooled("projected")'
        )
    if sha256 is not None and sha256 != embedder.weights_sha256:
        raise ModelError(
            f"embeddings[{position}] was made by other weights ({result.meta['model']}, {result.meta['ckpt']}) than "
            f"those of {embedder.model}: pass the same model and checkpoint"
        )
    return np.asarray(result.data, dtype=np.float32)
