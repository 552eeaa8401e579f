"""The demo's second half: chips of the sample ranked for a few phrases, and how often their labels are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rs_embed.api import get_embeddings_batch
from rs_embed.cli.demo_labels import CLASSES, right_answers
from rs_embed.cli.draw import GAP, GREY, INK, LEFT, PAPER, font
from rs_embed.embedders.text import unit
from rs_embed.embedding import Embedding
from rs_embed.inspection import quicklook
from rs_embed.providers.sample import Sample
from rs_embed.search.query import text_query
from rs_embed.specs import OutputSpec
from rs_embed.texts import zero_shot

CHIP_PX = 60
PHRASES = ("farm fields", "green meadow", "forest", "lake")
_SHOWN, _SIDE = 8, 150


@dataclass(frozen=True, slots=True)
class Chip:
    """A quarter of a sample place, 600 m a side."""

    place: int
    """Number of its place, from 1."""
    sample: Sample
    picture: Image.Image
    vector: npt.NDArray[np.float32]
    """Unit length, in the space of texts."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The chips for one phrase, best first."""

    phrase: str
    chips: tuple[Chip, ...]


def cut_chips(samples: Sequence[Sample], patches: Sequence[npt.NDArray[np.float32]], model: str) -> list[Chip]:
    """Four chips a place, (3, 120, 120) DN each, embedded in one batch."""
    corners = [(row, col) for row in (0, CHIP_PX) for col in (0, CHIP_PX)]
    pixels = [dn[:, row : row + CHIP_PX, col : col + CHIP_PX] for dn in patches for row, col in corners]
    results = get_embeddings_batch(model, input_chws=pixels, output=OutputSpec.pooled("projected"))
    vectors = unit(np.stack([np.asarray(r.data) for r in results if isinstance(r, Embedding)]))
    pictures = [
        look.crop((col * 512 // 120, row * 512 // 120, (col + CHIP_PX) * 512 // 120, (row + CHIP_PX) * 512 // 120))
        for look in map(quicklook, patches)
        for row, col in corners
    ]
    places = [(number, sample) for number, sample in enumerate(samples, start=1) for _ in corners]
    return [
        Chip(number, sample, picture, vector)
        for (number, sample), picture, vector in zip(places, pictures, vectors, strict=True)
    ]


def rank(chips: Sequence[Chip], model: str) -> list[Ranking]:
    """The chips for each phrase."""
    vectors = np.stack([chip.vector for chip in chips])
    found = []
    for phrase in PHRASES:
        order = np.argsort(-(vectors @ text_query(model, phrase)), kind="stable")
        found.append(Ranking(phrase, tuple(chips[i] for i in order)))
    return found


def count_right(chips: Sequence[Chip], model: str) -> dict[int, int]:
    """For each place, how many of its chips get an answer that its labels allow."""
    odds: Any = zero_shot(np.stack([chip.vector for chip in chips]), CLASSES, model=model)
    answers = [list(CLASSES)[i] for i in odds.argmax(axis=1)]
    right = dict.fromkeys((chip.place for chip in chips), 0)
    for chip, answer in zip(chips, answers, strict=True):
        right[chip.place] += answer in right_answers(chip.sample.labels)
    return right


def draw(rankings: Sequence[Ranking], path: Path, model: str) -> Path:
    """One row a phrase, the best chips first."""
    step = _SIDE + GAP
    image = Image.new("RGB", (LEFT + _SHOWN * step, 90 + len(rankings) * (_SIDE + 74)), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((LEFT, 16), f"Places by words: what {model} puts first", INK, font=font(26))
    pen.text(
        (LEFT, 50),
        "chips of 600 m, Sentinel-2 L2A  |  best match at the left  |  number of the place",
        GREY,
        font=font(16),
    )
    for line, ranking in enumerate(rankings):
        y = 90 + line * (_SIDE + 74)
        pen.text((LEFT, y), f"“{ranking.phrase}”", INK, font=font(20))
        for column, chip in enumerate(ranking.chips[:_SHOWN]):
            x = LEFT + column * step
            image.paste(chip.picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, y + 30))
            pen.text((x, y + 34 + _SIDE), f"{chip.place}", GREY, font=font(14))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path
