"""Check of the DN offset that an item states against the pixels of the whole scene, on a coarse overview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.sentinel2 import OFFSET_2022, Radiometry

_TOO_DARK_DN = 900  # DN that no reflectance falls under while 1000 is still added
_DARKEST_WITH_OFFSET_DN = 1500.0
MANY_TOO_DARK = 0.005  # share of too dark pixels from which the offset is certainly subtracted
_MIN_PIXELS = 1000


@dataclass(frozen=True, slots=True)
class DarkPixels:
    """Dark end of one band's histogram over a whole scene, in stored DN."""

    too_dark_share: float  # share of the valid pixels in 1…900
    darkest_dn: float  # 0.1st percentile of the valid pixels


def dark_pixels(values: npt.NDArray[Any], nodata: float | None = None) -> DarkPixels | None:
    """Return the dark end of a band's histogram; None where too few pixels are valid (0 and `nodata` are no data)."""
    valid = values[(values > 0) & (values != nodata)] if nodata else values[values > 0]
    if not np.issubdtype(values.dtype, np.integer) or valid.size < _MIN_PIXELS:
        return None
    cumulative = np.cumsum(np.bincount(valid))  # five times as fast as np.percentile
    darkest = np.searchsorted(cumulative, 0.001 * valid.size)
    return DarkPixels(float(cumulative[min(_TOO_DARK_DN, len(cumulative) - 1)] / valid.size), float(darkest))


def has_offset(bands: Sequence[DarkPixels]) -> bool | None:
    """Return True where a scene's pixels still carry the +1000 of 2022, False where not, None where unclear.

    The offset is subtracted when one band has many pixels that are too dark, and present when every band begins right
    above 1000. A scene without dark pixels (desert, snow) begins higher in at least one band, and is unclear.
    """
    if any(band.too_dark_share >= MANY_TOO_DARK for band in bands):
        return False
    if len(bands) > 1 and all(_TOO_DARK_DN < band.darkest_dn <= _DARKEST_WITH_OFFSET_DN for band in bands):
        return True
    return None


def check_offset(
    stated: Radiometry, bands: Sequence[DarkPixels], *, pixels_decide: bool
) -> tuple[Radiometry, str | None]:
    """Return the radiometry to use, and the contradiction between the stated one and the pixels if one is left."""
    present = has_offset(bands)
    if present is None or stated.gain != 1.0 or stated.offset not in (0.0, OFFSET_2022, None):
        return stated, None
    offset = OFFSET_2022 if present else 0.0
    if stated.offset == offset:
        return stated, None
    if present:
        evidence = f"its darkest pixels begin at DN {min(band.darkest_dn for band in bands):.0f}"
    else:
        evidence = f"{max(band.too_dark_share for band in bands):.1%} of its pixels are under DN 900"
    conclusion = f"the offset of 2022 is {'still in' if present else 'already out'}"
    if pixels_decide:
        reason = f"the pixels: {evidence}, so {conclusion} (the item says otherwise: {stated.reason})"
        return Radiometry(1.0, offset, reason), None
    return stated, f"{evidence}, as if {conclusion}, and the item says otherwise ({stated.reason})"
