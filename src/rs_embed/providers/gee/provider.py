"""Earth Engine as a provider: it makes the composites, on our pixel grid; nearby places share a request."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TypeVar

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from rs_embed import settings
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import epsg_of, lonlat_bounds
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.archive import NO_VALID_PIXEL
from rs_embed.providers.base import FetchPlan, PatchRequest, in_threads
from rs_embed.providers.gee.expressions import (
    CompositePixels,
    bytes_per_pixel,
    composite,
    count_requests,
    decode_pixels,
    list_scenes,
    read_pixels,
)
from rs_embed.providers.gee.session import IN_FLIGHT, UnknownServiceError, open_client
from rs_embed.providers.listings import ListingCache
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.sentinel2 import HARMONIZED_COLLECTION, radiometry

_MAX_SHARED_PX = 1 << 20
"""Largest grid of a shared request, in pixels: the service needs long for larger ones, and times out."""
_MIN_FILLED_SHARE = 0.3
"""Smallest share of a shared grid that its places fill: the pixels between them are computed too."""
_LISTING_DEGREES = 1.0
"""Largest side of the box of one listing, which meets a few MGRS tiles."""

N = TypeVar("N", int, float)
Rectangle = tuple[N, N, N, N]
"""Two opposite corners, the lesser coordinates first."""


@dataclass(frozen=True, slots=True)
class SharedRequest:
    """Request for the pixels of nearby places that have the same scenes and sensor."""

    selections: Mapping[int, Selection]
    """Selections by the position of their place in the batch."""

    @property
    def geobox(self) -> GeoBox:
        """Smallest grid around all places."""
        first = self._first.request.geobox
        x, y, *_ = _pixel_window(first)
        left, top, right, bottom = _enclose([_pixel_window(s.request.geobox) for s in self.selections.values()])
        return GeoBox((bottom - top, right - left), first.transform * Affine.translation(left - x, top - y), first.crs)

    @property
    def response_bytes(self) -> int:
        """Bytes of the response."""
        height, width = self.geobox.shape
        return int(height * width * self._pixel_bytes)

    @property
    def n_requests(self) -> int:
        """Requests to the service, several where its limits are exceeded."""
        height, width = self.geobox.shape
        return count_requests(height, width, self._pixel_bytes)

    @property
    def _first(self) -> Selection:
        return next(iter(self.selections.values()))

    @property
    def _pixel_bytes(self) -> int:
        return bytes_per_pixel(len(self._first.scenes), self._first.request.sensor)

    def fetch(self, ee: ModuleType) -> list[tuple[int, Patch | ProviderError]]:
        """Return the patch of each place; after an unknown failure, retry with half of the places at a time."""
        scene_ids, sensor = [scene.id for scene in self._first.scenes], self._first.request.sensor
        geobox = self.geobox
        try:
            pixels = read_pixels(ee, lambda: composite(ee, scene_ids, sensor), geobox, self._pixel_bytes)
        except UnknownServiceError as error:
            places = list(self.selections.items())
            if len(places) == 1:
                return [(places[0][0], error)]
            halves = places[: len(places) // 2], places[len(places) // 2 :]
            return [result for half in halves for result in SharedRequest(dict(half)).fetch(ee)]
        left, top, *_ = _pixel_window(geobox)
        found: list[tuple[int, Patch | ProviderError]] = []
        for position, selection in self.selections.items():
            x0, y0, x1, y1 = _pixel_window(selection.request.geobox)
            found.append((position, _patch(pixels[y0 - top : y1 - top, x0 - left : x1 - left], selection)))
        return found


@dataclass(frozen=True, slots=True)
class EarthEngineProvider:
    """Sentinel-2 imagery from Google Earth Engine, composited by the service: the backend `gee`.

    A batch costs one listing request for each area of one degree, and one pixel request for each group of nearby
    places. Pass an instance wherever a backend is accepted, as in `backend=EarthEngineProvider("my-project")`.
    It can be pickled; credentials are read on the machine that fetches and are never part of it.

    Args:
        project: the Cloud project that is charged. By default `EE_PROJECT`, `GOOGLE_CLOUD_PROJECT`, or the project of
            the credentials.
    """

    project: str | None = None
    _recent: ListingCache = field(default_factory=ListingCache, init=False, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[EarthEngineProvider], tuple[str | None]]:
        return EarthEngineProvider, (self.project,)  # a listing's age is measured by this process's clock

    @property
    def name(self) -> str:
        """Name in metadata and errors."""
        return "gee"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as they arrive, one group of nearby places at a time."""
        ee = open_client(self.project)
        selections: dict[int, Selection] = {}
        for position, result in self._select_scenes(ee, requests):
            if isinstance(result, ProviderError):
                yield position, result
            else:
                selections[position] = result
        shared = share_requests(selections)
        fetched = in_threads(shared, lambda r: r.fetch(ee), _workers(), size_of=lambda r: r.response_bytes)
        for number, found in fetched:
            if isinstance(found, ProviderError):
                yield from ((position, found) for position in shared[number].selections)
            else:
                yield from found

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Return the scenes and requests that `fetch` would use; no pixel is computed."""
        selections: dict[int, Selection] = {}
        for position, result in self._select_scenes(open_client(self.project), requests):
            if isinstance(result, Selection):
                selections[position] = result
            elif not isinstance(result, NoImageryError):
                raise result
        shared = share_requests(selections)
        return FetchPlan(
            scenes_of=tuple(len(selections[i].scenes) if i in selections else 0 for i in range(len(requests))),
            covered=tuple(selections[i].covered if i in selections else 0.0 for i in range(len(requests))),
            read_bytes=sum(request.response_bytes for request in shared),
            requests=sum(request.n_requests for request in shared),
        )

    def _select_scenes(
        self, ee: ModuleType, requests: Sequence[PatchRequest]
    ) -> Iterator[tuple[int, Selection | ProviderError]]:
        """Yield the scenes of each place; places within a degree and with the same time range share a listing."""
        places = {i: lonlat_bounds(request.geobox) for i, request in enumerate(requests)}

        def is_one_area(positions: Sequence[int]) -> bool:
            west, south, east, north = _enclose([places[i] for i in positions])
            return len(positions) == 1 or max(east - west, north - south) <= _LISTING_DEGREES

        by_time = _group(places, lambda i: (requests[i].temporal.start, requests[i].temporal.end))
        areas = [area for group in by_time for area in _split(group, places, is_one_area)]

        def scenes_of(area: Sequence[int]) -> list[Scene]:
            bounds, temporal = _enclose([places[i] for i in area]), requests[area[0]].temporal
            return self._recent.get(
                bounds, temporal, frozenset(), lambda: list_scenes(ee, bounds, temporal.start, temporal.end)
            )

        for number, scenes in in_threads(areas, scenes_of, _workers()):
            for position in areas[number]:
                if isinstance(scenes, ProviderError):
                    yield position, scenes
                    continue
                selection = select_scenes(scenes, requests[position])
                yield position, selection if selection.scenes else selection.no_scene_error("gee")


def _workers() -> int:
    return min(settings.fetch_workers(), IN_FLIGHT)


def _group(positions: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return positions grouped by their key, in the order in which the keys first appear."""
    groups: dict[Hashable, list[int]] = {}
    for position in positions:
        groups.setdefault(key(position), []).append(position)
    return list(groups.values())


