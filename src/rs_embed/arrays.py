"""Array types that several modules share."""

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
