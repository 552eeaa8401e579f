"""Any STAC API with Sentinel-2 COGs: search once for many places, then read each block once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rs_embed import settings
from rs_embed.composite import SceneImage
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import lonlat_bounds
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.archive import (
    NOTHING_SEEN,
    BandFile,
    Choice,
    ReadScene,
    Scene,
    build_patch,
    choose,
    coverage,
    harmonise,
    masked_for,
    nothing_found,
    require_scene_classes,
    scene_radiometry,
)
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.providers.blocks import BlockReader, Layer, ReadPlace
from rs_embed.providers.listings import Bounds
from rs_embed.providers.stac.cog import look_at
from rs_embed.providers.stac.offsets import MANY_DARK, DarkEnd, confront
from rs_embed.providers.stac.search import Searcher, StacCatalog
from rs_embed.sentinel2 import OFFSET_2022, Radiometry, may_carry_offset
from rs_embed.specs import TemporalSpec

_TOGETHER = 500
"""Places of one sweep over the blocks."""
_CELL_DEGREES = 1.0
_DARK_BAND, _SECOND_BAND = "B2", "B4"
"""Bands whose overviews tell whether the offset of 2022 is in: the darkest, and one in which sand is bright."""
_CLASS_BYTES_A_PIXEL = 0.1
_BAND_BYTES_A_PIXEL = 1.3
"""Of a deflated band with real ground in it, where the item does not tell the file's size."""
_OVERVIEWS = 4 / 3
"""A file with its overviews against the image alone."""

OffsetSource = Literal["item", "pixels"]


@dataclass(slots=True)
class _Memory:
    """What a provider has learnt and need not ask again."""

    searcher: Searcher
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)
    dark_ends: dict[str, DarkEnd | None] = field(default_factory=dict)


