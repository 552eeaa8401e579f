"""The demo's comparisons: of places with each other, and of their chips with phrases and labels."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rs_embed.api import get_embeddings_batch
from rs_embed.arrays import FloatArray
from rs_embed.embedders.text import unit
from rs_embed.embedding import Embedding
from rs_embed.patch import Patch
from rs_embed.pictures import quicklook
from rs_embed.providers.sample import Sample
from rs_embed.search.draw import GAP, GREY, LEFT, Sheet
from rs_embed.search.query import text_query
from rs_embed.specs import OutputSpec
from rs_embed.texts import zero_shot

_PLACE_PX, _PLACES_TOP, _ROW_PX = 220, 84, 290
CHIP_PX = 60
PHRASES = ("farm fields", "green meadow", "forest", "lake")
_SHOWN, _CHIP_SIDE, _PHRASE_PX = 8, 150, 224

_MIXED_FARMLAND = "Land principally occupied by agriculture, with significant areas of natural vegetation"
CLASSES = {  # of the bundled model (those of EuroSAT), each with its words for a text query
    "annual crop": ("annual crop", "farm fields"),
    "forest": ("forest",),
    "herbaceous vegetation": ("herbaceous vegetation", "shrubs"),
    "highway": ("highway",),
    "industrial buildings": ("industrial buildings",),
    "pasture": ("pasture",),
    "permanent crop": ("permanent crop", "orchard"),
    "residential buildings": ("residential buildings", "houses"),
    "river": ("river",),
    "sea or lake": ("sea or lake", "lake"),
}
_CLASSES_OF_LABEL = {  # CORINE labels of the sample places, each with the classes that match it
    "Non-irrigated arable land": {"annual crop"},
    "Pastures": {"pasture"},
    "Complex cultivation patterns": {"annual crop", "permanent crop"},
    _MIXED_FARMLAND: {"annual crop", "pasture", "herbaceous vegetation"},
    "Broad-leaved forest": {"forest"},
    "Coniferous forest": {"forest"},
    "Mixed forest": {"forest"},
    "Transitional woodland/shrub": {"herbaceous vegetation", "forest"},
    "Peatbogs": {"herbaceous vegetation"},
    "Water bodies": {"sea or lake"},
}


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


def draw_places(places: Sequence[SamplePlace], model: str) -> Sheet:
    """Draw all places side by side."""
    similarity = cosine(places)
    np.fill_diagonal(similarity, -np.inf)
    grids = _false_colour([np.asarray(place.grid.data) for place in places])
    looks = [quicklook(place.patch.dn) for place in places]
    size = LEFT + len(places) * (_PLACE_PX + GAP), _PLACES_TOP + 3 * _ROW_PX
    grid = f"{grids[0].width}x{grids[0].height} token grid, principal components as colours"
    subtitle = f"real Sentinel-2 imagery  |  {grid}  |  most similar place"
    sheet = Sheet.titled(size, f"Six places, as {model} sees them", subtitle)
    for column, (place, nearest) in enumerate(zip(places, similarity.argmax(axis=1), strict=True)):
        tiles = (
            (looks[column], f"{column + 1}. {place.sample.labels[0]}, {place.sample.date}"),
            (grids[column], "token grid"),
            (looks[nearest], f"most similar: {nearest + 1}, cosine {similarity[column, nearest]:.2f}"),
        )
        for row, (tile, caption) in enumerate(tiles):
            x, y = LEFT + column * (_PLACE_PX + GAP), _PLACES_TOP + row * _ROW_PX
            sheet.tile(tile, (x, y), _PLACE_PX, textwrap.fill(caption, 28), size=15)
    return sheet


def _false_colour(grids: Sequence[FloatArray]) -> list[Image.Image]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A quarter of a sample place, 600 m a side."""

    place: int  # number of its place, from 1
    labels: tuple[str, ...]
    picture: Image.Image
    vector: FloatArray  # CLIP projection of length 1, in the space of texts


Rankings = dict[str, list[Chip]]  # chips for each phrase, best first


def cut_chips(places: Sequence[SamplePlace], model: str) -> list[Chip]:
    """Return four chips per place, embedded in one batch."""
    corners = list(itertools.product((0, CHIP_PX), repeat=2))
    pixels = [place.patch.dn[:, y : y + CHIP_PX, x : x + CHIP_PX] for place in places for y, x in corners]
    results = get_embeddings_batch(model, input_chws=pixels, output=OutputSpec.pooled("projected"))
    vectors = unit(np.stack([np.asarray(r.data) for r in results if isinstance(r, Embedding)]))
    looks = [(n, place.sample.labels, quicklook(place.patch.dn)) for n, place in enumerate(places, start=1)]
    return [
        Chip(place=number, labels=labels, picture=_quarter(look, *corner), vector=vector)
        for ((number, labels, look), corner), vector in zip(itertools.product(looks, corners), vectors, strict=True)
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


def draw_rankings(rankings: Rankings, model: str) -> Sheet:
    """Draw one row per phrase, the best chips first."""
    size = LEFT + _SHOWN * (_CHIP_SIDE + GAP), 90 + len(rankings) * _PHRASE_PX
    subtitle = "chips of 600 m, Sentinel-2 L2A  |  best match on the left  |  numbers are those of the places"
    sheet = Sheet.titled(size, f"Places by words, ranked by {model}", subtitle)
    for row, (phrase, chips) in enumerate(rankings.items()):
        y = 90 + row * _PHRASE_PX
        sheet.write((LEFT, y), f"“{phrase}”", size=20)
        for column, chip in enumerate(chips[:_SHOWN]):
            x = LEFT + column * (_CHIP_SIDE + GAP)
            sheet.tile(chip.picture, (x, y + 30), _CHIP_SIDE, str(chip.place), GREY)
    return sheet


def right_answers(labels: Sequence[str]) -> set[str]:
    """Return the classes that a place with these labels may show."""
    return set().union(*(_CLASSES_OF_LABEL.get(label, set()) for label in labels))
