"""What the sample places' labels (CORINE land cover) are called in the bundled model's ten classes."""

from __future__ import annotations

from collections.abc import Sequence

CLASSES = {
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
"""EuroSAT's classes, each with the words that ask for it."""

_MEANS = {
    "Non-irrigated arable land": ("annual crop",),
    "Pastures": ("pasture",),
    "Complex cultivation patterns": ("annual crop", "permanent crop"),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "annual crop",
        "pasture",
        "herbaceous vegetation",
    ),
    "Broad-leaved forest": ("forest",),
    "Coniferous forest": ("forest",),
    "Mixed forest": ("forest",),
    "Transitional woodland/shrub": ("herbaceous vegetation", "forest"),
    "Peatbogs": ("herbaceous vegetation",),
    "Water bodies": ("sea or lake",),
}


def right_answers(labels: Sequence[str]) -> set[str]:
    """Classes that a place with these labels may show."""
    return {answer for label in labels for answer in _MEANS.get(label, ())}
