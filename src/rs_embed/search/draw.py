"""Pictures for people: fonts, colours and the sheets that commands draw."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rs_embed.arrays import FloatArray
from rs_embed.errors import visible
from rs_embed.files import atomic_write, make_folder
from rs_embed.pictures import quicklook

if TYPE_CHECKING:
    from rs_embed.search.heatmap import HeatMap
    from rs_embed.search.results import SearchResults

INK, GREY, PAPER = "#1b1f24", "#5b6470", "#ffffff"
GAP = LEFT = 24
_COLUMNS, _TILE, _CAPTION = 5, 192, 50
_LARGEST_THUMBNAIL = 1024
_MAP_SIDE, _MAP_TOP, _LEGEND = 480, 84, 70
_HOT = ((255, 237, 160), (254, 178, 76), (240, 59, 32), (128, 0, 38))  # ColorBrewer's YlOrRd, safe if colour-blind
_PALE, _DENSE, _COVER = 0.1, 0.5, 0.75  # probability up to which nothing and from which most is painted; its opacity


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, so that it is on every machine."""
    return ImageFont.load_default(size)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A white picture with a title, to put pictures and text on."""

    image: Image.Image
    pen: ImageDraw.ImageDraw

    @classmethod
    def titled(cls, size: tuple[int, int], title: str, subtitle: str) -> Sheet:
        """Return a sheet of (width, height) px; lines that are too long for it are shortened."""
        image, title, subtitle = Image.new("RGB", size, PAPER), visible(title), visible(subtitle)
        sheet = cls(image, ImageDraw.Draw(image))
        sheet.write((LEFT, 16), sheet._fitted(title, 26), size=26)
        sheet.write((LEFT, 50), sheet._fitted(subtitle, 16), GREY, 16)
        return sheet

    def write(self, at: tuple[float, float], text: str, colour: str = INK, size: int = 14) -> None:
        """Write text at a position, in px from the top left."""
        self.pen.multiline_text(at, text, colour, font=font(size), spacing=3)

    def tile(
        self, picture: Image.Image, at: tuple[int, int], side: int, caption: str, colour: str = INK, size: int = 14
    ) -> None:
        """Paste a picture, resized to a square of `side` px, and write a caption below it."""
        self.image.paste(picture.resize((side, side), Image.Resampling.NEAREST), at)
        self.write((at[0], at[1] + side + 4), caption, colour, size)

    def save(self, path: Path) -> Path:
        """Write the picture to a file and make its folder."""
        make_folder(path.parent)
        with atomic_write(path) as part:
            self.image.save(part)
        return path

    def _fitted(self, text: str, size: int) -> str:
        width = self.image.width - 2 * LEFT
        shorter = (text[:count] + "…" for count in range(len(text) - 1, 0, -1))
        return next((t for t in (text, *shorter) if self.pen.textlength(t, font=font(size)) <= width), "…")


def contact_sheet(found: SearchResults, thumbnails: Mapping[str, bytes], title: str = "") -> Sheet:
    """Draw the thumbnails of search results, the best first, each with its rank and place."""
    step, rows = _TILE + 16, -(-max(len(found.hits), 1) // _COLUMNS)
    size = LEFT + _COLUMNS * step + 8, 90 + rows * (_TILE + _CAPTION)
    sheet = Sheet.titled(
        size, f"“{title}”" if title else "Search results", found.notice or f"the best of {found.searched:,}"
    )
    for number, hit in enumerate(found.hits):
        x, y = LEFT + number % _COLUMNS * step, 90 + number // _COLUMNS * (_TILE + _CAPTION)
        if (look := _picture(thumbnails.get(hit.unique_id, b""))) is not None:
            sheet.image.paste(look.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (x, y))
        else:
            sheet.pen.rectangle((x, y, x + _TILE, y + _TILE), outline=GREY)
            sheet.write((x + 8, y + _TILE // 2 - 8), "no thumbnail", GREY)
        sheet.write((x, y + _TILE + 4), f"{hit.rank}   {hit.lat:.4f}, {hit.lon:.4f}")
    return sheet


def _picture(png: bytes) -> Image.Image | None:
    """Return the picture of a PNG; None for one that is damaged or far larger than a thumbnail."""
    try:
        picture = Image.open(io.BytesIO(png), formats=("PNG",))
        return picture.convert("RGB") if max(picture.size) <= _LARGEST_THUMBNAIL else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def heat_map_sheet(heat: HeatMap) -> Sheet:
    """Draw the imagery, and beside it the same under the probability, on one scale from 0 to 100 %."""
    base = quicklook(heat.dn)
    zoom = _MAP_SIDE / max(base.size)
    base = base.resize((round(base.width * zoom), round(base.height * zoom)), Image.Resampling.BICUBIC)
    right, bottom = LEFT + _MAP_SIDE + GAP, _MAP_TOP + base.height
    found = heat.notice or f"{heat.best[2]:.0%} likely at most"
    title = f"Where is “{shorten(', '.join(heat.meta['text']), 60, placeholder=' …')}”?"
    subtitle = f"{found}  |  windows of {heat.meta['window_m']:g} m, {heat.meta['model']}"
    sheet = Sheet.titled((right + _MAP_SIDE + LEFT, bottom + _LEGEND), title, subtitle)
    sheet.image.paste(base, (LEFT, _MAP_TOP))
    sheet.image.paste(overlaid(base, heat.probability), (right, _MAP_TOP))
    sheet.image.paste(_legend(), (right, bottom + 14))
    if heat.meta["warnings"]:
        kinds = "; ".join(dict.fromkeys(text.partition(":")[0] for text in heat.meta["warnings"]))
        sheet.write((LEFT, bottom + 14), shorten(f"Warnings: {kinds}", 70, placeholder=" …"))
    for share in (0.0, 0.5, 1.0):
        sheet.write((right + share * (_MAP_SIDE - 36), bottom + 34), f"{share:.0%}")
    return sheet


def overlaid(base: Image.Image, probability: FloatArray) -> Image.Image:
    """Return the imagery in pale colours, painted with the probability where it is known."""
    pale = Image.blend(base, base.convert("L").convert("RGB"), 0.8)
    known = Image.fromarray(np.nan_to_num(probability)).resize(base.size, Image.Resampling.BILINEAR)
    return _painted(np.asarray(pale, np.float32), np.asarray(known))


def _legend() -> Image.Image:
    scale = np.tile(np.linspace(0, 1, _MAP_SIDE, dtype=np.float32), (14, 1))
    return _painted(np.full((*scale.shape, 3), 190, np.float32), scale)


def _painted(pixels: FloatArray, probability: FloatArray) -> Image.Image:
    """Paint pixels (y, x, 3) with the colour of each probability (y, x); a higher one covers more."""
    steps = np.linspace(0, 1, len(_HOT))
    colours = np.stack([np.interp(probability, steps, band) for band in zip(*_HOT, strict=True)], axis=-1)
    cover = (np.clip((probability - _PALE) / (_DENSE - _PALE), 0, 1) * _COVER)[..., None]
    return Image.fromarray(np.round(pixels * (1 - cover) + colours * cover).astype(np.uint8))
