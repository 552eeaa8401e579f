"""The demo's picture: each place, its token grid in false colour, and the place most like it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from rs_embed.embedding import Embedding
from rs_embed.providers.sample import Sample

_SIDE, _TOP = 220, 84
GAP, LEFT = 24, 24
INK, GREY, PAPER = "#1b1f24", "#5b6470", "#ffffff"


@dataclass(frozen=True, slots=True)
class Row:
    """One place of the demo."""

    sample: Sample
    quicklook: Path
    vector: Embedding
    grid: Embedding


def cosine(vectors: Sequence[Embedding]) -> npt.NDArray[np.float32]:
    """Cosine similarity of all pairs, (n, n)."""
    stack = np.stack([np.asarray(v.data) for v in vectors])
    stack /= np.linalg.norm(stack, axis=1, keepdims=True)
    table: npt.NDArray[np.float32] = stack @ stack.T
    return table


def false_colour(grids: Sequence[npt.NDArray[np.float32]]) -> list[Image.Image]:
    """Token grids (d, y, x) as pictures: their three principal components together, as red, green and blue."""
    tokens = np.concatenate([g.reshape(g.shape[0], -1).T for g in grids])  # (tokens, d)
    centred = tokens - tokens.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:3].T
    low, high = np.percentile(components, [2, 98], axis=0)
    colours = (np.clip((components - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    ends = np.cumsum([g.shape[1] * g.shape[2] for g in grids])[:-1]
    parts = zip(np.split(colours, ends), grids, strict=True)
    return [Image.fromarray(part.reshape(*grid.shape[1:], 3)) for part, grid in parts]


def draw(rows: Sequence[Row], path: Path, model: str) -> Path:
    """Draw all places side by side and write the PNG."""
    similarity = cosine([row.vector for row in rows])
    np.fill_diagonal(similarity, -np.inf)
    colours = false_colour([np.asarray(row.grid.data) for row in rows])
    width = LEFT + len(rows) * (_SIDE + GAP)
    image = Image.new("RGB", (width, _TOP + 3 * (_SIDE + 70)), PAPER)
    pen = ImageDraw.Draw(image)
    grid = "x".join(map(str, colours[0].size))
    pen.text((LEFT, 16), f"Six places, as {model} sees them", INK, font=font(26))
    subtitle = f"real Sentinel-2 imagery  |  {grid} token grid, principal components as colours  |  most similar place"
    pen.text((LEFT, 50), subtitle, GREY, font=font(16))
    for column, (row, tokens) in enumerate(zip(rows, colours, strict=True)):
        x = LEFT + column * (_SIDE + GAP)
        nearest = int(similarity[column].argmax())
        pictures = (_open(row.quicklook), tokens, _open(rows[nearest].quicklook))
        captions = (
            f"{column + 1}. {row.sample.labels[0]}, {row.sample.date}",
            "token grid",
            f"most like it: {nearest + 1} (cosine {similarity[column, nearest]:.2f})",
        )
        for line, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            y = _TOP + line * (_SIDE + 70)
            image.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y))
            pen.multiline_text((x, y + _SIDE + 6), textwrap.fill(caption, 28), INK, font=font(15), spacing=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which every machine has."""
    return ImageFont.load_default(size)
