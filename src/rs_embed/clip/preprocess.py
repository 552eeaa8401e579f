"""Conversion of raw digital numbers to the network's input, equal to Pillow's bit for bit.

DN (3, y, x) → uint8 (y, x, 3) → shorter side to 224, bicubic with antialiasing → centre crop → (3, 224, 224) f32.
Source: open_clip's `image_transform` for inference (Resize, CenterCrop, ToTensor, Normalize).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_STRIP_ROWS = 128
_LONGEST_PX = 16 * 224
"""A resized strip longer than this is cropped while it is resized: the same pixels in bounded memory."""


def to_uint8(dn: npt.NDArray[np.generic], dn_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Stretch `dn_range` to 0…255, clipped and truncated: (3, y, x) DN to (y, x, 3) uint8.

    Divides rather than multiplies by the inverse: in float32 the two differ for some DN. Strips of rows, one band at
    a time, so that the floats stay in the processor's cache.
    """
    low, high = dn_range
    bands, height, width = dn.shape
    rgb = np.empty((height, width, bands), np.uint8)
    floats = np.empty((min(height, _STRIP_ROWS), width), np.float32)
    for band in range(bands):
        for top in range(0, height, _STRIP_ROWS):
            rows = dn[band, top : top + _STRIP_ROWS]
            grey = floats[: len(rows)]
            grey[...] = rows
            if low:
                grey -= np.float32(low)
            grey /= np.float32(high - low)
            np.clip(grey, 0.0, 1.0, out=grey)
            grey *= np.float32(255.0)
            rgb[top : top + _STRIP_ROWS, :, band] = grey
    return rgb


def resize_and_crop(rgb: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Resize the shorter side to `side_px` (bicubic, antialiased) and crop the centre: (y, x, 3) to (side, side, 3)."""
    height, width = rgb.shape[:2]
    new_width, new_height = resized_size(width, height, side_px)
    left, top = round((new_width - side_px) / 2.0), round((new_height - side_px) / 2.0)
    image = Image.fromarray(rgb)
    if (new_width, new_height) == (width, height):
        return rgb[top : top + side_px, left : left + side_px]
    if max(new_width, new_height) > _LONGEST_PX:
        x, y = width / new_width, height / new_height
        box = (left * x, top * y, (left + side_px) * x, (top + side_px) * y)
        return np.asarray(image.resize((side_px, side_px), Image.Resampling.BICUBIC, box=box))
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + side_px, top + side_px)))


def resized_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """Return (width, height) for a shorter side of `side_px`; the longer side is truncated, as in torchvision."""
    if width <= height:
        return side_px, int(side_px * height / width)
    return int(side_px * width / height), side_px


def normalise(chips: Sequence[npt.NDArray[np.uint8]], device: torch.device | None = None) -> Tensor:
    """Standardise chips by CLIP's mean and standard deviation: n chips (side, side, 3) uint8 to (n, 3, side, side) f32.

    CUDA receives the bytes, a quarter of the size of floats, and converts them to the same numbers.
    """
    return _standardised(_on_device(chips, device).to(torch.float32, memory_format=torch.contiguous_format))


def resize_on_device(
    images: Sequence[npt.NDArray[np.uint8]], side_px: int, device: torch.device | None = None
) -> Tensor:
    """`resize_and_crop` and `normalise` on the device: images (y, x, 3) uint8 of any shapes to (n, 3, side, side) f32.

    torch's antialiased bicubic filter instead of Pillow's: under 2 % of the grey levels differ, by one, or by two.
    """
    found: list[Tensor] = [torch.empty(0)] * len(images)
    for shape in {image.shape for image in images}:  # images of one shape are resized together
        members = [i for i, image in enumerate(images) if image.shape == shape]
        width, height = resized_size(shape[1], shape[0], side_px)
        left, top = round((width - side_px) / 2.0), round((height - side_px) / 2.0)
        grey = _on_device([images[i] for i in members], device).to(torch.float32)
        for size in ((shape[0], width), (height, width)):  # along rows, then along columns, rounded in between
            if size != tuple(grey.shape[2:]):
                grey = F.interpolate(grey, size, mode="bicubic", antialias=True).round_().clamp_(0, 255)
        for i, chip in zip(members, grey[:, :, top : top + side_px, left : left + side_px], strict=True):
            found[i] = chip
    return _standardised(torch.stack(found))


def _on_device(images: Sequence[npt.NDArray[np.uint8]], device: torch.device | None) -> Tensor:
    """Copy images of one shape to the device, (n, 3, y, x) uint8; to CUDA on a stream beside the computation."""
    batch = torch.from_numpy(np.stack(images))
    if device is not None and device.type == "cuda":
        copies, work = _copy_stream(device), torch.cuda.current_stream(device)
        with torch.cuda.stream(copies):
            batch = batch.pin_memory().to(device, non_blocking=True)
        work.wait_stream(copies)
        batch.record_stream(work)
    return batch.permute(0, 3, 1, 2)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _standardised(grey: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=grey.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return grey.div_(255).sub_(mean).div_(std)
