"""Provider of Sentinel-2 COGs in any STAC API: one search for many places, and each block is read once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from rs_embed import settings
from rs_embed.arrays import GreyArray
from rs_embed.composite import SceneImage
from rs_embed.errors import ProviderError
from rs_embed.grid import lonlat_bounds
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.archive import NO_VALID_PIXEL, build_patch, harmonised_image, mask_clouds
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.providers.blocks import Layer, PlaceLayers, read_places
from rs_embed.providers.http import SasTokens
from rs_embed.providers.scenes import BandFile, Bounds, Scene
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.providers.stac.catalogs import StacCatalog, find_catalog
from rs_embed.providers.stac.cog import fetch_dark_pixels
from rs_embed.providers.stac.offsets import MANY_TOO_DARK, DarkPixels, check_offset
from rs_embed.providers.stac.search import Searcher
from rs_embed.sentinel2 import OFFSET_2022, Radiometry, may_carry_offset
from rs_embed.specs import TemporalSpec

_PLACES_PER_SWEEP = 500
_SEARCH_CELL_DEGREES = 1.0
_DARK_BAND, _SECOND_BAND = "B2", "B4"
"""Bands whose overviews show the offset of 2022: the darkest one, and one in which sand is bright."""
_TYPICAL_BLOCK_PX = 1024
_SCL_BYTES_PER_PIXEL = 0.1
_BAND_BYTES_PER_PIXEL = 1.3
"""Size of a deflated band over real ground, for items that do not state the size of their files."""
_WITH_OVERVIEWS = 4 / 3
"""Pixels of a file with its overviews, as a multiple of the full image."""

OffsetSource = Literal["item", "pixels"]
_CheckOffset = Callable[[Scene, Radiometry], tuple[Radiometry, str | None]]


class StacProvider:
    """Sentinel-2 imagery of a STAC API whose assets are cloud-optimised GeoTIFFs.

    A provider remembers its searches, its read tokens and the offsets it has checked; pickling it, for example for a
    Ray worker, keeps the arguments only.

    Args:
        catalog: `"earth-search"`, `"planetary-computer"`, the URL of a STAC API, or a `StacCatalog` for files that
            need tokens from elsewhere.
        collection: one or several collections of Sentinel-2 L2A. Required for a URL; a known catalog has its own.
        offset: `"item"` takes the DN offset of a scene from its metadata, and warns where the pixels contradict it;
            `"pixels"` follows the pixels there.

    Raises:
        ProviderError: when the catalog is unknown, a URL has no collection, or `offset` is none of the two.

    Example:
        >>> StacProvider("https://host/v1", collection="sentinel-2-l2a").name
        'stac:https://host/v1#sentinel-2-l2a'
    """

    def __init__(
        self,
        catalog: str | StacCatalog,
        collection: str | Sequence[str] | None = None,
        *,
        offset: OffsetSource = "item",
    ) -> None:
        if offset not in ("item", "pixels"):
            raise ProviderError(f"offset must be 'item' or 'pixels', got {offset!r}")
        self.catalog = catalog if isinstance(catalog, StacCatalog) else find_catalog(catalog, collection)
        self.offset = offset
        self._searcher = Searcher(self.catalog)
        self._known_tokens: dict[str, tuple[str, float]] = {}
        self._dark_pixels: dict[str, DarkPixels | None] = {}

    def __repr__(self) -> str:
        return f"StacProvider({self.catalog.name!r}, offset={self.offset!r})"

    def __reduce__(self) -> tuple[Callable[[StacCatalog], StacProvider], tuple[StacCatalog]]:
        """Pickle the arguments alone: connections cannot travel, and tokens must not."""
        return partial(StacProvider, offset=self.offset), (self.catalog,)

    @property
    def name(self) -> str:
        """Name of the backend in metadata and errors."""
        return self.catalog.name + ("?offset=pixels" if self.offset == "pixels" else "")

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield each patch as its last block arrives."""
        selections = self._select_scenes(requests)
        for positions in _sweeps(requests):
            pending = []
            for position in positions:
                try:
                    selections[position].check(self.name)
                except ProviderError as error:
                    yield position, error
                else:
                    pending.append(_PendingPatch(position, selections[position]))
            yield from self._read([p for p in pending if p.request.sensor.composite == "median"], scenes_per_round=None)
            yield from self._read([p for p in pending if p.request.sensor.composite == "mosaic"], scenes_per_round=1)

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes, blocks and bytes from the catalog alone."""
        selections = self._select_scenes(requests)
        sweeps = [_sweep_cost([selections[i] for i in positions]) for positions in _sweeps(requests)]
        files, blocks, read_bytes = (sum(values) for values in zip((0, 0, 0.0), *sweeps, strict=True))
        return FetchPlan(
            scenes_of=tuple(len(s.scenes) for s in selections),
            covered=tuple(s.covered for s in selections),
            blocks=round(blocks),
            requests=round(blocks + files),
            read_bytes=round(read_bytes),
        )

    def _select_scenes(self, requests: Sequence[PatchRequest]) -> list[Selection]:
        """Select the scenes of each request among those found around it."""
        selections: dict[int, Selection] = {}
        for temporal, members in _search_cells(requests):
            west, south, east, north = zip(*members.values(), strict=True)
            bounds = min(west), min(south), max(east), max(north)
            bands = frozenset(band for i in members for band in (*requests[i].sensor.bands, "SCL"))
            scenes = self._searcher.search(bounds, temporal, bands)
            for i in members:
                selections[i] = select_scenes(scenes, requests[i])
        return [selections[i] for i in range(len(requests))]

    def _read(
        self, pending: Sequence[_PendingPatch], scenes_per_round: int | None
    ) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Read scenes in rounds, newest first, until all are read or no pixel of a mosaic is left open."""
        unfinished = {p.position: p for p in pending}
        start = 0
        while unfinished:
            stop = None if scenes_per_round is None else start + scenes_per_round
            places = [PlaceLayers(i, p.request, p.selection.scenes[start:stop]) for i, p in unfinished.items()]
            for place in self._sweep(places):
                patch = unfinished[place.position]
                patch.add(place, self._check_offset)
                if stop is None or stop >= len(patch.selection.scenes) or patch.is_full():
                    del unfinished[place.position]
                    yield place.position, self._composite(patch)
            start += scenes_per_round or 0

    def _sweep(self, places: Sequence[PlaceLayers]) -> Iterator[PlaceLayers]:
        for url in _files_to_check(places):
            self._dark_pixels.setdefault(url, None)
        return read_places(
            places, in_flight=settings.fetch_workers(), tokens=self._tokens(), dark_pixels=self._dark_pixels
        )

    def _tokens(self) -> SasTokens | None:
        url = self.catalog.sas_token_url
        return None if url is None else SasTokens(url, self.catalog.signed_hosts, self._known_tokens)

    def _check_offset(self, scene: Scene, stated: Radiometry) -> tuple[Radiometry, str | None]:
        """Check the offset that an item states against the pixels of the whole scene."""
        first = self._dark_pixels.get(scene.files[_DARK_BAND].path) if _DARK_BAND in scene.files else None
        if first is None:
            return stated, None
        bands = [first]
        if stated.offset != OFFSET_2022 and first.too_dark_share < MANY_TOO_DARK and _SECOND_BAND in scene.files:
            path = scene.files[_SECOND_BAND].path  # only two bands can show that the offset is still present
            if path not in self._dark_pixels:
                self._dark_pixels[path] = fetch_dark_pixels(path, self._tokens())
            second = self._dark_pixels[path]
            bands += [] if second is None else [second]
        return check_offset(stated, bands, pixels_decide=self.offset == "pixels")

    def _composite(self, patch: _PendingPatch) -> Patch | ProviderError:
        collections = ", ".join(sorted({s.collection or "?" for s in patch.selection.scenes}))
        source = f"{self.name}: {collections}"
        try:
            return build_patch(self.name, source, patch.selection, patch.images, patch.dropped)
        except ProviderError as error:
            return error
        finally:
            patch.images.clear()  # the sweep's other places are still to come: do not keep these pixels until then


