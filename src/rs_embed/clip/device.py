"""The conversion of `clip.preprocess` on a GPU: DN are copied as they are, stretched and resized there, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from rs_embed.arrays import AnyArray
from rs_embed.clip.resample import resize_and_crop_levels

_MOST_BYTES = 1 << 30  # float32 levels resized at once; larger batches of large patches take several rounds
_SAME_ON_DEVICE = (np.uint8, np.uint16, np.float32)


def pin(dn: AnyArray) -> Tensor:
    """Copy DN of any layout, (3, y, x), to memory that CUDA, where there is one, reads directly.

    Threads copy patches one by one, faster together than one thread stacks them.
    """
    if dn.dtype not in _SAME_ON_DEVICE:
        dn = dn.astype(np.float32)
    found = torch.empty(dn.shape, dtype=getattr(torch, dn.dtype.name), pin_memory=torch.cuda.is_available())
    np.copyto(found.numpy(), dn)
    return found


def chips_of(patches: Sequence[Tensor], dn_range: tuple[float, float], side_px: int, device: torch.device) -> Tensor:
    """Stretch, resize and crop DN (3, y, x) of any shapes and types: grey levels (n, 3, side, side), float32."""
    levels = torch.empty((len(patches), 3, side_px, side_px), device=device)
    for key in dict.fromkeys((p.shape, p.dtype) for p in patches):
        members = [i for i, p in enumerate(patches) if (p.shape, p.dtype) == key]
        step = max(1, _MOST_BYTES // (4 * key[0].numel()))
        for part in (members[i : i + step] for i in range(0, len(members), step)):
            grey = _stretch(_upload([patches[i] for i in part], device), dn_range)
            chips = grey if grey.shape[-2:] == (side_px, side_px) else resize_and_crop_levels(grey, side_px)
            if len(part) == len(patches):
                return chips.contiguous()
            levels[part] = chips
    return levels


def histograms_of(levels: Tensor) -> Tensor:
    """Count the grey levels of each image: (n, 3, y, x) to (n, 256) float32, exact."""
    n = len(levels)
    shifted = levels.flatten(1) + (256 * torch.arange(n, device=levels.device)[:, None] + 0.5)
    return torch.histc(shifted, bins=256 * n, min=0, max=256 * n).view(n, 256)


def _stretch(dn: Tensor, dn_range: tuple[float, float]) -> Tensor:
    """Stretch as `preprocess.to_uint8` does, each step rounded to float32 as there."""
    low, high = dn_range
    grey = dn.to(torch.float32)
    if low:
        grey = grey - low
    grey = grey / torch.tensor(high - low, device=dn.device)  # by a tensor: CUDA multiplies by the inverse of a number
    return grey.clamp_(0.0, 1.0).mul_(255.0).floor_()


def _upload(patches: Sequence[Tensor], device: torch.device) -> Tensor:
    """Copy patches of one shape and type to the device, (n, 3, y, x); on CUDA by a stream beside the computation."""
    if device.type != "cuda":
        return torch.stack(list(patches)).to(device)
    copies, work = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        batch = torch.empty((len(patches), *patches[0].shape), dtype=patches[0].dtype, device=device)
        for slot, patch in zip(batch, patches, strict=True):
            slot.copy_(patch, non_blocking=True)
    work.wait_stream(copies)
    batch.record_stream(work)
    return batch


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
