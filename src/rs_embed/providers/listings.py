"""What was listed lately: a plan and its run, or neighbouring partitions, ask for the same scenes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from rs_embed.providers.scenes import Bounds, Scene
from rs_embed.specs import TemporalSpec

_KEPT_S = 600.0
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """All scenes in a box and time range, with some bands at least."""

    bounds: Bounds
    temporal: TemporalSpec
    bands: frozenset[str]
    scenes: list[Scene]
    at_s: float = field(default_factory=time.monotonic)

    def covers(self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str]) -> bool:
        """Whether it holds all that another search would bring."""
        own, same = self.bounds, temporal == self.temporal and bands <= self.bands
        inside = own[0] <= bounds[0] and own[1] <= bounds[1] and bounds[2] <= own[2] and bounds[3] <= own[3]
        return same and inside and time.monotonic() - self.at_s < _KEPT_S


@dataclass(frozen=True, slots=True)
class Recent:
    """The last listings, for ten minutes each; safe to share between threads."""

    _listings: deque[Listing] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def find(self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str]) -> list[Scene] | None:
        """Scenes of a listing that covers a search; None when there is none."""
        return next((a.scenes for a in tuple(self._listings) if a.covers(bounds, temporal, bands)), None)

    def keep(self, listing: Listing) -> list[Scene]:
        """Remember it, and give its scenes."""
        self._listings.append(listing)
        return listing.scenes