@dataclass(slots=True)
class _PendingPatch:
    """One request and the scenes read for it so far."""

    position: int
    selection: Selection
    images: list[SceneImage] = field(default_factory=list)
    dropped: list[DroppedScene] = field(default_factory=list)

    @property
    def request(self) -> PatchRequest:
        """The request itself."""
        return self.selection.request

    def add(self, place: PlaceLayers, check_offset: _CheckOffset) -> None:
        """Take over the scenes that were read, harmonised."""
        sensor = self.request.sensor
        for number, scene in enumerate(place.scenes):
            layers = [place.layers.pop((number, i), None) for i in range(len(place.bands(number)))]
            bands = [layer for layer in layers[: len(sensor.bands)] if layer is not None]
            is_complete = number not in place.faults and len(bands) == len(sensor.bands)
            valid: Any = np.logical_and.reduce([band.valid for band in bands]) if is_complete else np.zeros(1, bool)
            if not valid.any():
                self.dropped.append(DroppedScene(scene.id, place.faults.get(number, NO_VALID_PIXEL)))
                continue
            stated = scene.radiometry(sensor.bands[0], *place.scale_and_offset[number])
            radiometry, contradiction = check_offset(scene, stated)
            values = np.stack([band.values for band in bands])
            scl = _scene_classes(layers, len(bands), valid.shape)
            self.images.append(harmonised_image(scene, values, valid, scl, radiometry, contradiction))

    def is_full(self) -> bool:
        """Return True when every pixel has been observed."""
        observed = [mask_clouds(image, self.request).valid for image in self.images]
        return bool(observed) and bool(np.logical_or.reduce(observed).all())


