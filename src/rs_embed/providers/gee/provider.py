"""Earth Engine: composites made on its side, read back on our own pixel grid; near places share a request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from rs_embed import settings
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import epsg_of, lonlat_bounds
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.archive import (
    NOTHING_SEEN,
    Choice,
    Scene,
    choose,
    coverage,
    nothing_found,
    nothing_valid,
    provenance,
)
from rs_embed.providers.base import FetchPlan, PatchRequest, in_threads
from rs_embed.providers.gee.expressions import (
    Bounds,
    bytes_a_pixel,
    composite,
    count_requests,
    list_scenes,
    read_answer,
    read_pixels,
)
from rs_embed.providers.gee.session import IN_FLIGHT, Unexplained, open_client
from rs_embed.providers.listings import Listing, Recent
from rs_embed.sentinel2 import HARMONIZED_COLLECTION, radiometry

_JOINT_PX = 1 << 20
"""Places are joined up to a request of so many pixels: larger ones take the service long, and run out of its time."""
_FILLED = 0.3
"""Places are joined where they fill at least this share of the box around them: what lies between is paid for too."""
_LISTED_DEGREES = 1.0
"""Scenes are listed for boxes up to this size, some tiles each."""


@dataclass(frozen=True, slots=True)
class Job:
    """One question for pixels: some places that have their scenes in common."""

    members: tuple[int, ...]
    """Positions of requests."""
    geobox: GeoBox
    """Around all of them."""


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
    _recent: Recent = field(default_factory=Recent, init=False, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[EarthEngineProvider], tuple[str | None]]:
        return EarthEngineProvider, (self.project,)  # a listing's age is measured by this process's clock

    @property
    def name(self) -> str:
        """How metadata and errors call it."""
        return "gee"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as they arrive, a group of near places at a time."""
        ee = open_client(self.project)
        choices: dict[int, Choice] = {}
        for position, result in self._choose_all(ee, requests):
            if isinstance(result, ProviderError):
                yield position, result
            else:
                choices[position] = result
        jobs = plan_jobs(requests, choices)
        sizes = [_answer_bytes(requests, choices, job) for job in jobs]
        for number, found in in_threads(sizes, lambda i: _run(ee, requests, choices, jobs[i]), _workers()):
            if isinstance(found, ProviderError):
                yield from ((position, found) for position in jobs[number].members)
            else:
                yield from found

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Scenes from the listing, and requests from how places are joined; no pixel is computed."""
        ee = open_client(self.project)
        found = dict(self._choose_all(ee, requests))
        choices = {i: c for i, c in found.items() if isinstance(c, Choice)}
        for result in found.values():
            if isinstance(result, ProviderError) and not isinstance(result, NoImageryError):
                raise result
        chosen = [choices[i].chosen if i in choices else () for i in range(len(requests))]
        jobs = plan_jobs(requests, choices)
        return FetchPlan(
            scenes_of=tuple(map(len, chosen)),
            covered=coverage(chosen, requests),
            read_bytes=sum(_answer_bytes(requests, choices, job) for job in jobs),
            requests=sum(_count_requests(requests, choices, job) for job in jobs),
        )

    def _choose_all(
        self, ee: ModuleType, requests: Sequence[PatchRequest]
    ) -> Iterator[tuple[int, Choice | ProviderError]]:
        """Each request's scenes; one listing for each neighbourhood and time range."""
        places = [lonlat_bounds(request.geobox) for request in requests]
        ranges = _grouped(range(len(requests)), lambda i: (requests[i].temporal.start, requests[i].temporal.end))
        areas = [area for same in ranges for area in _neighbourhoods(same, places)]

        def scenes_of(number: int) -> list[Scene]:
            bounds, temporal = _around([places[i] for i in areas[number]]), requests[areas[number][0]].temporal
            known = self._recent.find(bounds, temporal, frozenset())
            if known is not None:
                return known
            found = list_scenes(ee, bounds, temporal.start, temporal.end)
            return self._recent.keep(Listing(bounds, temporal, frozenset(), found))

        for number, scenes in in_threads([0] * len(areas), scenes_of, _workers()):
            for position in areas[number]:
                if isinstance(scenes, ProviderError):
                    yield position, scenes
                    continue
                choice = choose(scenes, requests[position])
                if choice.chosen:
                    yield position, choice
                else:
                    yield position, NoImageryError(nothing_found("gee", scenes, requests[position], choice))


def _workers() -> int:
    return min(settings.fetch_workers(), IN_FLIGHT)


