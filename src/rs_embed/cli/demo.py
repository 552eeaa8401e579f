"""`rs-embed demo`: the main job on real Sentinel-2 imagery that installs with the package, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer

if TYPE_CHECKING:
    pass

FloatArray = npt.NDArray[np.float32]


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("demo-output"),
    model: Annotated[str, typer.Option("--model", help="A name from `rs-embed models`.")] = "",
) -> None:
    """Inspect, embed and compare the sample places; needs no account and no download."""
    raise NotImplementedError
