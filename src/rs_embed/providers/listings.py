"""Cache of scene listings: a plan and its run, or neighbouring partitions, search for the same scenes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rs_embed.providers.scenes import Bounds, Scene
from rs_embed.specs import TemporalSpec

_MAX_AGE_S = 600.0
_MAX_LISTINGS = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """All scenes in a box and time range that have certain bands."""

    bounds: Bounds
    temporal: TemporalSpec
    bands: frozenset[str]
    scenes: list[Scene]
    at_s: float = field(default_factory=time.monotonic)

    def covers(self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str]) -> bool:
        """Return True if the listing holds all results of a search and is recent."""
        west, south, east, north = self.bounds
        inside = west <= bounds[0] and south <= bounds[1] and bounds[2] <= east and bounds[3] <= north
        same = temporal == self.temporal and bands <= self.bands
        return same and inside and time.monotonic() - self.at_s < _MAX_AGE_S


@dataclass(frozen=True, slots=True)
class ListingCache:
    """Recent listings, each kept for ten minutes; threads may share it."""

    _listings: deque[Listing] = field(default_factory=lambda: deque(maxlen=_MAX_LISTINGS))

    def get(
        self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str], search: Callable[[], list[Scene]]
    ) -> list[Scene]:
        """Return the scenes of a listing that covers the search; otherwise call `search` and keep its scenes."""
        for listing in tuple(self._listings):
            if listing.covers(bounds, temporal, bands):
                return listing.scenes
        scenes = search()
        self._listings.append(Listing(bounds, temporal, bands, scenes))
        return scenes