def _grouped(positions: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Positions of the same key together, in the order in which keys come."""
    found: dict[Hashable, list[int]] = {}
    for position in positions:
        found.setdefault(key(position), []).append(position)
    return list(found.values())


def _neighbourhoods(members: Sequence[int], places: Sequence[Bounds]) -> Iterator[Sequence[int]]:
    """Places of at most a degree around all of them."""
    west, south, east, north = _around([places[i] for i in members])
    if len(members) == 1 or max(east - west, north - south) <= _LISTED_DEGREES:
        yield members
        return
    axis = 0 if east - west >= north - south else 1
    yield from itertools.chain(
        *(_neighbourhoods(h, places) for h in _halves(members, lambda i: places[i][axis] + places[i][axis + 2]))
    )


def _halves(members: Sequence[int], where: Callable[[int], float]) -> tuple[Sequence[int], Sequence[int]]:
    ordered = sorted(members, key=where)
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


def _around(boxes: Sequence[Bounds]) -> Bounds:
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)


def plan_jobs(requests: Sequence[PatchRequest], choices: Mapping[int, Choice]) -> list[Job]:
    """Requests joined into questions: same zone, same sensor, same scenes, and near each other."""

    def alike(i: int) -> Hashable:
        sensor = requests[i].sensor
        ids = tuple(scene.id for scene in choices[i].chosen)
        return epsg_of(requests[i].geobox), sensor.scale_m, sensor.bands, sensor.composite, sensor.cloud_mask, ids

    corners = {i: _pixel_box(requests[i].geobox) for i in choices}
    groups = _grouped(sorted(choices), alike)
    return [job for group in groups for job in _joined(group, corners, requests)]


def _pixel_box(geobox: GeoBox) -> Bounds:
    """Left, top, right, bottom in pixels of the zone: edges lie on multiples of the pixel's side."""
    left, top = round(geobox.transform.c / geobox.transform.a), round(geobox.transform.f / geobox.transform.e)
    return left, top, left + geobox.shape[1], top + geobox.shape[0]


def _joined(members: Sequence[int], corners: Mapping[int, Bounds], requests: Sequence[PatchRequest]) -> Iterator[Job]:
    left, top, right, bottom = _around([corners[i] for i in members])
    width, height = int(right - left), int(bottom - top)
    distinct = {corners[i] for i in members}
    asked = sum((r - x) * (b - y) for x, y, r, b in distinct)
    if len(distinct) == 1 or (width * height <= _JOINT_PX and asked >= _FILLED * width * height):
        yield _job(members, requests)
        return
    axis = 0 if width >= height else 1
    for half in _halves(members, lambda i: corners[i][axis] + corners[i][axis + 2]):
        yield from _joined(half, corners, requests)


def _job(members: Sequence[int], requests: Sequence[PatchRequest]) -> Job:
    """The box around some places."""
    corners = [_pixel_box(requests[i].geobox) for i in members]
    left, top, right, bottom = _around(corners)
    first = requests[members[0]].geobox
    affine = first.transform * Affine.translation(left - corners[0][0], top - corners[0][1])
    return Job(tuple(members), GeoBox((int(bottom - top), int(right - left)), affine, first.crs))


def _pixel_bytes(requests: Sequence[PatchRequest], choices: Mapping[int, Choice], job: Job) -> int:
    first = job.members[0]
    return bytes_a_pixel(len(choices[first].chosen), requests[first].sensor)


def _count_requests(requests: Sequence[PatchRequest], choices: Mapping[int, Choice], job: Job) -> int:
    height, width = job.geobox.shape
    return count_requests(height, width, _pixel_bytes(requests, choices, job))


def _answer_bytes(requests: Sequence[PatchRequest], choices: Mapping[int, Choice], job: Job) -> int:
    height, width = job.geobox.shape
    return height * width * _pixel_bytes(requests, choices, job)


def _run(
    ee: ModuleType, requests: Sequence[PatchRequest], choices: Mapping[int, Choice], job: Job
) -> list[tuple[int, Patch | ProviderError]]:
    """Ask for a job's pixels and give each place its own; what fails for reasons unknown is tried with fewer places."""
    scenes, sensor = choices[job.members[0]].chosen, requests[job.members[0]].sensor
    names = [scene.id for scene in scenes]
    try:
        answer = read_pixels(ee, lambda: composite(ee, names, sensor), job.geobox, _pixel_bytes(requests, choices, job))
    except Unexplained as error:
        if len(job.members) == 1:
            return [(job.members[0], error)]
        middle = len(job.members) // 2
        halves = (_job(part, requests) for part in (job.members[:middle], job.members[middle:]))
        return [found for half in halves for found in _run(ee, requests, choices, half)]
    left, top, *_ = (int(v) for v in _pixel_box(job.geobox))
    found: list[tuple[int, Patch | ProviderError]] = []
    for position in job.members:
        x0, y0, x1, y1 = (int(v) for v in _pixel_box(requests[position].geobox))
        part = answer[y0 - top : y1 - top, x0 - left : x1 - left]
        found.append((position, _patch(part, requests[position], choices[position])))
    return found


def _patch(part: npt.NDArray[np.void], request: PatchRequest, choice: Choice) -> Patch | ProviderError:
    read = read_answer(part, len(choice.chosen), request.sensor)
    used = [scene for scene, entered in zip(choice.chosen, read.entered, strict=True) if entered]
    dropped = tuple(DroppedScene(s.id, NOTHING_SEEN) for s in choice.chosen if s not in used)
    if np.isnan(read.dn[0]).all():
        return NoImageryError(nothing_valid("gee", request, choice, dropped))
    rule = radiometry(collection=HARMONIZED_COLLECTION)
    return Patch(
        dn=read.dn,
        geobox=request.geobox,
        bands=request.sensor.bands,
        source=HARMONIZED_COLLECTION,
        scenes=tuple(provenance(scene, rule) for scene in used),
        dropped=dropped if request.sensor.composite == "median" else (),
        clear_frac=float((read.n_clear > 0).mean()),
        n_clear=float(np.median(read.n_clear)),
        warnings=choice.warnings,
    )
