"""Distance of imagery from what a model was trained on, for weights that ship statistics of their training images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from safetensors import safe_open

from rs_embed.arrays import BoolArray, FloatArray
from rs_embed.embedders.cards import CARDS, shipped_folder

STATISTICS_FILE = "training_statistics.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingStatistics:
    """Distribution of a model's `pooled("mean")` vectors over its training images."""

    mean: FloatArray
    """(d,)."""
    whitening: FloatArray
    """(d, d) matrix that brings the vectors, less their mean, to unit covariance."""
    limit: float
    """Mahalanobis distance that one in a hundred images of the same kind exceeds."""

    def unlike(self, vectors: FloatArray) -> BoolArray:
        """Return which vectors (n, d) lie farther from the training images than the limit."""
        distances = np.linalg.norm((vectors - self.mean) @ self.whitening, axis=1)
        unlike: BoolArray = distances > self.limit
        return unlike


@lru_cache(maxsize=4)
def find_statistics(weights_sha256: str | None) -> TrainingStatistics | None:
    """Return the statistics that ship with some weights; None for weights without them."""
    folders = [folder for card in CARDS if (folder := shipped_folder(card.checkpoint)) is not None]
    for file in (folder / STATISTICS_FILE for folder in folders):
        if file.exists():
            with safe_open(file, "np") as stored:
                if stored.metadata()["weights_sha256"] == weights_sha256:
                    mean, whitening, limit = (
                        stored.get_tensor(name).astype(np.float32) for name in ("mean", "whitening", "limit")
                    )
                    return TrainingStatistics(mean, whitening, float(limit))
    return None
