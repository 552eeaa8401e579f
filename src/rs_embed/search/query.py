"""Queries and their encoding: words, examples and concepts become one direction to rank rows by.

CLIP's text vectors resemble each other: most of each vector says "a caption", and images differ in how much they
resemble any caption. Subtracting the mean of other concepts leaves what is particular to the words: on real RemoteCLIP
vectors mean average precision rises from 0.84 to 0.96 (`benchmarks/bench_whurs19.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rs_embed.api import get_embedding
from rs_embed.arrays import FloatArray
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.text import TextEmbedder, check_texts, frames_of, likelihoods, load_text_embedder, unit
from rs_embed.embedding import Embedding
from rs_embed.errors import ModelError, SpecError
from rs_embed.export.checks import MAKE_AGAIN
from rs_embed.search.concepts import Concepts, fit_direction
from rs_embed.search.presence import log_ratios
from rs_embed.specs import OutputSpec

if TYPE_CHECKING:
    from rs_embed.export.request import ExportRequest
    from rs_embed.search.rows import Rows
    from rs_embed.search.weights import DatasetWeights

Strings = str | Sequence[str] | None

NEGATIVE_WEIGHT = 0.5
_SYNONYM_COSINE = 0.6
"""Cosine, without the common part, from which two texts count as synonyms, so that neither is the other's alternative.
(The classes of WHU-RS19 in RemoteCLIP reach 0.37 at most, synonyms in the bundled model exceed 0.9.)"""

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Criteria to rank rows by; `EmbeddingIndex.search` describes each of them."""

    text: Strings = None
    image: npt.ArrayLike | None = None
    vector: Embedding | npt.ArrayLike | None = None
    id: Strings = None
    unlike: Strings = None
    concept: str | None = None
    negative: Strings = None
    background: npt.ArrayLike | None = None
    logit_scale: float | None = None

    @property
    def is_empty(self) -> bool:
        """True where there is nothing to rank by; `unlike` and `negative` need another criterion beside them."""
        criteria = (self.text, self.image, self.vector, self.concept)
        return not as_list(self.id) and all(criterion is None for criterion in criteria)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedQuery:
    """A query as one direction, with what the search needs to know about it."""

    vector: FloatArray
    """(d,) unit vector."""
    centred: bool
    """True for a difference of vectors, such as words minus their background; False for a vector like the stored."""
    words: tuple[str, ...] = ()
    example_ids: tuple[str, ...] = ()
    """Rows given as examples, which the results leave out."""


