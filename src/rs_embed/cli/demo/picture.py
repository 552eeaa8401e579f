"""The demo's picture: each place, its token grid in false colour, and the place most similar to it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rs_embed.arrays import FloatArray
from rs_embed.cli.draw import GAP, LEFT, Sheet
from rs_embed.embedding import Embedding
from rs_embed.inspection import quicklook
from rs_embed.patch import Patch
from rs_embed.providers.sample import Sample

_SIDE, _TOP, _STEP = 220, 84, 290


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """One place of the demo with its imagery and its embeddings."""

    sample: Sample
    patch: Patch
    vector: Embedding
    grid: Embedding


def cosine(places: Sequence[SamplePlace]) -> FloatArray:
    """Return the cosine similarity of all pairs of places, (n, n)."""
    vectors = np.stack([np.asarray(place.vector.data) for place in places])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity: FloatArray = vectors @ vectors.T
    return similarity


def draw(places: Sequence[SamplePlace], model: str) -> Sheet:
    """Draw all places side by side."""
    similarity = cosine(places)
    np.fill_diagonal(similarity, -np.inf)
    grids = false_colour([np.asarray(place.grid.data) for place in places])
    looks = [quicklook(place.patch.dn) for place in places]
    sheet = Sheet.titled(
        (LEFT + len(places) * (_SIDE + GAP), _TOP + 3 * _STEP),
        f"Six places, as {model} sees them",
        f"real Sentinel-2 imagery  |  {grids[0].width}x{grids[0].height} token grid, principal components as colours"
        "  |  most similar place",
    )
    for column, (place, nearest) in enumerate(zip(places, similarity.argmax(axis=1), strict=True)):
        tiles = (
            (looks[column], f"{column + 1}. {place.sample.labels[0]}, {place.sample.date}"),
            (grids[column], "token grid"),
            (looks[nearest], f"most similar: {nearest + 1}, cosine {similarity[column, nearest]:.2f}"),
        )
        for row, (tile, caption) in enumerate(tiles):
            x, y = LEFT + column * (_SIDE + GAP), _TOP + row * _STEP
            sheet.paste(tile, (x, y), _SIDE)
            sheet.write((x, y + _SIDE + 6), textwrap.fill(caption, 28), size=15)
    return sheet


def false_colour(grids: Sequence[FloatArray]) -> list[Image.Image]:
    """Return token grids (d, y, x) as pictures: their joint three principal components as red, green and blue."""
    tokens = np.concatenate([grid.reshape(grid.shape[0], -1).T for grid in grids])  # (tokens, d)
    centred = tokens - tokens.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:3].T
    low, high = np.percentile(components, [2, 98], axis=0)
    colours = (np.clip((components - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    ends = np.cumsum([grid.shape[1] * grid.shape[2] for grid in grids])[:-1]
    parts = zip(np.split(colours, ends), grids, strict=True)
    return [Image.fromarray(part.reshape(*grid.shape[1:], 3)) for part, grid in parts]
