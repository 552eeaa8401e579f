"""What was asked, in words, by examples or as a concept, as one direction to rank rows by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rs_embed.api import get_embedding
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import load_text_embedder
from rs_embed.embedders.text import TextEmbedder, check_texts, unit
from rs_embed.embedding import Embedding
from rs_embed.errors import ModelError, SpecError
from rs_embed.export.request import ExportRequest
from rs_embed.search.concepts import Concepts, learn
from rs_embed.search.query import NEGATIVE_WEIGHT, odds_of, query_vector, word_odds, word_query
from rs_embed.search.rows import Rows
from rs_embed.specs import OutputSpec

FloatArray = npt.NDArray[np.float32]
Names = str | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a person may say; see `EmbeddingIndex.search`."""

    text: Names = None
    image: npt.ArrayLike | None = None
    vector: Embedding | npt.ArrayLike | None = None
    id: Names = None
    unlike: Names = None
    concept: str | None = None
    negative: Names = None
    background: npt.ArrayLike | None = None
    logit_scale: float | None = None

    @property
    def says_something(self) -> bool:
        """Whether there is anything to rank by."""
        asked = (self.image, self.vector, self.concept)
        return self.text is not None or bool(names(self.id)) or any(term is not None for term in asked)


@dataclass(frozen=True, slots=True)
class Asked:
    """What rows are ranked by."""

    query: FloatArray
    centred: bool
    """Whether the direction is a difference already, as words minus their background are."""
    words: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Rows that were named as examples: they are no answer."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Makes directions of terms, for some rows."""

    request: ExportRequest
    concepts: Concepts
    rows: Rows

    def ask(self, terms: Terms) -> Asked:
        """One direction out of all that was said.

        Raises:
            SpecError: for terms that do not go together, or a row or concept that there is not.
            ModelError: when nothing was asked, or for a vector of another model or weights.
        """
        words = [] if terms.text is None else check_texts(terms.text)
        negative = check_texts(names(terms.negative)) if terms.negative else []
        likes, unlikes = names(terms.id), names(terms.unlike)
        if terms.concept is not None:
            if words or negative or likes or unlikes or any(t is not None for t in (terms.image, terms.vector)):
                raise SpecError(f"concept {terms.concept!r} stands for itself: leave out words and examples")
            return Asked(self._direction(terms.concept), centred=True)
        if terms.background is not None and (words or negative or terms.vector is None):
            raise SpecError("a background goes with vector=, a text's; words have the model's own background")
        example = self._example(terms, likes)
        query = self._query(words, negative, example, terms.background)
        if unlikes:
            query = self.learn(query, words, example, unlikes)
        return Asked(query, centred=bool(words or unlikes), words=tuple(words), own=(*likes, *unlikes))

    def odds(self, asked: Asked, terms: Terms, positions: npt.NDArray[np.int64]) -> FloatArray | None:
        """Probability of what was asked against the background, for some rows; None where it has none."""
        images = self.rows.vectors_at(positions)
        if asked.words:
            return word_odds(self._texts, asked.words, images)
        if terms.vector is None or terms.background is None or terms.logit_scale is None:
            return None
        wanted = unit(self._checked(terms.vector)).mean(axis=0)
        return odds_of(wanted, np.asarray(terms.background, np.float32), images, terms.logit_scale)

    def remarks(self, terms: Terms) -> list[str]:
        """What the model cannot read of the words."""
        words = [*names(terms.text), *names(terms.negative)]
        return [remark for word in words for remark in self._texts.remarks(word)]

    def learn(
        self, asked: FloatArray, words: Sequence[str], example: FloatArray | None, unlikes: Sequence[str]
    ) -> FloatArray:
        """What tells the examples from rows that are not meant, starting from what was asked."""
        mean = self.rows.file.mean
        start = asked if words else unit(asked - mean)  # words are a difference already
        nothing = np.empty((0, len(mean)), np.float32)
        return learn(start, nothing if example is None else unit(example), self.rows.vectors(unlikes), mean)

    @property
    def _texts(self) -> TextEmbedder:
        """The model's text side; it stays loaded."""
        return load_text_embedder(find_card(self.request.model), checkpoint=self.request.checkpoint, device="auto")

    def _direction(self, concept: str) -> FloatArray:
        found = self.concepts.read(concept)
        if found.weights_sha256 != self.request.weights_sha256:
            raise ModelError(f"the concept {concept!r} is of other weights ({found.model}): train it again")
        (direction,) = self._checked(np.asarray(found.direction, np.float32))
        return np.asarray(direction, np.float32)

    def _example(self, terms: Terms, likes: Sequence[str]) -> FloatArray | None:
        """The examples as (n, d)."""
        if sum((terms.image is not None, terms.vector is not None, bool(likes))) > 1:
            raise SpecError("one kind of example is enough: image, vector or id")
        if likes:
            return self.rows.vectors(likes)
        if terms.image is not None:
            made = get_embedding(
                self.request.model,
                input_chw=np.asarray(terms.image),
                output=OutputSpec.pooled("projected"),
                checkpoint=self.request.checkpoint,
            )
            return np.asarray(made.data, np.float32)[None]
        return None if terms.vector is None else self._checked(terms.vector)

    def _checked(self, vector: Embedding | npt.ArrayLike) -> FloatArray:
        if isinstance(vector, Embedding):
            sha256, pooling = vector.meta.get("weights_sha256"), vector.meta.get("pooling")
            if (sha256, pooling) != (self.request.weights_sha256, "clip_projection"):
                raise ModelError(
                    f"the vector is a {pooling} of {vector.meta.get('model')}, the index holds CLIP projections of "
                    f"{self.request.model}: embed with the same model and OutputSpec.pooled('projected')"
                )
            vector = np.asarray(vector.data)
        array, dim = np.atleast_2d(np.asarray(vector, np.float32)), self.rows.file.facts["dim"]
        if len(self.rows) and array.shape[1:] != (dim,):
            raise ModelError(f"the vector has shape {array.shape[1:]}, the index holds {dim} numbers")
        if not np.isfinite(array).all():
            raise ModelError("the vector holds NaN or infinity")
        return array

    def _query(
        self, words: list[str], negative: list[str], example: FloatArray | None, background: npt.ArrayLike | None
    ) -> FloatArray:
        if words:
            return word_query(self._texts, words, negative, images=example)
        if example is None:
            raise ModelError(
                "nothing was asked: say what to find in words, or name an example (a row's id, an image, a vector)"
            )
        if background is not None:
            return query_vector(texts=example, background=np.asarray(background, np.float32))
        if negative:
            away = word_query(self._texts, negative)
            return unit(unit(example).mean(axis=0) - NEGATIVE_WEIGHT * away)
        return unit(unit(example).mean(axis=0))


def names(given: Names) -> list[str]:
    """One or several, as a list."""
    return [given] if isinstance(given, str) else list(given or ())
