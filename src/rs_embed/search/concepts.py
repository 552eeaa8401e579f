"""A concept from a few clicks: rows marked as it and as not it become a direction to rank by.

A logistic regression that starts from what was asked (words, or the mean of the rows that are it) and leaves it only as
far as the marks demand: with five marks a side that beats both the words alone and a regression that starts from
nothing (docs/design/0012).
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.errors import RSEmbedError, SpecError
from rs_embed.export.folder import DatasetFolder

FloatArray = npt.NDArray[np.float32]

_STRENGTH, _WEIGHT_DECAY = 10.0, 0.1
"""How long the direction that was asked is, and how firmly it is held on to."""
_NAME = re.compile(r"\w[\w -]{0,62}")
_NAME_BYTES = 200
"""File systems take 255 a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A direction in the space of one model's CLIP projections, and the rows that it was learnt from."""

    name: str
    model: str
    weights_sha256: str | None
    direction: tuple[float, ...]
    """Unit length: `vectors @ direction` ranks."""
    positives: tuple[str, ...]
    """`unique_id` of the rows that are it."""
    negatives: tuple[str, ...]
    text: tuple[str, ...] = ()
    """The words that it started from."""


def learn(asked: FloatArray, positives: FloatArray, negatives: FloatArray, mean: FloatArray) -> FloatArray:
    """The direction (d,) that tells positives from negatives and is near to what was asked.

    Args:
        asked: (d,) unit direction to start from.
        positives: (p, d) unit vectors; there may be none.
        negatives: (m, d) unit vectors.
        mean: (d,) of all vectors: what they have in common tells nothing.
    """
    x = np.concatenate([positives, negatives]).astype(np.float64) - mean
    x = np.column_stack([x, np.ones(len(x))])
    wanted = np.repeat([1.0, 0.0], [len(positives), len(negatives)])
    share = np.where(wanted == 1, 1 / max(len(positives), 1), 1 / len(negatives))
    start = np.append(_STRENGTH * asked.astype(np.float64), 0.0)
    held = np.append(np.full(len(asked), _WEIGHT_DECAY), 1e-6)  # the bias is free
    found = start
    for _ in range(50):  # Newton's method: the loss is convex, and a handful of steps is enough
        odds = 1 / (1 + np.exp(-np.clip(x @ found, -500, 500)))
        slope = x.T @ (share * (odds - wanted)) + held * (found - start)
        curvature = (x.T * (share * odds * (1 - odds))) @ x + np.diag(held)
        step = np.linalg.solve(curvature, slope)
        found = found - step
        if np.abs(step).max() < 1e-8:
            break
    direction = found[:-1].astype(np.float32)
    return direction / np.linalg.norm(direction)


class Concepts:
    """The concepts of a dataset: `concepts/<name>.json` beside its tables."""

    def __init__(self, folder: DatasetFolder) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """What is there, by name."""
        return sorted(f.stem for f in (self._folder.path / "concepts").glob("*.json"))

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
            raise SpecError(f"a concept's name is letters, digits, spaces, _ and -, 63 at most, got {name!r}")
        return self._folder.path / "concepts" / f"{name}.json"

    def save(self, concept: Concept) -> None:
        """Write it; one of the same name is replaced.

        Raises:
            SpecError: for a name that is no file's name.
        """
        self._folder.write_text(self._file(concept.name), json.dumps(asdict(concept), indent=1) + "\n")

    def read(self, name: str) -> Concept:
        """A saved concept.

        Raises:
            SpecError: when there is none of that name.
            RSEmbedError: when the file is none.
        """
        file = self._file(name)
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
            found = Concept(**lists)
            if not found.direction or not all(isinstance(v, float | int) for v in found.direction):
                raise ValueError("its direction is no list of numbers")
            return found
        except FileNotFoundError:
            known = ", ".join(map(repr, self.names())) or "none yet, EmbeddingIndex.train makes one"
            raise SpecError(f"there is no concept {name!r} here; known: {known}") from None
        except (ValueError, TypeError, AttributeError) as error:  # ValueError: also of JSON and of its encoding
            raise RSEmbedError(f"{file} is no concept ({error}): delete it and train it again") from None