class StacProvider:
    """A provider over one catalog.

    Args:
        catalog: where scenes are searched.
        offset: what decides the DN offset of a scene: "item", and a warning where the pixels contradict it, or
            "pixels" where they tell.
    """

    def __init__(self, catalog: StacCatalog, offset: OffsetSource = "item") -> None:
        self.catalog = catalog
        self.offset = offset
        self._memory = _Memory(Searcher(catalog))

    def __reduce__(self) -> tuple[type[StacProvider], tuple[StacCatalog, OffsetSource]]:
        """In another process it starts with an empty memory: connections do not travel, tokens must not."""
        return StacProvider, (self.catalog, self.offset)

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.catalog.name + ("?offset=pixels" if self.offset == "pixels" else "")

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as their last block arrives."""
        found = self._choose(requests)
        for part in _parts(requests):
            waiting = []
            for position in part:
                scenes, choice = found[position]
                try:
                    if not choice.chosen:
                        raise NoImageryError(nothing_found(self.name, scenes, requests[position], choice))
                    require_scene_classes(choice, requests[position].sensor)
                except ProviderError as error:
                    yield position, error
                else:
                    waiting.append(_Gathered(position, requests[position], choice))
            yield from self._read([g for g in waiting if g.request.sensor.composite == "median"], together=None)
            yield from self._read([g for g in waiting if g.request.sensor.composite == "mosaic"], together=1)

    def _read(self, waiting: Sequence[_Gathered], together: int | None) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Read the scenes of places, newest first, `together` of each at a time; a full mosaic reads no more."""
        open_places = {g.position: g for g in waiting}
        start = 0
        while open_places:
            stop = None if together is None else start + together
            places = [ReadPlace(p, g.request, g.choice.chosen[start:stop]) for p, g in open_places.items()]
            for place in self._sweep(places):
                gathered = open_places[place.position]
                gathered.add(place, self._confront)
                if stop is None or stop >= len(gathered.choice.chosen) or gathered.is_full():
                    del open_places[place.position]
                    patch = self._patch(gathered)
                    gathered.used.clear()  # its pixels are in the patch now
                    yield place.position, patch
            start += together or 0

    def _sweep(self, places: Sequence[ReadPlace]) -> BlockReader:
        for url in _files_to_look_at(places):
            self._memory.dark_ends.setdefault(url, None)
        return BlockReader(
            places,
            in_flight=settings.fetch_workers(),
            tokens=self.catalog.tokens(self._memory.tokens),
            dark_ends=self._memory.dark_ends,
        )

    def _confront(self, scene: Scene, told: Radiometry) -> tuple[Radiometry, str | None]:
        """What the item told of the offset, against the pixels of the whole scene."""
        known = self._memory.dark_ends
        first = known.get(scene.files[_DARK_BAND].path) if _DARK_BAND in scene.files else None
        ends = [] if first is None else [first]
        if ends and told.offset != OFFSET_2022 and ends[0].low_share < MANY_DARK and _SECOND_BAND in scene.files:
            path = scene.files[_SECOND_BAND].path  # the offset may still be in, and one band cannot tell
            if path not in known:
                known[path] = look_at(path, self.catalog.tokens(self._memory.tokens))
            second = known[path]
            ends += [] if second is None else [second]
        return confront(told, ends, decide=self.offset == "pixels")

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes, blocks and bytes from the catalog alone."""
        chosen = [choice.chosen for _, choice in self._choose(requests)]
        parts = [self._plan_sweep([(requests[i], chosen[i]) for i in part]) for part in _parts(requests)]
        files, blocks, read_bytes = (sum(values) for values in zip((0, 0, 0.0), *parts, strict=True))
        return FetchPlan(
            scenes_of=tuple(map(len, chosen)),
            covered=coverage(chosen, requests),
            blocks=round(blocks),
            requests=round(blocks + files),
            read_bytes=round(read_bytes),
        )

    @staticmethod
    def _plan_sweep(places: Sequence[tuple[PatchRequest, Sequence[Scene]]]) -> tuple[int, int, float]:
        """Files, blocks and bytes that one sweep reads: a block that two sweeps need is read twice."""
        files: dict[str, tuple[str, BandFile]] = {}
        blocks: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for request, scenes in places:
            for band, file in ((b, s.files[b]) for s in scenes for b in (*request.sensor.bands, "SCL") if b in s.files):
                files[file.path] = band, file
                blocks[file.path].update(_blocks(file, request))
        read_bytes = sum(len(found) * _block_bytes(*files[path]) for path, found in blocks.items())
        return len(files), sum(map(len, blocks.values())), read_bytes

    def _choose(self, asked: Sequence[PatchRequest]) -> list[tuple[Sequence[Scene], Choice]]:
        """For each request the scenes that were found around it, and those that it takes."""
        found: dict[int, tuple[Sequence[Scene], Choice]] = {}
        for temporal, cell in _cells(asked):
            members = list(cell)
            west, south, east, north = zip(*cell.values(), strict=True)
            around = min(west), min(south), max(east), max(north)
            bands = frozenset(band for i in members for band in (*asked[i].sensor.bands, "SCL"))
            scenes = self._memory.searcher.search(around, temporal, bands)
            for i in members:
                found[i] = scenes, choose(scenes, asked[i])
        return [found[i] for i in range(len(asked))]

    def _patch(self, place: _Gathered) -> Patch | ProviderError:
        source = f"{self.name}: {', '.join(sorted({s.collection or '?' for s in place.choice.chosen}))}"
        try:
            images = iter([read.image for read in place.used])
            return build_patch(self.name, source, place.request, place.choice, images, place.used, place.dropped)
        except ProviderError as error:
            return error


_Confront = Callable[[Scene, Radiometry], tuple[Radiometry, str | None]]


@dataclass(slots=True)
class _Gathered:
    """A place, and what has been read for it so far."""

    position: int
    request: PatchRequest
    choice: Choice
    used: list[ReadScene] = field(default_factory=list)
    dropped: list[DroppedScene] = field(default_factory=list)

    def add(self, place: ReadPlace, confront: _Confront) -> None:
        """Take over what was read of some scenes, harmonised."""
        sensor = self.request.sensor
        for number, scene in enumerate(place.scenes):
            layers = [place.layers.pop((number, i), None) for i in range(len(place.bands(number)))]
            bands = [layer for layer in layers[: len(sensor.bands)] if layer is not None]
            complete = number not in place.faults and len(bands) == len(sensor.bands)
            valid: Any = np.logical_and.reduce([band.valid for band in bands]) if complete else np.zeros(1, bool)
            if not valid.any():
                reason = place.faults.get(number, NOTHING_SEEN)
                self.dropped.append(DroppedScene(scene.id, reason))
                continue
            told = scene_radiometry(scene, scene.files[sensor.bands[0]], *place.tags[number])
            rule, doubt = confront(scene, told)
            dn = harmonise(np.stack([band.values for band in bands]), rule)
            image = SceneImage(dn, valid, _scene_classes(layers, len(bands), valid.shape))
            self.used.append(ReadScene(scene, image, rule, doubt))

    def is_full(self) -> bool:
        """Whether every pixel has been observed."""
        seen = [masked_for(read.image, self.request.sensor).valid for read in self.used]
        return bool(seen) and bool(np.logical_or.reduce(seen).all())


def _scene_classes(layers: Sequence[Layer | None], bands: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """The scene classification, 0 where it has nothing; None where the scene has none."""
    if len(layers) == bands:
        return None
    found = layers[bands]
    return np.zeros(shape, np.uint8) if found is None else np.where(found.valid, found.values, 0).astype(np.uint8)


def _files_to_look_at(places: Sequence[ReadPlace]) -> Iterator[str]:
    """Files whose overviews tell of the offset, of scenes that may carry it, each once."""
    seen = set()
    for place in places:
        for scene in (scene for scene in place.scenes if scene.id not in seen):
            seen.add(scene.id)
            looked_at = _DARK_BAND in place.request.sensor.bands and _DARK_BAND in scene.files
            if looked_at and may_carry_offset(scene.properties, (scene.id, *scene.names), scene.acquired):
                yield scene.files[_DARK_BAND].path


def _blocks(file: BandFile, request: PatchRequest) -> Sequence[tuple[int, int]]:
    """The blocks of a file that a place needs; where the item does not tell where it lies, as many of its own."""
    if file.grid is not None:
        return file.grid.blocks_under(request.geobox)
    height, width = request.geobox.shape
    corner = hash((request.geobox.affine.c, request.geobox.affine.f))
    n = round((1 + height / 1024) * (1 + width / 1024))
    return [(corner, i) for i in range(n)]


def _block_bytes(band: str, file: BandFile) -> float:
    """Of one block as it is stored."""
    if file.grid is None or not file.size_bytes:
        return 1024 * 1024 * (_CLASS_BYTES_A_PIXEL if band == "SCL" else _BAND_BYTES_A_PIXEL)
    whole = file.grid.height * file.grid.width * _OVERVIEWS
    return file.size_bytes / whole * file.grid.block_height * file.grid.block_width


def _cells(asked: Sequence[PatchRequest]) -> Iterator[tuple[TemporalSpec, dict[int, Bounds]]]:
    """Requests that one search answers, with their bounds: the same time range, within a degree of each other."""
    cells: dict[tuple[TemporalSpec, int, int], dict[int, Bounds]] = defaultdict(dict)
    for i, request in enumerate(asked):
        bounds = lonlat_bounds(request.geobox)
        cells[request.temporal, int(bounds[0] // _CELL_DEGREES), int(bounds[1] // _CELL_DEGREES)][i] = bounds
    for (temporal, _, _), members in sorted(cells.items(), key=lambda pair: min(pair[1])):
        yield temporal, members


def _parts(asked: Sequence[PatchRequest]) -> Iterator[list[int]]:
    """Positions in sweeps of at most `_TOGETHER` places, neighbours together."""
    order = sorted(
        range(len(asked)), key=lambda i: (str(asked[i].geobox.crs), -asked[i].geobox.affine.f, asked[i].geobox.affine.c)
    )
    for start in range(0, len(order), _TOGETHER):
        yield order[start : start + _TOGETHER]
