"""Median of 8 scenes of a 410 x 410 px RGB patch against `numpy.nanmedian`."""

from __future__ import annotations

import warnings

import numpy as np

from benchmarks.timing import Comparison, compare
from rs_embed.composite import SceneImage, median


def run() -> list[Comparison]:
    return [_case("uint16, all observed", 0.0), _case("uint16, 30 % masked", 0.3)]


def _case(name: str, missing: float) -> Comparison:
    rng = np.random.default_rng(0)
    images = [
        SceneImage(rng.integers(1, 10_000, (3, 410, 410)).astype(np.uint16), rng.random((410, 410)) >= missing)
        for _ in range(8)
    ]

    def theirs() -> np.ndarray:
        stack = np.stack([np.where(i.valid, i.dn, np.nan).astype(np.float32) for i in images])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about pixels that no scene observed
            return np.nanmedian(stack, axis=0)

    np.testing.assert_array_equal(median(images), theirs())
    return compare(f"median of 8 scenes, {name}: numpy.nanmedian", lambda: median(images), theirs)
