"""Scores of embedding vectors: zero-shot, retrieval, nearest neighbour, linear probe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from rs_embed.arrays import FloatArray
from rs_embed.embedders.text import unit

IntArray = npt.NDArray[np.int64]


def accuracy(images: FloatArray, texts: FloatArray, labels: IntArray) -> float:
    """Return the share of images whose nearest text names their class; texts are in class order."""
    return float(((unit(images) @ unit(texts).T).argmax(axis=1) == labels).mean())


def precision_at(k: int, scores: FloatArray, relevant: npt.NDArray[np.bool_]) -> float:
    """Return the share of relevant images among the k best."""
    return float(relevant[np.argsort(-scores, kind="stable")[:k]].mean())


def average_precision(scores: FloatArray, relevant: npt.NDArray[np.bool_]) -> float:
    """Return the mean of the precision at each relevant image."""
    ranked = relevant[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def nearest_neighbour(images: FloatArray, labels: IntArray) -> float:
    """Return the share of images whose nearest other image has the same class."""
    similarity = unit(images) @ unit(images).T
    np.fill_diagonal(similarity, -np.inf)
    return float((labels[similarity.argmax(axis=1)] == labels).mean())


def linear_probe(train: FloatArray, train_labels: IntArray, test: FloatArray, test_labels: IntArray) -> float:
    """Return the test accuracy of a linear classifier on standardised vectors, with a little weight decay."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, y = torch.from_numpy((train - mean) / std), torch.from_numpy(train_labels)
    layer = torch.nn.Linear(x.shape[1], int(train_labels.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x), y) + 1e-4 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.inference_mode():
        found = layer(torch.from_numpy((test - mean) / std)).argmax(dim=1).numpy()
    return float((found == test_labels).mean())
