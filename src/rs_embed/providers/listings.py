"""Searches that find the scenes of many places, and a cache of their results: a plan and its run search alike."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rs_embed import lonlat, outlines
from rs_embed.grid import lonlat_bounds
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.scenes import Scene
from rs_embed.specs import TemporalSpec

_CELL_DEGREES = 1.0
_MAX_AGE_S = 600.0
_MAX_LISTINGS = 64


@dataclass(frozen=True, slots=True)
class Search:
    """Search for all scenes in a box and time range, with the files of certain bands."""

    bounds: lonlat.Box
    temporal: TemporalSpec
    bands: frozenset[str]

    def covers(self, other: Search) -> bool:
        """Return True if the results of another search are among those of this one."""
        is_inside = bool(outlines.polygon(self.bounds).covers(outlines.polygon(other.bounds)))
        return is_inside and other.temporal == self.temporal and other.bands <= self.bands


@dataclass(frozen=True, slots=True)
class ListingCache:
    """Recent searches with their scenes, each kept for ten minutes; threads may share it."""

    _listings: deque[tuple[float, Search, list[Scene]]] = field(default_factory=lambda: deque(maxlen=_MAX_LISTINGS))

    def get(self, search: Search, list_scenes: Callable[[Search], list[Scene]]) -> list[Scene]:
        """Return the scenes of a kept search that covers this one; otherwise call `list_scenes` and keep its scenes."""
        for listed_at_s, kept, scenes in tuple(self._listings):
            if time.monotonic() - listed_at_s < _MAX_AGE_S and kept.covers(search):
                return scenes
        scenes = list_scenes(search)
        self._listings.append((time.monotonic(), search, scenes))
        return scenes


def group_by_search(requests: Sequence[PatchRequest]) -> Iterator[tuple[Search, list[int]]]:
    """Yield searches with the positions of the requests that they serve: same time range, about a degree apart."""
    places = [lonlat_bounds(request.geobox) for request in requests]
    west, south, *_ = lonlat.enclose(places) if places else (0.0, 0.0)
    cells: dict[tuple[TemporalSpec, float, float], list[int]] = defaultdict(list)
    for i, (x, y, *_) in enumerate(places):
        cells[requests[i].temporal, (x - west) % 360 // _CELL_DEGREES, (y - south) // _CELL_DEGREES].append(i)
    for (temporal, _, _), positions in cells.items():
        bands = frozenset(band for i in positions for band in (*requests[i].sensor.bands, "SCL"))
        yield Search(lonlat.enclose([places[i] for i in positions]), temporal, bands), positions
