"""Pillow's bicubic resize, bit for bit, as matrix products on any device.

Pillow resizes 8-bit images in fixed point: an output pixel is a sum of 22-bit integer coefficients times grey levels,
rounded and clipped to 8 bits after the pass along each axis. Floating point computes such sums exactly as long as no
partial sum exceeds the mantissa, so that a product with a matrix of coefficients gives the same levels.
Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's `src/libImaging/Resample.c`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rs_embed.arrays import CoordinateArray

_BITS = 22  # fractional bits of a coefficient
_LOW_BITS = 12  # of the lower half of a coefficient; both halves are exact in TF32, too
_MOST_TAPS = 24  # coefficients of a pixel up to which sums of lower halves stay below 2**24, exact in float32
_REACH = 2.0  # of the bicubic kernel, in input pixels where an image is enlarged


def centre_crop(height: int, width: int, side_px: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) for a shorter side of `side_px`, and (top, left) of the square in the centre.

    The longer side is truncated and the corner rounded to even, as in torchvision.
    """
    shorter = min(height, width)
    size = int(side_px * height / shorter), int(side_px * width / shorter)
    return size, (round((size[0] - side_px) / 2.0), round((size[1] - side_px) / 2.0))


def resize_and_crop_levels(levels: Tensor, side_px: int) -> Tensor:
    """Resize the shorter side to `side_px` and crop the centre: grey levels (…, y, x) to (…, side, side), float32."""
    height, width = levels.shape[-2:]
    size, (top, left) = centre_crop(height, width, side_px)
    if _columns_first((height, width), size):
        return _resize_rows(_resize_columns(levels, size[0], top, side_px), size[1], left, side_px)
    return _resize_columns(_resize_rows(levels, size[1], left, side_px), size[0], top, side_px)


@lru_cache(maxsize=256)
def _columns_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow resizes the columns of an image of this size before its rows.

    The order shows, because levels are rounded in between. Pillow 13 starts with the columns of some tall images
    (https://github.com/python-pillow/Pillow/pull/9549), earlier versions never do: the installed one is tried on noise.
    """
    if size[0] <= resized[0] or size[1] == resized[1]:
        return False
    noise = (np.random.default_rng(0).integers(0, 2, size) * 255).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize(resized[::-1], Image.Resampling.BICUBIC))
    count = min(resized[1], 16)
    rows = _resize_rows(torch.from_numpy(noise).float(), resized[1], 0, count)
    return not np.array_equal(_resize_columns(rows, resized[0], 0, resized[0]).numpy(), theirs[:, :count])


def _resize_columns(levels: Tensor, resized: int, start: int, count: int) -> Tensor:
    return _resize_rows(levels.transpose(-1, -2), resized, start, count).transpose(-1, -2)


def _resize_rows(levels: Tensor, resized: int, start: int, count: int) -> Tensor:
    """Resize the last axis, (…, x) to (…, count): the pixels from `start` of an axis of `resized` pixels."""
    length = levels.shape[-1]
    if resized == length:
        return levels[..., start : start + count]
    matrix = _matrix(length, resized, start, count, levels.device)
    if matrix.dtype == torch.float64:
        sums = levels.double() @ matrix
        return sums.add_(1 << (_BITS - 1)).mul_(2.0**-_BITS).floor_().clamp_(0, 255).float()
    high, low = torch.split(levels.float() @ matrix, count, dim=-1)
    carry = low.add_(1 << (_BITS - 1)).mul_(2.0**-_LOW_BITS).floor_()
    return carry.add_(high).mul_(2.0 ** (_LOW_BITS - _BITS)).floor_().clamp_(0, 255)


@lru_cache(maxsize=64)
def _matrix(length: int, resized: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return the coefficients as (x, 2 * count), upper halves first, or (x, count) float64 where there are many."""
    matrix = bicubic_coefficients(length, resized, start, count).T
    if (matrix != 0).sum(axis=0).max() > _MOST_TAPS:
        return torch.from_numpy(matrix.astype(np.float64)).to(device)
    high = (matrix + (1 << (_LOW_BITS - 1))) >> _LOW_BITS
    halves = np.concatenate([high, matrix - (high << _LOW_BITS)], axis=1)
    return torch.from_numpy(halves.astype(np.float32)).to(device)


def bicubic_coefficients(length: int, resized: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Return Pillow's coefficients (count, length) for the pixels from `start` of an axis of `resized` pixels."""
    scale = length / resized
    stretch = max(scale, 1.0)
    reach = _REACH * stretch
    centre = (np.arange(start, start + count) + 0.5) * scale  # (count,)
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + reach + 0.5).astype(np.int64), length)
    taps = first[:, None] + np.arange(int(np.ceil(reach)) * 2 + 1)  # (count, taps)
    weights = np.where(taps < end[:, None], _cubic((taps - centre[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # a sum in Pillow's order
    whole = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)
    matrix = np.zeros((count, length), np.int64)
    np.add.at(matrix, (np.arange(count)[:, None], np.minimum(taps, length - 1)), whole)
    return matrix


def _cubic(x: CoordinateArray) -> CoordinateArray:
    """Return the cubic convolution kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