@dataclass(frozen=True, slots=True)
class QueryEncoder:
    """Encoder of queries for the rows of one index."""

    request: ExportRequest
    concepts: Concepts
    rows: Rows
    weights: DatasetWeights

    def encode(self, query: Query) -> EncodedQuery:
        """Combine all criteria of a query into one direction, or raise an error that `EmbeddingIndex.search` lists."""
        words = [] if query.text is None else check_texts(query.text)
        negative = check_texts(as_list(query.negative)) if query.negative else []
        likes, unlikes = as_list(query.id), as_list(query.unlike)
        if query.concept is not None:
            if words or negative or likes or unlikes or query.image is not None or query.vector is not None:
                raise SpecError(f"concept {query.concept!r} stands for itself: leave out words and examples")
            concept = self.concepts.read(query.concept)
            if concept.weights_sha256 != self.request.weights_sha256:
                raise ModelError(f"the concept {query.concept!r} is of other weights ({concept.model}): train it again")
            return EncodedQuery(vector=self._checked(concept.direction).ravel(), centred=True)
        if query.background is not None and (words or negative or query.vector is None):
            raise SpecError("a background goes with vector=, a text's; words have the model's own background")
        examples = self._example_vectors(query, likes)
        vector = self._merge(words, negative, examples, query.background)
        if unlikes:
            vector = self.fit(vector, words, examples, unlikes)
        if vector.shape != (dim := self.rows.file.header["dim"],):
            raise ModelError(f"the words have {len(vector)} numbers, the vectors of the index {dim}: {MAKE_AGAIN}")
        centred = bool(words or unlikes)
        return EncodedQuery(vector=vector, centred=centred, words=tuple(words), example_ids=(*likes, *unlikes))

    def fit(
        self, start: FloatArray, words: Sequence[str], examples: FloatArray | None, unlikes: Sequence[str]
    ) -> FloatArray:
        """Return the direction near `start` that separates the examples from the rows `unlikes`."""
        mean = self.rows.file.mean
        if not words:  # words are a difference already
            start = unit(start - mean)
        positives = np.empty((0, len(mean)), np.float32) if examples is None else unit(examples)
        return fit_direction(start, positives, self.rows.vectors_of(unlikes), mean)

    def log_ratios(self, encoded: EncodedQuery, query: Query, positions: npt.NDArray[np.int64]) -> FloatArray | None:
        """Return the logarithm of the ratio (n,) of some rows; `rs_embed.search.presence` explains ratios.

        None where there are no other words to compare with, or the model does not know each of the query's words.
        """
        images = self.rows.vectors_at(positions)
        if encoded.words:
            if any(map(self._texts.remarks, encoded.words)):
                return None
            return word_log_ratios(self._texts, encoded.words, images)
        if query.vector is None or query.background is None or query.logit_scale is None:
            return None
        text = unit(self._checked(query.vector)).mean(axis=0)
        return log_ratios(text, np.asarray(query.background, np.float32), images, query.logit_scale)

    def remarks(self, query: Query) -> list[str]:
        """Return a sentence for each part of the words that the model cannot read, and what is searched instead."""
        words, negative = as_list(query.text), as_list(query.negative)
        found = [remark for text in words + negative for remark in self._texts.remarks(text)]
        if any(self._texts.unknown_words(text) for text in words):  # no words need no text side
            known = " ".join(word for text in words for word in self._texts.known_words(text))
            found.append(
                f"{known!r} was searched alone, and no likelihood is given"
                if known
                else "none of the words is known, and the order means nothing"
            )
        return found

    @property
    def _texts(self) -> TextEmbedder:
        return self.weights.texts()

    def _example_vectors(self, query: Query, likes: Sequence[str]) -> FloatArray | None:
        """Return the examples as (n, d); None where the query has none."""
        if sum((query.image is not None, query.vector is not None, bool(likes))) > 1:
            raise SpecError("one kind of example is enough: image, vector or id")
        if likes:
            return self.rows.vectors_of(likes)
        if query.image is not None:
            image, projected = np.asarray(query.image), OutputSpec.pooled("projected")
            checkpoint = self.weights.checkpoint()
            embedding = get_embedding(self.request.model, input_chw=image, output=projected, checkpoint=checkpoint)
            return np.asarray(embedding.data, np.float32)[None]
        return None if query.vector is None else self._checked(query.vector)

    def _checked(self, vector: Embedding | npt.ArrayLike) -> FloatArray:
        """Return vectors as (n, d), or raise a ModelError where they cannot be compared with the rows."""
        if isinstance(vector, Embedding):
            sha256, pooling = vector.meta.get("weights_sha256"), vector.meta.get("pooling")
            if (sha256, pooling) != (self.request.weights_sha256, "clip_projection"):
                raise ModelError(
                    f"the vector is a {pooling} of {vector.meta.get('model')}, the index holds CLIP projections of "
                    f"{self.request.model}: embed with the same model and OutputSpec.pooled('projected')"
                )
            vector = np.asarray(vector.data)
        array, dim = np.atleast_2d(np.asarray(vector, np.float32)), self.rows.file.header["dim"]
        if len(self.rows) and array.shape[1:] != (dim,):
            raise ModelError(f"the vector has shape {array.shape[1:]}, the index holds {dim} numbers")
        if not np.isfinite(array).all():
            raise ModelError("the vector holds NaN or infinity")
        return array

    def _merge(
        self, words: list[str], negative: list[str], examples: FloatArray | None, background: npt.ArrayLike | None
    ) -> FloatArray:
        if words:
            return word_query(self._texts, words, negative, images=examples)
        if examples is None:
            raise ModelError(
                "nothing was asked: say what to find in words, or name an example (a row's id, an image, a vector)"
            )
        if background is not None:
            return query_vector(texts=examples, background=np.asarray(background, np.float32))
        mean = unit(examples).mean(axis=0)
        return unit(mean - NEGATIVE_WEIGHT * word_query(self._texts, negative) if negative else mean)


def as_list(value: Strings) -> list[str]:
    """Return one string or several as a list; None is an empty one."""
    return [value] if isinstance(value, str) else list(value or ())


# --- words against a background of other words


def text_query(
    model: str,
    texts: str | Sequence[str],
    *,
    negatives: str | Sequence[str] = (),
    images: FloatArray | None = None,
    image_weight: float = 0.5,
    template: str | Sequence[str] | None = "rs",
    checkpoint: str | Path | None = None,
) -> FloatArray:
    """Turn words into one vector to rank image vectors by: `unit(images) @ query`, higher is better.

    The words are set off against a background vocabulary of what Sentinel-2 images show. Only the order of the scores
    means anything. Words that the model's vocabulary lacks are a warning of the logger "rs_embed".

    Args:
        model: a name of `list_models()`.
        texts: words for what to find; several are meant together.
        negatives: words for what not to find.
        images: (n, d) vectors of example places, `OutputSpec.pooled("projected")` by the same model.
        image_weight: share of the examples in the query, 0…1.
        template: "rs" averages eight remote-sensing sentences; None takes each text as it is; or sentences with `{}`.
        checkpoint: hub repo or path; the model's default when None.

    Returns:
        (d,) float32 unit vector, d the length of the model's CLIP projection (512 for ViT-B/32).

    Raises:
        ModelError: for an empty text, an unknown model, or weights that cannot be loaded.
        SpecError: for a template without `{}`.

    Examples:
        >>> from rs_embed import text_query
        >>> text_query("clip_eurosat_s2rgb", "river", negatives="forest").shape
        (128,)
    """
    wanted, unwanted = check_texts(texts), check_texts(negatives) if negatives else []
    embedder = load_text_embedder(find_card(model), checkpoint=checkpoint, device="auto")
    for remark in chain.from_iterable(map(embedder.remarks, wanted + unwanted)):
        _log.warning("%s", remark)
    return word_query(embedder, wanted, unwanted, template=template, images=images, image_weight=image_weight)


