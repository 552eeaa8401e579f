"""Conversion of raw digital numbers to the network's input, equal to Pillow's bit for bit.

DN (3, y, x) → uint8 (y, x, 3) → shorter side to 224, bicubic with antialiasing → centre crop → (3, 224, 224) f32.
Source: open_clip's `image_transform` for inference (Resize, CenterCrop, ToTensor, Normalize).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rs_embed.arrays import GreyArray
from rs_embed.clip.resample import centre_crop, resize_and_crop_levels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_STRIP_ROWS = 128
_LONGEST_PX = 16 * 224  # Pillow would resize all of a longer strip, of which the crop keeps the centre


def to_uint8(dn: npt.NDArray[np.generic], dn_range: tuple[float, float]) -> GreyArray:
    """Stretch `dn_range` to 0…255, clipped and truncated: (3, y, x) DN to (y, x, 3) uint8.

    Unsigned integers of up to 16 bits are looked up in a table: one step without temporaries or Python's lock.
    """
    if dn.dtype in (np.uint8, np.uint16):
        levels: GreyArray = np.take(_table(dn_range), dn.astype(np.uint16, copy=False), mode="clip")
        return np.ascontiguousarray(levels.transpose(1, 2, 0))
    low, high = dn_range
    rgb = np.empty((*dn.shape[1:], len(dn)), np.uint8)
    for band, rows in enumerate(dn):
        for top in range(0, len(rows), _STRIP_ROWS):  # strips of rows stay in the processor's cache
            grey = rows[top : top + _STRIP_ROWS].astype(np.float32)
            if low:
                grey -= np.float32(low)
            grey /= np.float32(high - low)  # a product with the inverse differs for some DN
            np.clip(grey, 0.0, 1.0, out=grey)
            grey *= np.float32(255.0)
            rgb[top : top + _STRIP_ROWS, :, band] = grey
    return rgb


@lru_cache(maxsize=8)
def _table(dn_range: tuple[float, float]) -> GreyArray:
    """Return the grey level of each DN of 16 bits: (65536,) uint8."""
    return to_uint8(np.arange(1 << 16, dtype=np.float32)[None, None], dn_range).ravel()


def resize_and_crop(rgb: GreyArray, side_px: int) -> GreyArray:
    """Resize the shorter side to `side_px` (bicubic, antialiased) and crop the centre: (y, x, 3) to (side, side, 3)."""
    height, width = rgb.shape[:2]
    (new_height, new_width), (top, left) = centre_crop(height, width, side_px)
    if (new_height, new_width) == (height, width):
        return rgb[top : top + side_px, left : left + side_px]
    if max(new_height, new_width) > _LONGEST_PX:
        levels = torch.from_numpy(rgb).permute(2, 0, 1).float()
        return resize_and_crop_levels(levels, side_px).permute(1, 2, 0).to(torch.uint8).numpy()
    image = Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + side_px, top + side_px)))


def grey_histogram(images: Sequence[GreyArray]) -> npt.NDArray[np.int64]:
    """Count the grey levels of images (y, x, 3): (256,)."""
    counts = [Image.fromarray(image).histogram() for image in images]
    total: npt.NDArray[np.int64] = np.array(counts).reshape(-1, 256).sum(axis=0)
    return total


def normalise(chips: Sequence[GreyArray], device: torch.device | None = None) -> Tensor:
    """Standardise chips by CLIP's mean and deviation: n chips (side, side, 3) uint8 to (n, 3, side, side) f32."""
    levels = torch.from_numpy(np.stack(chips))
    if device is not None and device.type == "cuda":  # bytes, a quarter of the size of floats
        levels = levels.pin_memory().to(device, non_blocking=True)
    levels = levels.permute(0, 3, 1, 2)
    return standardise(levels.to(torch.float32, memory_format=torch.contiguous_format))


def standardise(levels: Tensor) -> Tensor:
    """Standardise grey levels (n, 3, y, x), float32 and in place, by CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(v, device=levels.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return levels.div_(255).sub_(mean).div_(std)
