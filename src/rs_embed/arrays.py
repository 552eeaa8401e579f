"""Array types that several modules share, and the rule for pixels that were observed."""

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[np.generic]
"""Values of any type, such as pixels as a file or a user gives them."""
FloatArray = npt.NDArray[np.float32]
CoordinateArray = npt.NDArray[np.float64]
"""Coordinates in metres or degrees."""
GreyArray = npt.NDArray[np.uint8]
"""Grey levels or scene classes, 0…255."""
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
"""Positions along an axis."""


def observed(dn: AnyArray) -> BoolArray:
    """Return (y, x), True where no band of (bands, y, x) is NaN; integers are always observed."""
    if not np.issubdtype(dn.dtype, np.floating):
        return np.ones(dn.shape[1:], dtype=bool)
    valid: BoolArray = np.logical_not(np.isnan(dn).any(axis=0))
    return valid
