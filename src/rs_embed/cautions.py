"""Warnings of an embedding, as texts of the form `kind: detail; remedy` (docs/warnings.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rs_embed.inspection import imagery_warnings, missing_warnings
from rs_embed.patch import Patch
from rs_embed.specs import SensorSpec

if TYPE_CHECKING:
    from rs_embed.embedders.chips import Chips

MUCH_CROPPED = 0.1
MUCH_ENLARGED = 4.0
"""Enlargement to the model's pixels above which it sees blur: EuroSAT's chips, which it reads well, take 3.5."""
FLAT = 0.5
"""Standard deviation in grey levels under which most pixels have the same level."""


def kinds_of(warnings: Iterable[str]) -> list[str]:
    """Return the kinds of some warnings, each once."""
    return list(dict.fromkeys(text.partition(":")[0] for text in warnings))


def warnings_of(patch: Patch | None, sensor: SensorSpec, chips: Chips) -> Iterator[str]:
    """Yield texts of the form `kind: detail; remedy`."""
    if patch is not None:
        yield from imagery_warnings(patch, sensor)
    yield from missing_warnings(chips.valid_frac, sensor.fill_value)
    yield from _little_to_see(patch, sensor, chips)
    if chips.cropped_frac > MUCH_CROPPED:
        yield (
            f"cropped: the model saw the middle of the place only, {chips.cropped_frac:.0%} was cut off; use a square "
            "place, or input_prep='tile'"
        )


def _little_to_see(patch: Patch | None, sensor: SensorSpec, chips: Chips) -> Iterator[str]:
    """Yield warnings of pixels that are too few, or too much alike, for a vector to mean much (docs/warnings.md)."""
    gsd_m = None if patch is None else patch.source_gsd_m
    zoom = chips.zoom / max(1.0, (gsd_m or 0.0) / sensor.scale_m)
    if zoom < 1 / MUCH_ENLARGED:
        side = f"at least {chips.image_px / MUCH_ENLARGED * max(sensor.scale_m, gsd_m or 0.0):g} m" if patch else "more"
        yield (
            f"few pixels: {zoom * chips.image_px:.0f} px of imagery are enlarged {1 / zoom:.1f} times to the model's "
            f"{chips.image_px} px; take a place of {side} a side"
        )
    if chips.contrast < FLAT:
        yield (
            f"nearly constant pixels: they differ by {chips.contrast:.1f} of 255 grey levels, so the vector tells "
            "little but a colour; look at the imagery, or take a model with a brighter stretch"
        )
