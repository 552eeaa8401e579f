"""The verbs that an image network may have."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor


@runtime_checkable
class TokenEncoder(Protocol):
    """A network that shows its tokens."""

    def tokens(self, pixels: Tensor, /) -> Tensor:
        """Tokens of the last block, CLS first: (n, 3, px, px) to (n, t, w)."""
        ...

    def project(self, tokens: Tensor, /) -> Tensor:
        """CLIP image embedding from those tokens: (n, t, w) to (n, d)."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """A network that gives one vector an image."""

    def encode_image(self, pixels: Tensor, /) -> Tensor:
        """CLIP image embedding: (n, 3, px, px) to (n, d)."""
        ...


@runtime_checkable
class PixelTransform(Protocol):
    """A network that brings its own preprocessing, which is then preferred to ours."""

    def transform(self, rgb: npt.NDArray[np.uint8], image_size: int, /) -> Tensor:
        """(y, x, 3) uint8 to (3, image_size, image_size) f32."""
        ...
