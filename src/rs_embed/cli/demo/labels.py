"""The classes of the bundled model that match the CORINE labels of the sample places."""

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
"""Classes of EuroSAT, each with its words for a text query."""

_CLASSES_OF_LABEL = {
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
    """Return the classes that a place with these labels may show."""
    return {answer for label in labels for answer in _CLASSES_OF_LABEL.get(label, ())}
