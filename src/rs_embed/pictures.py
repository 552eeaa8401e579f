"""Pictures of pixels and of token grids, for people."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from rs_embed.arrays import AnyArray, FloatArray, GreyArray, observed

_QUICKLOOK_PX = 512
_PREVIEW_PX = 128
_WHITE_DN, _GAMMA = 3000, 0.75
"""The one stretch of thumbnails: fields and sand are not white yet, woods and lakes not black."""


def quicklook(dn: AnyArray, *, side_px: int = _QUICKLOOK_PX, one_stretch: bool = False) -> Image.Image:
    """Return a picture of (3, y, x) DN, enlarged and stretched p2 to p98, hatched where not observed.

    With `one_stretch` a DN has the same colour in every picture: neighbours meet on a map, and results compare.
    """
    valid = observed(dn)
    seen = dn[:, valid]
    if one_stretch:
        grey = np.maximum(dn.astype(np.float32) / _WHITE_DN, 0) ** _GAMMA
    else:
        low, high = np.percentile(seen.astype(np.float32), [2, 98]) if seen.size else (0.0, 1.0)
        grey = (dn.astype(np.float32) - low) / max(float(high - low), 1e-6)
    return _zoomed(_hatched((np.clip(np.nan_to_num(grey), 0, 1) * 255).astype(np.uint8), ~valid), side_px)


def token_colours(tokens: FloatArray, *, side_px: int = _QUICKLOOK_PX) -> Image.Image:
    """Return a picture of a token grid (d, y, x): its first three principal components as red, green and blue."""
    valid = observed(tokens)
    seen = tokens[:, valid].astype(np.float64)  # (d, n)
    seen -= seen.mean(axis=1, keepdims=True) if seen.size else 0.0
    _, vectors = np.linalg.eigh(seen @ seen.T)  # ascending
    components = vectors[:, :-4:-1].T @ seen  # (3, n); the sign of each is arbitrary
    components *= np.where(np.abs(components.min(axis=1)) > components.max(axis=1), -1, 1)[:, None]
    low, high = np.percentile(components, [2, 98], axis=1) if seen.size else np.array([[0.0], [1.0]])
    scaled = (components - low[:, None]) / np.maximum(high - low, 1e-12)[:, None]
    rgb = np.zeros((3, *valid.shape), np.uint8)
    rgb[:, valid] = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return _zoomed(_hatched(rgb, ~valid), side_px)


def preview_of(dn: AnyArray) -> AnyArray:
    """Return a copy of (3, y, x) pixels with at most 128 a side: every n-th of them."""
    step = -(-max(dn.shape[1:]) // _PREVIEW_PX)
    return dn[:, ::step, ::step].copy()


def side_by_side(*images: Image.Image, gap: int = 16) -> Image.Image:
    """Return pictures in a row on white."""
    width, height = sum(image.width for image in images) + gap * (len(images) - 1), max(i.height for i in images)
    sheet = Image.new("RGB", (width, height), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def png_of(image: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _hatched(rgb: GreyArray, missing: AnyArray) -> Image.Image:
    """Return (3, y, x) uint8 as a picture, hatched where `missing`."""
    rows, cols = np.indices(missing.shape)
    hatch = np.where((rows + cols) // 3 % 2, 168, 208).astype(np.uint8)[..., None].repeat(3, axis=2)
    return Image.fromarray(np.where(missing[..., None], hatch, rgb.transpose(1, 2, 0)))


def _zoomed(image: Image.Image, side_px: int) -> Image.Image:
    """Return a picture enlarged to `side_px` with sharp pixels, or one that is at most twice that large."""
    zoom = side_px / max(image.size)
    if zoom > 1:
        width, height = (max(1, round(side * zoom)) for side in image.size)
        return image.resize((width, height), Image.Resampling.NEAREST)
    image.thumbnail((side_px * 2, side_px * 2), Image.Resampling.LANCZOS)
    return image
