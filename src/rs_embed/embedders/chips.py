"""Chips: a patch cut to model-sized squares, and their tokens stitched to one grid.

`tile` shifts the last row and column of chips in by whole tokens, so that the stitched grid stays regular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from affine import Affine

from rs_embed.arrays import AnyArray, BoolArray, GreyArray, observed
from rs_embed.clip.device import pin
from rs_embed.clip.preprocess import grey_histogram, resize_and_crop, to_uint8
from rs_embed.clip.resample import centre_crop
from rs_embed.errors import ModelError, NoImageryError
from rs_embed.specs import InputPrep

_MIN_CHIP_VALID = 0.5
_SAMPLE_PX = 64


@dataclass(frozen=True, slots=True)
class ChipSize:
    """Sizes of a network's input."""

    image_px: int
    patch_px: int

    @property
    def grid(self) -> int:
        """Tokens on a side of one chip."""
        return self.image_px // self.patch_px


@dataclass(frozen=True, slots=True, kw_only=True)
class Chips:
    """A patch as the network's input."""

    images: tuple[GreyArray | torch.Tensor, ...]
    """Chips (image_px, image_px, 3), or what `Preparation.stage` has instead."""
    histogram: npt.NDArray[np.int64] | None
    """Counts (256,) of the images' grey levels; None for DN, which become grey levels on the device."""
    corners: tuple[tuple[int, int], ...]
    """Row and column of each image's first token in the grid of the patch."""
    grid_hw: tuple[int, int]  # tokens of the patch, rows and columns
    token_affine: Affine
    """From (column, row) in the token grid to (column, row) in the patch's pixels."""
    image_px: int
    """Side of the network's input."""
    zoom: float
    """Patch pixels on a side of one input pixel: more than 1 loses detail, less than 1 interpolates."""
    cropped_frac: float
    """Share of the patch that no image shows."""
    valid_frac: float
    """Share of the patch's pixels that were observed; the others hold the fill value."""
    contrast: float
    """Standard deviation over the observed pixels, of the band where it is largest, in grey levels of 0…255."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """Conversion of DN to the chips of one network."""

    dn_range: tuple[float, float]  # shown as black and as white
    size: ChipSize
    stage: Literal["chips", "rgb", "dn"] = "chips"
    """Last step on the host: chips; RGB of any size, for a network that resizes; DN (3, y, x), for `clip.device`."""

    def cut(self, dn: npt.NDArray[np.generic], *, fill_value: float, prep: InputPrep) -> Chips:
        """Cut (3, y, x) DN with NaN for gaps; `NoImageryError` if all are, or with `tile` over half of each chip."""
        valid = observed(dn)
        valid_frac = float(valid.mean()) if dn.dtype.kind == "f" else 1.0
        if valid_frac == 0.0:
            raise NoImageryError(f"no pixel of the {dn.shape[2]} x {dn.shape[1]} px patch was observed: all are NaN")
        contrast = self._contrast(dn, valid)
        if valid_frac < 1.0:
            dn = np.where(np.isnan(dn), np.float32(fill_value), dn)
        pixels: Any = dn.transpose(1, 2, 0) if self.stage == "dn" else to_uint8(dn, self.dn_range)  # (y, x, 3)
        chips = self._tiled(pixels, valid, valid_frac) if prep == "tile" else self._resized(pixels, valid_frac)
        return replace(chips, contrast=contrast)

    def _contrast(self, dn: AnyArray, valid: BoolArray) -> float:
        """Return `Chips.contrast`, from a sample of about 64 x 64 pixels."""
        step = max(1, min(dn.shape[1:]) // _SAMPLE_PX)
        seen = valid[::step, ::step]
        black, white = self.dn_range
        sample = np.clip(dn[:, ::step, ::step].astype(np.float32), black, white)
        return float(sample.std(axis=(1, 2), where=seen).max() * 255 / (white - black)) if seen.any() else np.inf

    def _resized(self, pixels: Any, valid_frac: float) -> Chips:
        """Shrink or enlarge the whole patch to one chip."""
        (height, width), size = pixels.shape[:2], self.size
        (new_height, new_width), (top, left) = centre_crop(height, width, size.image_px)
        x, y = width / new_width, height / new_height  # patch pixels per model pixel
        images, counts = self._finish([resize_and_crop(pixels, size.image_px) if self.stage == "chips" else pixels])
        return Chips(
            images=images,
            histogram=counts,
            corners=((0, 0),),
            grid_hw=(size.grid, size.grid),
            token_affine=Affine(x * size.patch_px, 0, left * x, 0, y * size.patch_px, top * y),
            image_px=size.image_px,
            zoom=min(width, height) / size.image_px,
            cropped_frac=1.0 - min(width, height) / max(width, height),
            valid_frac=valid_frac,
            contrast=np.inf,
        )

    def _tiled(self, pixels: AnyArray, valid: BoolArray, valid_frac: float) -> Chips:
        """Cut the patch at native resolution, from the top left."""
        (height, width), size = pixels.shape[:2], self.size
        px, token = size.image_px, size.patch_px
        if min(height, width) < px:
            raise ModelError(
                f"input_prep='tile' needs a place of at least {px} x {px} px, got {width} x {height}: "
                "use input_prep='resize' or a larger place"
            )
        corners = [(r, c) for r in _starts(height, size) for c in _starts(width, size)]
        seen = [p for p in corners if _window(valid, p, size).mean() >= _MIN_CHIP_VALID]
        if not seen:
            raise NoImageryError(f"none of the {len(corners)} chips of the place is at least half observed")
        rows, cols = height // token, width // token
        images, counts = self._finish([_window(pixels, p, size) for p in seen])
        return Chips(
            images=images,
            histogram=counts,
            corners=tuple((r // token, c // token) for r, c in seen),
            grid_hw=(rows, cols),
            token_affine=Affine.scale(token),
            image_px=px,
            zoom=1.0,
            cropped_frac=1.0 - rows * cols * token**2 / (height * width),
            valid_frac=valid_frac,
            contrast=np.inf,
        )

    def _finish(self, images: Sequence[Any]) -> tuple[tuple[Any, ...], npt.NDArray[np.int64] | None]:
        """Return the images as `Chips` have them, and their histogram."""
        if self.stage == "dn":
            return tuple(pin(image.transpose(2, 0, 1)) for image in images), None
        images = tuple(map(np.ascontiguousarray, images))
        return images, grey_histogram(images)


def _starts(length: int, size: ChipSize) -> list[int]:
    """Return the first pixels of the chips along one side; the last is shifted inward by whole tokens."""
    last = length // size.patch_px * size.patch_px - size.image_px
    return [*range(0, last, size.image_px), last]


def _window(array: AnyArray, corner: tuple[int, int], size: ChipSize) -> AnyArray:
    row, col = corner
    return array[row : row + size.image_px, col : col + size.image_px]


def stitch(tokens: Sequence[npt.NDArray[np.float32]], chips: Chips) -> npt.NDArray[np.float32]:
    """Stitch the patch tokens of each image, (g, g, w), to one grid (w, rows, cols); NaN where no image was embedded.

    Where images overlap, the first one's tokens count.
    """
    grid = np.full((*chips.grid_hw, tokens[0].shape[-1]), np.nan, dtype=np.float32)
    free = np.ones(chips.grid_hw, dtype=bool)
    for image, (row, col) in zip(tokens, chips.corners, strict=True):
        window = np.s_[row : row + image.shape[0], col : col + image.shape[1]]
        grid[window][free[window]] = image[free[window]]
        free[window] = False
    return np.ascontiguousarray(grid.transpose(2, 0, 1))