def _split(
    positions: Sequence[int], rectangles: Mapping[int, Rectangle[N]], fits: Callable[[Sequence[int]], bool]
) -> Iterator[Sequence[int]]:
    """Halve a group along the longer side of the rectangle around it, until every part fits."""
    if fits(positions):
        yield positions
        return
    left, top, right, bottom = _enclose([rectangles[i] for i in positions])
    axis = 0 if right - left >= bottom - top else 1
    ordered = sorted(positions, key=lambda i: rectangles[i][axis] + rectangles[i][axis + 2])
    half = len(ordered) // 2
    yield from _split(ordered[:half], rectangles, fits)
    yield from _split(ordered[half:], rectangles, fits)


def _enclose(rectangles: Sequence[Rectangle[N]]) -> Rectangle[N]:
    left, top, right, bottom = zip(*rectangles, strict=True)
    return min(left), min(top), max(right), max(bottom)


def share_requests(selections: Mapping[int, Selection]) -> list[SharedRequest]:
    """Join places into requests: same zone, sensor and scenes, and near each other."""
    windows = {i: _pixel_window(selection.request.geobox) for i, selection in selections.items()}

    def composite_key(i: int) -> Hashable:
        request, scene_ids = selections[i].request, tuple(scene.id for scene in selections[i].scenes)
        sensor = request.sensor
        return epsg_of(request.geobox), sensor.scale_m, sensor.bands, sensor.composite, sensor.cloud_mask, scene_ids

    def is_dense(positions: Sequence[int]) -> bool:
        distinct = {windows[i] for i in positions}
        left, top, right, bottom = _enclose(list(distinct))
        size_px = (right - left) * (bottom - top)
        filled_px = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in distinct)
        return len(distinct) == 1 or (size_px <= _MAX_SHARED_PX and filled_px >= _MIN_FILLED_SHARE * size_px)

    groups = _group(sorted(selections), composite_key)
    parts = [part for group in groups for part in _split(group, windows, is_dense)]
    return [SharedRequest({i: selections[i] for i in part}) for part in parts]


def _pixel_window(geobox: GeoBox) -> Rectangle[int]:
    """Return left, top, right, bottom in pixels of the UTM zone: edges lie on multiples of the pixel size."""
    left, top = round(geobox.transform.c / geobox.transform.a), round(geobox.transform.f / geobox.transform.e)
    return left, top, left + geobox.shape[1], top + geobox.shape[0]


def _patch(pixels: CompositePixels, selection: Selection) -> Patch | ProviderError:
    request = selection.request
    decoded = decode_pixels(pixels, len(selection.scenes), request.sensor)
    used = [scene for scene, contributed in zip(selection.scenes, decoded.contributed, strict=True) if contributed]
    dropped = tuple(DroppedScene(s.id, NO_VALID_PIXEL) for s in selection.scenes if s not in used)
    if np.isnan(decoded.dn[0]).all():
        return selection.no_pixel_error("gee", dropped)
    rule = radiometry(collection=HARMONIZED_COLLECTION)
    return Patch(
        dn=decoded.dn,
        geobox=request.geobox,
        bands=request.sensor.bands,
        source=HARMONIZED_COLLECTION,
        scenes=tuple(scene.record(rule) for scene in used),
        dropped=dropped if request.sensor.composite == "median" else (),
        clear_frac=float((decoded.n_clear > 0).mean()),
        n_clear=float(np.median(decoded.n_clear)),
        warnings=selection.warnings,
    )