def _scene_classes(layers: Sequence[Layer | None], bands: int, shape: tuple[int, int]) -> GreyArray | None:
    """Return the scene classification, 0 where it has no value; None where the scene has none."""
    if len(layers) == bands:
        return None
    layer = layers[bands]
    return np.zeros(shape, np.uint8) if layer is None else np.where(layer.valid, layer.values, 0).astype(np.uint8)


def _files_to_check(places: Sequence[PlaceLayers]) -> Iterator[str]:
    """Yield the blue file of each scene that may carry the offset of 2022."""
    seen = set()
    for place in places:
        if _DARK_BAND not in place.request.sensor.bands:
            continue
        for scene in (s for s in place.scenes if s.id not in seen and _DARK_BAND in s.files):
            seen.add(scene.id)
            if may_carry_offset(scene.properties, scene.product_names, scene.acquired):
                yield scene.files[_DARK_BAND].path


def _sweep_cost(selections: Sequence[Selection]) -> tuple[int, int, float]:
    """Count the files, blocks and bytes of one sweep; a block that two sweeps need is read twice."""
    files: dict[str, tuple[str, BandFile]] = {}
    blocks: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for selection in selections:
        bands = (*selection.request.sensor.bands, "SCL")
        for band, file in ((b, s.files[b]) for s in selection.scenes for b in bands if b in s.files):
            files[file.path] = band, file
            blocks[file.path].update(_blocks_under(file, selection.request))
    read_bytes = sum(len(blocks[path]) * _block_bytes(band, file) for path, (band, file) in files.items())
    return len(files), sum(map(len, blocks.values())), read_bytes


def _blocks_under(file: BandFile, request: PatchRequest) -> Sequence[tuple[int, int]]:
    """Return the blocks that a place needs; where the item states no grid, as many made-up ones of its own."""
    if file.grid is not None:
        return file.grid.blocks_under(request.geobox)
    height, width = request.geobox.shape
    corner = hash((request.geobox.affine.c, request.geobox.affine.f))
    return [(corner, i) for i in range(round((1 + height / _TYPICAL_BLOCK_PX) * (1 + width / _TYPICAL_BLOCK_PX)))]


def _block_bytes(band: str, file: BandFile) -> float:
    """Estimate the stored size of one block, in bytes."""
    if file.grid is None or not file.size_bytes:
        return _TYPICAL_BLOCK_PX**2 * (_SCL_BYTES_PER_PIXEL if band == "SCL" else _BAND_BYTES_PER_PIXEL)
    pixels = file.grid.height * file.grid.width * _WITH_OVERVIEWS
    return file.size_bytes / pixels * file.grid.block_height * file.grid.block_width


def _search_cells(requests: Sequence[PatchRequest]) -> Iterator[tuple[TemporalSpec, dict[int, Bounds]]]:
    """Group requests that one search answers, with their bounds: same time range, same cell of one degree."""
    cells: dict[tuple[TemporalSpec, int, int], dict[int, Bounds]] = defaultdict(dict)
    for i, request in enumerate(requests):
        bounds = lonlat_bounds(request.geobox)
        column, row = int(bounds[0] // _SEARCH_CELL_DEGREES), int(bounds[1] // _SEARCH_CELL_DEGREES)
        cells[request.temporal, column, row][i] = bounds
    for (temporal, _, _), members in sorted(cells.items(), key=lambda pair: min(pair[1])):
        yield temporal, members


def _sweeps(requests: Sequence[PatchRequest]) -> Iterator[list[int]]:
    """Yield positions of the requests of each sweep, neighbours on the map together."""

    def map_order(position: int) -> tuple[str, float, float]:
        geobox = requests[position].geobox
        return str(geobox.crs), -geobox.affine.f, geobox.affine.c

    order = sorted(range(len(requests)), key=map_order)
    for start in range(0, len(order), _PLACES_PER_SWEEP):
        yield order[start : start + _PLACES_PER_SWEEP]
