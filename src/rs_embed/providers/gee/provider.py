"""Earth Engine as a provider: it makes the composites, on our pixel grid; nearby places share a request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from types import ModuleType

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from rs_embed import settings
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import epsg_of
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.base import FetchPlan, PatchRequest, in_threads
from rs_embed.providers.compositing import NO_VALID_PIXEL
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
from rs_embed.providers.listings import ListingCache, Search, group_by_search
from rs_embed.providers.scenes import Rectangle, Scene, enclose
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.sentinel2 import HARMONIZED_COLLECTION, radiometry

_MAX_SHARED_PX = 1 << 20  # size of a shared request: the service needs long for larger grids, and times out
_MIN_FILLED_SHARE = 0.3  # share of a shared grid that its places fill: the pixels between them are computed too


@dataclass(frozen=True, slots=True)
class SharedRequest:
    """Request for the pixels of nearby places that have the same scenes and sensor."""

    selections: Mapping[int, Selection]  # by the position of their place in the batch

    @property
    def geobox(self) -> GeoBox:
        """Smallest grid around all places."""
        first = self._first.request.geobox
        x, y, *_ = _pixel_window(first)
        left, top, right, bottom = enclose([_pixel_window(s.request.geobox) for s in self.selections.values()])
        return GeoBox((bottom - top, right - left), first.transform * Affine.translation(left - x, top - y), first.crs)

    @property
    def response_bytes(self) -> int:
        """Bytes of the response."""
        return int(np.prod(self.geobox.shape)) * self._pixel_bytes

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
        windows = {i: _pixel_window(selection.request.geobox) for i, selection in self.selections.items()}
        return [
            (i, _patch(pixels[y0 - top : y1 - top, x0 - left : x1 - left], self.selections[i]))
            for i, (x0, y0, x1, y1) in windows.items()
        ]


@dataclass(frozen=True, slots=True)
class EarthEngineProvider:
    """Sentinel-2 imagery from Google Earth Engine, composited by the service: the backend `gee`.

    A batch costs one listing request for each area of one degree, and one pixel request for each group of nearby
    places. Pass an instance wherever a backend is accepted, as in `backend=EarthEngineProvider("my-project")`.
    It can be pickled; credentials are read on the machine that fetches and are never part of it.

    Args:
        project: the Cloud project that is charged. By default `EE_PROJECT`, `GOOGLE_CLOUD_PROJECT`, or the project of
            the credentials.

    Examples:
        >>> from rs_embed import EarthEngineProvider
        >>> EarthEngineProvider("my-project")  # asks for credentials when it first fetches
        EarthEngineProvider(project='my-project')
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
        """Yield patches as they arrive, one group of nearby places at a time.

        Args:
            requests: grid, time range and sensor of each place.
        """
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
        """Return the scenes and requests that `fetch` would use; no pixel is computed.

        Args:
            requests: grid, time range and sensor of each place.
        """
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
        searches = list(group_by_search(requests))

        def scenes_of(group: tuple[Search, Sequence[int]]) -> list[Scene]:
            search = replace(group[0], bands=frozenset())  # a listing names scenes, and serves all bands
            return self._recent.get(search, lambda s: list_scenes(ee, s.bounds, s.temporal.start, s.temporal.end))

        for number, scenes in in_threads(searches, scenes_of, _workers()):
            for position in searches[number][1]:
                if isinstance(scenes, ProviderError):
                    yield position, scenes
                    continue
                selection = select_scenes(scenes, requests[position])
                yield position, selection if selection.scenes else selection.no_scene_error("gee")


def _workers() -> int:
    return min(settings.fetch_workers(), IN_FLIGHT)


def share_requests(selections: Mapping[int, Selection]) -> list[SharedRequest]:
    """Join places into requests: same zone, sensor and scenes, and near each other."""
    windows = {i: _pixel_window(selection.request.geobox) for i, selection in selections.items()}
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, selection in sorted(selections.items()):
        geobox, sensor = selection.request.geobox, selection.request.sensor
        scene_ids = tuple(scene.id for scene in selection.scenes)
        key = epsg_of(geobox), sensor.scale_m, sensor.bands, sensor.composite, sensor.cloud_mask, scene_ids
        groups[key].append(i)
    parts = [part for group in groups.values() for part in _dense_parts(group, windows)]
    return [SharedRequest({i: selections[i] for i in part}) for part in parts]


def _dense_parts(positions: Sequence[int], windows: Mapping[int, Rectangle[int]]) -> Iterator[Sequence[int]]:
    """Halve a group along the longer side of the rectangle around it, until its places fill every part well enough."""
    distinct = {windows[i] for i in positions}
    left, top, right, bottom = enclose(list(distinct))
    size_px = (right - left) * (bottom - top)
    filled_px = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in distinct)
    if len(distinct) == 1 or (size_px <= _MAX_SHARED_PX and filled_px >= _MIN_FILLED_SHARE * size_px):
        yield positions
        return
    axis = 0 if right - left >= bottom - top else 1
    ordered = sorted(positions, key=lambda i: windows[i][axis] + windows[i][axis + 2])
    half = len(ordered) // 2
    yield from _dense_parts(ordered[:half], windows)
    yield from _dense_parts(ordered[half:], windows)


def _pixel_window(geobox: GeoBox) -> Rectangle[int]:
    """Return left, top, right, bottom in pixels of the UTM zone: edges lie on multiples of the pixel size."""
    left, top = round(geobox.transform.c / geobox.transform.a), round(geobox.transform.f / geobox.transform.e)
    return left, top, left + geobox.shape[1], top + geobox.shape[0]


def _patch(pixels: CompositePixels, selection: Selection) -> Patch | ProviderError:
    request = selection.request
    dn, n_clear, shown_clear, contributed = decode_pixels(pixels, len(selection.scenes), request.sensor)
    used = list(compress(selection.scenes, contributed))
    dropped = tuple(DroppedScene(s.id, NO_VALID_PIXEL, "no_data") for s in selection.scenes if s not in used)
    if np.isnan(dn[0]).all():
        return selection.no_pixel_error("gee", dropped)
    rules = dict.fromkeys(request.sensor.bands, radiometry(collection=HARMONIZED_COLLECTION))
    return Patch(
        dn=dn,
        geobox=request.geobox,
        bands=request.sensor.bands,
        source=HARMONIZED_COLLECTION,
        scenes=tuple(scene.record(rules) for scene in used),
        dropped=dropped if request.sensor.composite == "median" else (),
        clear_frac=float((n_clear > 0).mean()),
        n_clear=float(np.median(n_clear)),
        shown_clear_frac=shown_clear,
        warnings=selection.warnings,
    )
