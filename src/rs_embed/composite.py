"""Composites of scenes on one grid: median or mosaic over the observed pixels.

The median sorts all scenes at once with a network of element-wise minima and maxima, which is several times faster
than `np.nanmedian` (see `benchmarks/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.arrays import BoolArray, FloatArray, GreyArray
from rs_embed.patch import SceneRecord
from rs_embed.sentinel2 import CLEAR_SCL

DnArray = npt.NDArray[Any]
"""uint16 or float32."""

_STRIP_BYTES = 1 << 20
"""Work on strips that stay in the processor's cache."""
_IS_CLEAR = np.isin(np.arange(256), CLEAR_SCL)  # by class: ten times as fast as `isin` of a small place


@dataclass(frozen=True, slots=True)
class SceneImage:
    """Pixels of one scene on the target grid."""

    dn: DnArray
    """(bands, y, x), harmonised."""
    valid: BoolArray
    """(y, x), True where all bands were observed."""
    scl: GreyArray | None = None
    """(y, x) scene classification, 0 where there is none; None when the scene has none at all."""
    record: SceneRecord | None = None
    """Provenance of the scene."""
    warnings: tuple[str, ...] = ()
    """Doubts about the scene, for the metadata."""

    @property
    def clear(self) -> BoolArray | None:
        """Clear pixels (y, x), True where the ground is seen; None without a scene classification."""
        return None if self.scl is None else _IS_CLEAR[self.scl] & self.valid

    def masked(self) -> SceneImage:
        """Return the image with pixels that are not clear marked as not observed."""
        return self if self.clear is None else replace(self, valid=self.clear)


def median(images: Sequence[SceneImage]) -> FloatArray:
    """Return the median over time of each band: (bands, y, x) float32, NaN where no image observed."""
    if len(images) == 1:
        return np.where(images[0].valid, images[0].dn, np.float32(np.nan)).astype(np.float32, copy=False)
    bands, height, width = images[0].dn.shape
    out = np.empty((bands, height, width), dtype=np.float32)
    row_bytes = len(images) * bands * width * images[0].dn.itemsize
    rows = max(1, _STRIP_BYTES // max(row_bytes, 1))
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        out[:, strip] = _median_strip([i.dn[:, strip] for i in images], [i.valid[strip] for i in images])
    return out


def mosaic(images: Iterable[SceneImage]) -> FloatArray:
    """Return the first observation of each pixel: (bands, y, x) float32, NaN where no image observed.

    No more images are read once every pixel is observed.
    """
    out: FloatArray | None = None
    for image in images:
        if out is None:
            out = np.full(image.dn.shape, np.nan, dtype=np.float32)
        missing = np.isnan(out[0])
        np.copyto(out, image.dn, where=missing & image.valid, casting="same_kind")
        if not np.isnan(out[0]).any():
            break
    if out is None:
        raise ValueError("a mosaic of no image")
    return out


def clear_masks(images: Sequence[SceneImage]) -> list[BoolArray] | None:
    """Return each image's clear pixels; those without a scene classification have none. None when no image has one."""
    if all(image.scl is None for image in images):
        return None
    never = np.zeros(images[0].valid.shape, dtype=bool)
    return [never if image.clear is None else image.clear for image in images]


def clear_statistics(images: Sequence[SceneImage], *, on_top: bool = False) -> tuple[float, float] | tuple[None, None]:
    """Return the share of pixels that are clear at least once, and the median number of clear observations.

    An image without a scene classification counts as never clear; None when no image has one.
    With `on_top`, only the observation that a mosaic shows of each pixel counts.
    """
    clear = clear_masks(images)
    if clear is None:
        return None, None
    if on_top:
        clear = list(visible_on_top(clear, [image.valid for image in images]))
    count = np.sum(clear, axis=0)
    return float((count > 0).mean()), float(np.median(count))


def shown_clear_frac(images: Sequence[SceneImage], *, on_top: bool = False) -> float | None:
    """Return `shown_clear_share` of images; None when no image has a scene classification."""
    clear = clear_masks(images)
    return None if clear is None else shown_clear_share(clear, [image.valid for image in images], on_top=on_top)


def shown_clear_share(clear: Sequence[BoolArray], valid: Sequence[BoolArray], *, on_top: bool = False) -> float:
    """Return the share of the observed pixels whose value in a composite is that of clear ground, from scenes' masks.

    The median of a pixel lies among its clear observations where they are more than half of all.
    """
    if on_top:
        clear = list(visible_on_top(clear, valid))
    n_clear, n_valid = np.sum(clear, axis=0), np.sum(valid, axis=0)
    is_clear = n_clear > 0 if on_top else 2 * n_clear > n_valid
    return float(is_clear[n_valid > 0].mean()) if n_valid.any() else 0.0


def visible_on_top(marks: Sequence[BoolArray], valid: Sequence[BoolArray]) -> Iterator[BoolArray]:
    """Yield each scene's marks (y, x) where a mosaic shows it: the first valid scene of a pixel lies on top."""
    free = np.ones(valid[0].shape, dtype=bool)
    for mark, sees in zip(marks, valid, strict=True):
        yield mark & sees & free
        free &= ~sees


def _median_strip(dn: list[DnArray], valid: list[BoolArray]) -> FloatArray:
    count = np.sum(valid, axis=0)  # (y, x)
    last = np.inf if np.issubdtype(dn[0].dtype, np.floating) else np.iinfo(dn[0].dtype).max  # sorts behind all DN
    planes = [np.where(v, d, last).astype(d.dtype, copy=False) for d, v in zip(dn, valid, strict=True)]
    low = np.empty_like(planes[0])
    for i, j in _sorting_network(len(planes)):
        np.minimum(planes[i], planes[j], out=low)
        np.maximum(planes[i], planes[j], out=planes[j])
        planes[i], low = low, planes[i]
    if (count == len(planes)).all():
        lower, upper = planes[(len(planes) - 1) // 2], planes[len(planes) // 2]
    else:
        stack = np.stack(planes)  # (n, bands, y, x)
        at = (np.clip(k, 0, len(planes) - 1)[None, None] for k in ((count - 1) // 2, count // 2))
        lower, upper = (np.take_along_axis(stack, k, 0)[0] for k in at)
    result: FloatArray = lower.astype(np.float32)
    result += upper
    result *= np.float32(0.5)
    if not count.all():
        result[:, count == 0] = np.nan
    return result


@lru_cache(maxsize=64)
def _sorting_network(n: int) -> tuple[tuple[int, int], ...]:
    """Return Batcher's odd-even merge sort for n inputs: pairs (i, j) to put in order, i < j."""
    return tuple(
        (i, i + k)
        for p in (1 << level for level in range((n - 1).bit_length()))
        for k in (p >> step for step in range(p.bit_length()))
        for j in range(k % p, n - k, 2 * k)
        for i in range(j, j + min(k, n - j - k))
        if i // (2 * p) == (i + k) // (2 * p)
    )
