"""A heat map as a picture: the imagery, and the probability over it."""

from __future__ import annotations

from textwrap import shorten

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from rs_embed.cli.demo_picture import GAP, GREY, INK, LEFT, PAPER, font
from rs_embed.inspection import quicklook
from rs_embed.search.heatmap import HeatMap

FloatArray = npt.NDArray[np.float32]

_SIDE, _TOP, _BAR = 480, 84, 70
_HOT = ((255, 237, 160), (254, 178, 76), (240, 59, 32), (128, 0, 38))
"""ColorBrewer's YlOrRd, read by the colour-blind too."""
_PALE, _DENSE, _COVER = 0.1, 0.5, 0.75
"""Nothing is painted below the first; from the second on the imagery is covered by the third."""


def draw(heat: HeatMap) -> Image.Image:
    """The imagery, and the same with the probability over it on one scale from 0 to 100 %."""
    base = quicklook(heat.dn)
    zoom = _SIDE / max(base.size)
    base = base.resize((round(base.width * zoom), round(base.height * zoom)), Image.Resampling.BICUBIC)
    right, bottom = LEFT + _SIDE + GAP, _TOP + base.height
    sheet = Image.new("RGB", (right + _SIDE + LEFT, bottom + _BAR), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (LEFT, 16), f"Where is “{shorten(', '.join(heat.meta['text']), 60, placeholder=' …')}”?", INK, font=font(26)
    )
    found = heat.notice or f"{heat.best[2]:.0%} likely at most"
    about = f"{found}  |  windows of {heat.meta['window_m']:g} m, {heat.meta['model']}"
    pen.text((LEFT, 50), about, GREY, font=font(16))
    sheet.paste(base, (LEFT, _TOP))
    sheet.paste(_over(base, heat.probability), (right, _TOP))
    sheet.paste(_legend(), (right, bottom + 14))
    for share in (0.0, 0.5, 1.0):
        pen.text((right + share * (_SIDE - 36), bottom + 34), f"{share:.0%}", GREY, font=font(14))
    return sheet


def _over(base: Image.Image, probability: FloatArray) -> Image.Image:
    """The imagery paled, under the colours of the probability."""
    pale = Image.blend(base, base.convert("L").convert("RGB"), 0.8)
    known = np.nan_to_num(probability)  # nothing is painted where nothing is known
    shares = Image.fromarray(known).resize(base.size, Image.Resampling.BILINEAR)
    return _painted(np.asarray(pale, np.float32), np.asarray(shares))


def _legend() -> Image.Image:
    shares = np.tile(np.linspace(0, 1, _SIDE, dtype=np.float32), (14, 1))
    return _painted(np.full((*shares.shape, 3), 190, np.float32), shares)


def _painted(pixels: FloatArray, shares: FloatArray) -> Image.Image:
    """Pixels (y, x, 3) under the colour of each share (y, x), the likelier the denser."""
    steps = np.linspace(0, 1, len(_HOT))
    colours = np.stack([np.interp(shares, steps, band) for band in zip(*_HOT, strict=True)], axis=-1)
    cover = (np.clip((shares - _PALE) / (_DENSE - _PALE), 0, 1) * _COVER)[..., None]
    return Image.fromarray(np.round(pixels * (1 - cover) + colours * cover).astype(np.uint8))
