"""The demo's search: chips of the sample ranked for a few phrases, and classified against their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rs_embed.api import get_embeddings_batch
from rs_embed.arrays import FloatArray
from rs_embed.cli.demo.labels import CLASSES, right_answers
from rs_embed.cli.demo.picture import SamplePlace
from rs_embed.cli.draw import GAP, GREY, LEFT, Sheet
from rs_embed.embedders.text import unit
from rs_embed.embedding import Embedding
from rs_embed.inspection import quicklook
from rs_embed.search.query import text_query
from rs_embed.specs import OutputSpec
from rs_embed.texts import zero_shot

CHIP_PX = 60
PHRASES = ("farm fields", "green meadow", "forest", "lake")
_SHOWN, _SIDE, _STEP = 8, 150, 224


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A quarter of a sample place, 600 m a side."""

    place: int
    """Number of its place, from 1."""
    labels: tuple[str, ...]
    picture: Image.Image
    vector: FloatArray
    """CLIP projection of length 1, in the space of texts."""


Rankings = dict[str, list[Chip]]
"""Chips for each phrase, best first."""


def cut_chips(places: Sequence[SamplePlace], model: str) -> list[Chip]:
    """Return four chips per place, embedded in one batch."""
    quarters = [
        (number, place.sample.labels, place.patch.dn[:, row : row + CHIP_PX, col : col + CHIP_PX], (row, col))
        for number, place in enumerate(places, start=1)
        for row in (0, CHIP_PX)
        for col in (0, CHIP_PX)
    ]
    looks = [quicklook(place.patch.dn) for place in places]
    pixels = [dn for _, _, dn, _ in quarters]
    results = get_embeddings_batch(model, input_chws=pixels, output=OutputSpec.pooled("projected"))
    vectors = unit(np.stack([np.asarray(r.data) for r in results if isinstance(r, Embedding)]))
    return [
        Chip(place=number, labels=labels, picture=_quarter(looks[number - 1], *corner), vector=vector)
        for (number, labels, _, corner), vector in zip(quarters, vectors, strict=True)
    ]


def _quarter(look: Image.Image, row: int, col: int) -> Image.Image:
    """Cut a chip out of the quicklook of its place, which keeps the stretch of the whole place."""
    zoom = look.width / (2 * CHIP_PX)
    left, top = int(col * zoom), int(row * zoom)
    return look.crop((left, top, left + look.width // 2, top + look.height // 2))


def rank(chips: Sequence[Chip], model: str) -> Rankings:
    """Return the chips for each phrase, best first."""
    vectors = np.stack([chip.vector for chip in chips])
    orders = {phrase: np.argsort(-(vectors @ text_query(model, phrase)), kind="stable") for phrase in PHRASES}
    return {phrase: [chips[i] for i in order] for phrase, order in orders.items()}


def count_right(chips: Sequence[Chip], model: str) -> dict[int, int]:
    """Return the number of chips of each place that are classified as one of its labels."""
    probabilities = zero_shot(np.stack([chip.vector for chip in chips]), CLASSES, model=model)
    right = dict.fromkeys((chip.place for chip in chips), 0)
    for chip, best in zip(chips, probabilities.argmax(axis=1), strict=True):
        right[chip.place] += list(CLASSES)[best] in right_answers(chip.labels)
    return right


def draw(rankings: Rankings, model: str) -> Sheet:
    """Draw one row per phrase, the best chips first."""
    sheet = Sheet.titled(
        (LEFT + _SHOWN * (_SIDE + GAP), 90 + len(rankings) * _STEP),
        f"Places by words, ranked by {model}",
        "chips of 600 m, Sentinel-2 L2A  |  best match on the left  |  numbers are those of the places",
    )
    for row, (phrase, chips) in enumerate(rankings.items()):
        y = 90 + row * _STEP
        sheet.write((LEFT, y), f"“{phrase}”", size=20)
        for column, chip in enumerate(chips[:_SHOWN]):
            x = LEFT + column * (_SIDE + GAP)
            sheet.paste(chip.picture, (x, y + 30), _SIDE)
            sheet.write((x, y + 34 + _SIDE), str(chip.place), GREY)
    return sheet