def word_query(
    embedder: TextEmbedder,
    wanted: Sequence[str],
    unwanted: Sequence[str] = (),
    *,
    template: str | Sequence[str] | None = "rs",
    images: FloatArray | None = None,
    image_weight: float = 0.5,
) -> FloatArray:
    """Do the work of `text_query` with a loaded text side, and without its warnings."""
    frames, query_words = frames_of(template), _words_in((*wanted, *unwanted))
    words, vectors = _background(embedder, frames)
    others = [query_words.isdisjoint(word.split()) for word in words]
    return query_vector(
        embedder.embed(wanted, frames),
        background=vectors[others],
        negatives=embedder.embed(unwanted, frames) if unwanted else None,
        images=images,
        image_weight=image_weight,
    )


def query_vector(
    texts: FloatArray | None = None,
    *,
    background: FloatArray,
    negatives: FloatArray | None = None,
    images: FloatArray | None = None,
    image_weight: float = 0.5,
) -> FloatArray:
    """Merge what `text_query` describes into one unit vector (d,), given as vectors: (n, d) each.

    `background` are texts of other concepts, see `background_words`. A ModelError asks for a text or an image.
    """
    common = unit(background).mean(axis=0)
    words = np.zeros_like(common)
    if texts is not None:
        words += unit(texts).mean(axis=0) - common
    if negatives is not None:
        words -= NEGATIVE_WEIGHT * (unit(negatives).mean(axis=0) - common)
    if images is None:
        if texts is None:
            raise ModelError("a query needs a text or an image")
        return unit(words)
    example = unit(unit(images).mean(axis=0))
    if texts is None:
        return unit(example + np.linalg.norm(words) * unit(words))
    return unit((1 - image_weight) * unit(words) + image_weight * example)


def word_probabilities(embedder: TextEmbedder, texts: Sequence[str], images: FloatArray) -> FloatArray:
    """Return the probability (n,) of texts, meant together, against all background words for each image (n, d)."""
    text, others = _text_and_others(embedder, texts)
    return likelihoods(unit(images), unit(np.concatenate([text[None], others])), embedder.logit_scale)[:, 0]


def word_log_ratios(embedder: TextEmbedder, texts: Sequence[str], images: FloatArray) -> FloatArray | None:
    """Return the `log_ratios` (n,) of texts, meant together; None where the model knows no other words."""
    text, others = _text_and_others(embedder, texts)
    return log_ratios(text, others, images, embedder.logit_scale) if len(others) else None


def _text_and_others(embedder: TextEmbedder, texts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Return the vector (d,) of texts, meant together, and those of all background words but their synonyms (b, d)."""
    query_words = _words_in(texts)
    words, vectors = _background(embedder, frames_of("rs"))
    text = unit(embedder.embed(texts, frames_of("rs"))).mean(axis=0)
    if not words:
        return text, np.empty((0, len(text)), np.float32)
    common = unit(vectors).mean(axis=0)
    cosines = unit(unit(vectors) - common) @ unit(text - common)
    others = np.array([query_words.isdisjoint(word.split()) for word in words], bool) & (cosines < _SYNONYM_COSINE)
    return text, vectors[others]


def _words_in(texts: Sequence[str]) -> set[str]:
    return {word for text in texts for word in text.lower().split()}


@lru_cache(maxsize=1)
def background_words() -> tuple[str, ...]:
    """Return the background vocabulary: things that Sentinel-2 images show, from `background.txt`."""
    lines = resources.files(__package__).joinpath("background.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def known_words(embedder: TextEmbedder) -> list[str]:
    """Return the background words that a model can read, as suggestions for a first query."""
    return _background(embedder, frames_of("rs"))[0]


@lru_cache(maxsize=2)
def _background(embedder: TextEmbedder, frames: tuple[str, ...] | None) -> tuple[list[str], FloatArray]:
    """Return the background words that a model can read, with their vectors (b, d); embedded once a model."""
    words = [word for word in background_words() if not embedder.unknown_words(word)]
    return words, embedder.embed(words, frames)
