"""The DN offset that an item tells against the one that its pixels show, on a coarse overview of the whole scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.sentinel2 import OFFSET_2022, Radiometry

_IMPOSSIBLE_DN = 900
_DARK_WITH_OFFSET = 1500.0
MANY_DARK = 0.005
"""Share of impossibly dark pixels from which the offset is out for sure."""
_ENOUGH_PIXELS = 1000


@dataclass(frozen=True, slots=True)
class DarkEnd:
    """The dark end of one band over a whole scene, in DN as stored: it shows whether the offset is still in."""

    low_share: float
    """Share of the valid pixels in 1…900: reflectances that cannot be while 1000 is still added."""
    edge: float
    """DN that 0.1 % of the valid pixels lie under."""


def dark_end(values: npt.NDArray[Any]) -> DarkEnd | None:
    """The dark end of stored values, 0 no data; None where there are too few to tell."""
    valid = values[values > 0]
    if not np.issubdtype(values.dtype, np.integer) or valid.size < _ENOUGH_PIXELS:
        return None
    cumulative = np.cumsum(np.bincount(valid))  # a fifth of the time of a percentile
    edge = np.searchsorted(cumulative, 0.001 * valid.size)
    return DarkEnd(float(cumulative[min(_IMPOSSIBLE_DN, len(cumulative) - 1)] / valid.size), float(edge))


def offset_seen(bands: Sequence[DarkEnd]) -> bool | None:
    """Whether the pixels of a scene still carry the +1000 of 2022: True, False, or None where they do not tell.

    Out: one band has many pixels that are too dark. In: every band begins right above 1000. A scene without
    dark pixels (a sand sea, snow) begins higher in one band at least, and does not tell.
    """
    if any(band.low_share >= MANY_DARK for band in bands):
        return False
    if len(bands) > 1 and all(_IMPOSSIBLE_DN < band.edge <= _DARK_WITH_OFFSET for band in bands):
        return True
    return None


def confront(rule: Radiometry, bands: Sequence[DarkEnd], *, decide: bool) -> tuple[Radiometry, str | None]:
    """What the item says against what the pixels show: the rule to use, and the contradiction if there is one.

    Args:
        rule: from the item.
        bands: dark ends of the scene's bands.
        decide: whether the pixels win.
    """
    seen = offset_seen(bands)
    if seen is None or rule.gain != 1.0 or rule.offset not in (0.0, OFFSET_2022, None):
        return rule, None
    shown = OFFSET_2022 if seen else 0.0
    if rule.offset == shown:
        return rule, None
    low, edge = max(band.low_share for band in bands), min(band.edge for band in bands)
    found = f"its darkest pixels begin at DN {edge:.0f}" if seen else f"{low:.1%} of its pixels are under DN 900"
    says = f"the offset of 2022 is {'still in' if seen else 'already out'}"
    if decide:
        return Radiometry(1.0, shown, f"the pixels: {found}, so {says} (the item says otherwise: {rule.reason})"), None
    return rule, f"{found}, as if {says}, and the item says otherwise ({rule.reason})"
