"""Localisation by `heat_map`: the quadrant of the best pixel in mosaics of 2 x 2 EuroSAT chips.

`python -m benchmarks.bench_heatmap [n]`. All chips were held out of training; the four chips have four classes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.bench_eurosat_search import CHIP_PX, NAMES
from evaluation.eurosat import DATA, HAZE_OUT, open_eurosat
from rs_embed import PointBuffer, TemporalSpec, heat_map
from rs_embed.patch import Patch
from rs_embed.providers.base import FetchPlan, PatchRequest

PLACE = PointBuffer(13.72, 48.22, CHIP_PX * 10)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Provider of one image."""

    dn: np.ndarray
    name: str = "mosaic"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch]]:
        for i, r in enumerate(requests):
            yield i, Patch(dn=self.dn, geobox=r.geobox, bands=r.sensor.bands, source=self.name, scenes=())

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        return FetchPlan(scenes_of=(1,) * len(requests), covered=(1.0,) * len(requests), read_bytes=0)


def quadrants(n: int, data: Path = DATA) -> float:
    """Return the share of n mosaics whose best pixel lies in the chip of the queried class."""
    chips = open_eurosat(data)
    rng, right, labels = np.random.default_rng(0), 0, chips.labels[chips.held_out]
    for _ in range(n):
        classes = rng.choice(len(NAMES), 4, replace=False)
        four = [np.rint(chips.dn(int(rng.choice(chips.held_out[labels == c])), HAZE_OUT)) for c in classes]
        dn = np.block([four[:2], four[2:]]).astype(np.float32)
        asked = int(rng.integers(4))
        heat = heat_map(
            "clip_eurosat_s2rgb",
            NAMES[classes[asked]],
            spatial=PLACE,
            temporal=TemporalSpec.range("2020-06-01", "2020-07-01"),
            backend=Mosaic(dn),
        )
        row, column = heat.best_pixel
        right += (row // CHIP_PX * 2 + column // CHIP_PX) == asked
    return right / n


def report(n: int = 300) -> list[str]:
    """Print the result as one line."""
    if not DATA.exists():
        print(f"{DATA.name} is not at hand: nothing was measured", flush=True)
        return []
    line = f"heat maps of {n} mosaics of 2 x 2 EuroSAT chips: the right quadrant in {quadrants(n):.1%}"
    print(line, flush=True)
    return [line]


if __name__ == "__main__":
    report(*(int(a) for a in sys.argv[1:]))
