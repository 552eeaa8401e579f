"""Concepts learnt from a few clicks: rows marked as positive and negative examples become a direction to rank by.

A logistic regression starts from the query (words, or the mean of the positives) and is held near it by weight decay.
With five marks a side it beats both the words alone and a regression that starts from zero (docs/design/0012).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rs_embed.arrays import FloatArray
from rs_embed.errors import RSEmbedError, SpecError
from rs_embed.export.checks import regular_file
from rs_embed.export.folder import DatasetFolder
from rs_embed.files import read_json

_START_LENGTH, _WEIGHT_DECAY = 10.0, 0.1
_LARGEST = 1e6  # a direction has length 1; far below the limit of float32
_LIMIT_BYTES = 1 << 20
_NAME = re.compile(r"\w[\w -]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """Direction in the space of one model's CLIP projections, with the rows that it was learnt from."""

    name: str
    model: str
    weights_sha256: str | None
    direction: tuple[float, ...]
    """(d,) of unit length; `vectors @ direction` ranks."""
    positives: tuple[str, ...]
    """`unique_id` of the positive examples."""
    negatives: tuple[str, ...]
    text: tuple[str, ...] = ()
    """Words that the training started from."""

    def to_json(self) -> str:
        """Return the text of the file that `EmbeddingIndex.search` reads it from."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def __post_init__(self) -> None:
        numbers = all(isinstance(v, float | int) and not isinstance(v, bool) for v in self.direction)
        if not (numbers and any(self.direction) and all(abs(v) <= _LARGEST for v in self.direction)):
            raise ValueError("its direction is no list of numbers (NaN, infinity and zeros alone are none)")


def fit_direction(start: FloatArray, positives: FloatArray, negatives: FloatArray, mean: FloatArray) -> FloatArray:
    """Return the unit direction (d,) near `start` that separates unit vectors: positives (p, d), negatives (m, d).

    The mean (d,) of all vectors is subtracted: what they have in common separates nothing. There may be no positives.
    """
    x = np.concatenate([positives, negatives]).astype(np.float64) - mean
    x = np.column_stack([x, np.ones(len(x))])
    labels = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    sample_weights = np.where(labels == 1, 1 / max(len(positives), 1), 1 / len(negatives))
    weights = initial = np.append(_START_LENGTH * start.astype(np.float64), 0.0)
    decay = np.append(np.full(len(start), _WEIGHT_DECAY), 1e-6)  # the bias is free
    for _ in range(50):  # Newton's method: the loss is convex, and a handful of steps is enough
        predicted = 1 / (1 + np.exp(-np.clip(x @ weights, -500, 500)))
        gradient = x.T @ (sample_weights * (predicted - labels)) + decay * (weights - initial)
        hessian = (x.T * (sample_weights * predicted * (1 - predicted))) @ x + np.diag(decay)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    direction = weights[:-1].astype(np.float32)
    return direction / np.linalg.norm(direction)


class Concepts:
    """Saved concepts of a dataset: `concepts/<name>.json` beside its tables."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of all saved concepts, sorted."""
        return sorted(f.stem for f in (self._folder.path / "concepts").glob("*.json"))

    def check(self, name: str) -> None:
        """Refuse a name that cannot be a file's with a SpecError."""
        self._file(name)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or len(name.encode()) > 200:  # file systems allow 255 bytes with the ending
            raise SpecError(f"a concept's name is letters, digits, spaces, _ and -, 63 at most, got {name!r}")
        return self._folder.path / "concepts" / f"{name}.json"

    def save(self, concept: Concept) -> None:
        """Write a concept, replacing any of the same name; a SpecError refuses what cannot be a file's name."""
        self._folder.write_text(self._file(concept.name), concept.to_json())

    def read(self, name: str) -> Concept:
        """Read a saved concept; a SpecError refuses an unknown name, an RSEmbedError a file that holds no concept."""
        file = self._file(name)
        if not file.exists():
            known = ", ".join(map(repr, self.names())) or "none yet, EmbeddingIndex.train makes one"
            raise SpecError(f"there is no concept {name!r} here; known: {known}")
        try:
            saved = read_json(regular_file(self._folder.path, file), _LIMIT_BYTES)
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
            return Concept(**fields)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RSEmbedError(f"{file} is no concept ({error}): delete it and train it again") from None
