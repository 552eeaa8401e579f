"""Write the statistics of the training images that ship with the bundled weights.

`python -m training.statistics`. A search tells by them which places look unlike anything that the model has seen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from evaluation.eurosat import ROOT
from evaluation.presence import Vectors, read_vectors, weights_sha256
from rs_embed.embedders.familiarity import STATISTICS_FILE, TrainingStatistics

FOLDER = ROOT / "src" / "rs_embed" / "embedders" / "clip_eurosat"
_FALSE_ALARMS = 0.01
_REGULARISATION = 0.01
"""Share of the mean variance that is added to each: most of the 192 dimensions hardly vary among 1,500 images."""


def fit(training: Vectors, chosen: Vectors) -> TrainingStatistics:
    """Return mean and covariance of training chips, with the limit that one in a hundred other chips exceeds."""
    images = training.token_mean.astype(np.float64)
    covariance = np.cov(images.T)
    variances, axes = np.linalg.eigh(
        covariance + _REGULARISATION * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    )
    mean, whitening = images.mean(axis=0).astype(np.float32), (axes / np.sqrt(variances)).astype(np.float16)
    distances = np.linalg.norm((chosen.token_mean - mean) @ whitening.astype(np.float32), axis=1)
    return TrainingStatistics(mean, whitening, float(np.quantile(distances, 1 - _FALSE_ALARMS)))


def write(folder: Path = FOLDER) -> None:
    """Write the file beside the weights."""
    vectors = read_vectors()
    found = fit(vectors["training"], vectors["chosen"])
    tensors = {"mean": found.mean, "whitening": found.whitening, "limit": np.array(found.limit, np.float32)}
    save_file(tensors, folder / STATISTICS_FILE, {"weights_sha256": weights_sha256()})


if __name__ == "__main__":
    write()
