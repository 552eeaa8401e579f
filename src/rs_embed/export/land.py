"""Cells of one degree that hold land: they tell places whose longitude and latitude are swapped.

`land.png` is made by `web/land.py` from Natural Earth 1:50m, which is in the public domain.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

_log = logging.getLogger("rs_embed")


@cache
def _cells() -> npt.NDArray[np.bool_]:
    """Return the mask, (180, 360), row 0 north and column 0 at 180°W."""
    with resources.files("rs_embed").joinpath("export", "land.png").open("rb") as stream:
        return np.asarray(Image.open(stream).convert("1"))


def on_land(lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell for each point if its cell holds land; coordinates out of range are not on land."""
    x, y = np.asarray(lon, float), np.asarray(lat, float)
    inside = (np.abs(x) <= 180) & (np.abs(y) <= 90)
    column, row = (np.where(inside, values, 0) for values in (x + 180, 90 - y))
    found = _cells()[np.minimum(row.astype(int), 179), np.minimum(column.astype(int), 359)]
    return np.where(inside, found, False)


def warn_if_swapped(places: npt.ArrayLike, source: object) -> None:
    """Log a warning if no place (longitude, latitude) lies on land, and all would with the two swapped."""
    x, y = np.asarray(places, float).reshape(-1, 2).T
    if x.size and not on_land(x, y).any() and on_land(y, x).all():
        message = "%s: %s would lie on land with longitude and latitude swapped, and in the sea as given: are they?"
        first = f"longitude {x[0]:g}, latitude {y[0]:g}"
        _log.warning(message, source, first if x.size == 1 else f"all {x.size:,} places (the first: {first})")
