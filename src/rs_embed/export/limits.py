"""Checks of an export before anything is cut, fetched or written: a mistake in a size must not cost hours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rs_embed.embedders.cards import ModelCard
from rs_embed.errors import SpecError
from rs_embed.export.inputs import InputPlaces
from rs_embed.grid import MAX_SIDE_PX, place_geobox
from rs_embed.specs import InputPrep, OutputSpec

PLACES_A_S = 20.0
"""Rate of ViT-B/32 on two cores; the network is mostly slower."""
SMALLEST_PX = 32
"""Side of a place under which a model of 224 px is told next to nothing: one token of ViT-B/32."""
_ROW_BYTES = 2_500  # a row in its files, without vectors and thumbnail
_THUMBNAIL_BYTES = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on the size and the number of places, by the model that embeds them."""

    card: ModelCard
    scale_m: float
    output: OutputSpec
    prep: InputPrep = "resize"
    allow_small: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in a dataset, without its token grid."""
        dim = self.card.projection_dim if self.output.pooling == "projected" else self.card.token_dim
        return _ROW_BYTES + _THUMBNAIL_BYTES + 4 * dim + 2 * self.card.projection_dim

    def check_side(self, side_m: float) -> None:
        """Refuse places that are too small for a model to see anything."""
        side_px = side_m / self.scale_m
        if side_m <= 0:
            raise SpecError(f"a chip's side must be greater than 0 metres, got {side_m:g}")
        if not self.allow_small and side_px < SMALLEST_PX:
            raise SpecError(
                f"places of {side_px:g} px a side tell a model of {self.card.image_px} px next to nothing: take a "
                f"--chip of at least {SMALLEST_PX * self.scale_m:g} m, or --allow-small"
            )

    def check_count(self, rows: int, most: int | None, about: str) -> None:
        """Refuse more rows than were asked for on purpose, and say what they would cost."""
        if most is not None and rows > most:
            hours = rows / PLACES_A_S / 3600
            time = f"{hours / 24:,.0f} days" if hours > 48 else f"{hours:,.0f} hours"
            raise SpecError(
                f"{about} {rows:,} rows: {time} at {PLACES_A_S:g} places a second (ViT-B/32 on two cores), and "
                f"{rows * self.row_bytes / 1e9:,.0f} GB written. Take larger or fewer places, or lift the limit of "
                f"{most:,} rows with --yes (read=ReadOptions(max_places=None))"
            )

    def find_unfit(self, places: InputPlaces) -> dict[int, str]:
        """Return the places whose size the run cannot take, and why; places that are too small refuse the input."""
        side_px = np.ceil(2 * places.half_m / self.scale_m - 1e-6)
        if np.isfinite(side_px).any():
            self.check_side(float(2 * np.nanmin(places.half_m)))
        smallest = self.card.image_px if self.prep == "tile" else 0
        unfit = {}
        for i in np.flatnonzero((side_px > MAX_SIDE_PX) | (side_px < smallest)).tolist():
            if i not in places.faults:
                unfit[i] = _why_unfit(int(side_px[i]), int(side_px[i]), self.card)
        for i, box in places.boxes.items():
            try:
                height, width = place_geobox(box, self.scale_m).shape
            except SpecError as error:
                unfit[i] = str(error)
                continue
            self.check_side(min(height, width) * self.scale_m)
            if min(height, width) < smallest:
                unfit[i] = _why_unfit(width, height, self.card)
        return unfit


def _why_unfit(width: int, height: int, card: ModelCard) -> str:
    if width > MAX_SIDE_PX:
        return (
            f"it is {width} x {height} px, and at most {MAX_SIDE_PX} px a side are read at once: cut the area into "
            "smaller places, or take a larger scale_m"
        )
    return (
        f"it is {width} x {height} px, and input_prep='tile' needs at least {card.image_px} px a side: use "
        "input_prep='resize' or larger places"
    )
