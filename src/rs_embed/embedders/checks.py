"""What a request must be for the models here; needs no network, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rs_embed.errors import ModelError
from rs_embed.sentinel2 import RGB_BANDS


def check_bands(bands: Sequence[str], model: str) -> None:
    """Refuse bands that the model was not made for.

    Raises:
        ModelError: unless they are B4, B3, B2 in this order.
    """
    if tuple(bands) != RGB_BANDS:
        raise ModelError(f"{model} takes the bands {RGB_BANDS} (red, green, blue) in this order, got {tuple(bands)}")


def check_input_chw(array: object, position: int | None = None) -> npt.NDArray[np.generic]:
    """A user's own pixels: raw DN, (3, y, x), any numeric type, NaN where not observed.

    Raises:
        ModelError: naming what is wrong with them.
    """
    name = "input_chw" if position is None else f"input_chws[{position}]"
    array = np.asarray(array)
    if array.dtype.kind not in "uif":
        raise ModelError(f"{name} must hold numbers (raw DN), got dtype {array.dtype}")
    if array.ndim != 3 or array.shape[0] != 3:
        raise ModelError(f"{name} must be CHW with exactly 3 bands in {RGB_BANDS} order, got shape {array.shape}")
    if array.size == 0:
        raise ModelError(f"{name} has an empty axis: shape {array.shape}")
    if array.dtype.kind == "f" and np.isnan(array).all():
        raise ModelError(f"{name} is all NaN: no pixel was observed")
    return array
