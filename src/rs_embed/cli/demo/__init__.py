"""The command `rs-embed demo`, and what its two forms share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

DEMO_MODEL = "clip_eurosat_s2rgb"
DEGREES_PER_M = 1 / 111_320  # of latitude


def program() -> str:
    """Return the words that start this program in a shell."""
    if shutil.which("rs-embed"):
        return "rs-embed"
    path = Path(sys.argv[0])
    return "python -m rs_embed" if path.parent.name == "rs_embed" else str(path)
