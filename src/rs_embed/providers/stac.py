"""Any STAC API with Sentinel-2 COGs: search once for many places, then read each block once for all of them."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt
import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from rs_embed import settings
from rs_embed.composite import SceneImage
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.grid import lonlat_bounds
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.archive import (
    ArchiveScene,
    Choice,
    ReadScene,
    build_patch,
    choose,
    harmonise,
    masked_for,
    nothing_found,
    scene_radiometry,
)
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.providers.blocks import BlockReader, Layer, ReadPlace
from rs_embed.providers.http import SasTokens
from rs_embed.providers.items import scene_of_item
from rs_embed.sentinel2 import processing_baseline
from rs_embed.specs import TemporalSpec

_TOGETHER = 500
"""Places of one sweep over the blocks."""
_PAGE = 100
"""Items a page; larger pages crash Earth Search."""
_TIMEOUT_S = (4.0, 10.0)
_CELL_DEGREES = 1.0
_TILE = re.compile(r"(?<![A-Z0-9])T?(\d{2}[A-Z]{3})(?![A-Z0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class StacCatalog:
    """One STAC API."""

    name: str
    """How metadata and errors call it."""
    url: str
    collections: tuple[str, ...]
    """Where a scene is in several, the first one counts."""
    sas_token_url: str | None = None
    """Where read tokens are asked for; None where files are open."""
    signed_hosts: str = ".blob.core.windows.net"
    """Ending of the hosts that want a token."""

    def tokens(self) -> SasTokens | None:
        """Tokens for one run; None where none are needed."""
        return SasTokens(self.sas_token_url, self.signed_hosts) if self.sas_token_url else None


EARTH_SEARCH = StacCatalog(
    name="earth-search",
    url="https://earth-search.aws.element84.com/v1",
    collections=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
)
PLANETARY_COMPUTER = StacCatalog(
    name="planetary-computer",
    url="https://planetarycomputer.microsoft.com/api/stac/v1",
    collections=("sentinel-2-l2a",),
    sas_token_url="https://planetarycomputer.microsoft.com/api/sas/v1/token",
)
CATALOGS = {catalog.name: catalog for catalog in (EARTH_SEARCH, PLANETARY_COMPUTER)}


def parse_backend(backend: str) -> StacCatalog:
    """`"stac:<api url>#<collection>"` as a catalog; what could be a credential in the address stays out of its name.

    Raises:
        ProviderError: when it is not of that form.
    """
    url, _, collection = backend.removeprefix("stac:").partition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not collection:
        raise ProviderError(f"backend {_shown(url)!r} must be stac:<api url>#<collection>, with http or https")
    return StacCatalog(name=f"stac:{_shown(url)}#{collection}", url=url, collections=(collection,))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname or ''}{port}", parts.path, "", ""))


@dataclass(frozen=True, slots=True)
class StacProvider:
    """A provider over one catalog."""

    catalog: StacCatalog

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.catalog.name

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as their last block arrives."""
        found = self._choose(requests)
        for part in _parts(requests):
            waiting = []
            for position in part:
                scenes, choice = found[position]
                if choice.chosen:
                    waiting.append(_Gathered(position, requests[position], choice))
                else:
                    text = nothing_found(self.name, scenes, requests[position], choice)
                    yield position, NoImageryError(text)
            yield from self._read([g for g in waiting if g.request.sensor.composite == "median"], together=None)
            yield from self._read([g for g in waiting if g.request.sensor.composite == "mosaic"], together=1)

    def _read(self, waiting: Sequence[_Gathered], together: int | None) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Read the scenes of places, newest first, `together` of each at a time; a full mosaic reads no more."""
        open_places = {g.position: g for g in waiting}
        start = 0
        while open_places:
            stop = None if together is None else start + together
            places = [ReadPlace(p, g.request, g.choice.chosen[start:stop]) for p, g in open_places.items()]
            for place in BlockReader(places, in_flight=settings.fetch_workers(), tokens=self.catalog.tokens()):
                gathered = open_places[place.position]
                error = gathered.add(place)
                if error or stop is None or stop >= len(gathered.choice.chosen) or gathered.is_full():
                    del open_places[place.position]
                    patch = error or self._patch(gathered)
                    gathered.used.clear()  # its pixels are in the patch now
                    yield place.position, patch
            start += together or 0

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes and bytes from the catalog alone."""
        chosen = [choice.chosen for _, choice in self._choose(requests)]
        pixels = [r.geobox.shape[0] * r.geobox.shape[1] * (2 * len(r.sensor.bands) + 1) for r in requests]
        return FetchPlan(
            places=len(requests),
            scenes=sum(map(len, chosen)),
            read_bytes=sum(len(scenes) * n for scenes, n in zip(chosen, pixels, strict=True)),
            places_without_scene=tuple(i for i, scenes in enumerate(chosen) if not scenes),
        )

    def _choose(self, asked: Sequence[PatchRequest]) -> list[tuple[Sequence[ArchiveScene], Choice]]:
        """For each request the scenes that were found around it, and those that it takes."""
        if not asked:
            return []
        found: dict[int, tuple[Sequence[ArchiveScene], Choice]] = {}
        client = self._open()
        for temporal, members in _cells(asked):
            bounds = np.array([lonlat_bounds(asked[i].geobox) for i in members])
            around = [*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist()]
            scenes = self._search(client, around, temporal)
            for i in members:
                found[i] = scenes, choose(scenes, asked[i])
        return [found[i] for i in range(len(asked))]

    def _open(self) -> Client:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of retries with whole addresses
        try:
            retry = Retry(
                total=2,
                backoff_factor=0.5,
                backoff_jitter=0.3,
                status_forcelist=(429, 500, 502, 503, 504),
                allowed_methods=None,
                respect_retry_after_header=False,
            )
            return Client.open(self.catalog.url, stac_io=StacApiIO(timeout=_TIMEOUT_S, max_retries=retry))
        except (APIError, requests.RequestException, ValueError, KeyError) as error:
            raise ProviderError(self._fault(error)) from None

    def _search(self, client: Client, bounds: Sequence[float], temporal: TemporalSpec) -> list[ArchiveScene]:
        """All scenes of the catalog's collections in a box and time range, each one once.

        Clouds are filtered later, here: the error of an empty answer says how many scenes the filter took.
        """
        try:
            search = client.search(
                collections=list(self.catalog.collections),
                bbox=list(bounds),
                datetime=f"{temporal.start}T00:00:00Z/{temporal.end}T00:00:00Z",
                limit=_PAGE,
            )
            items = list(search.items_as_dicts())
        except (APIError, requests.RequestException, ValueError, KeyError) as error:
            raise ProviderError(self._fault(error)) from None
        return unique(_scenes(items), self.catalog.collections)

    def _fault(self, error: Exception) -> str:
        host = urlsplit(self.catalog.url).hostname
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        what = f"answered {status}" if status else f"cannot be reached or understood ({type(error).__name__})"
        return (
            f"{self.name}: the catalog {host} {what}, also when asked again: try later, check the network or a proxy "
            "(HTTPS_PROXY); 'sample' and 'local:<folder>' work without a network"
        )

    def _patch(self, place: _Gathered) -> Patch | ProviderError:
        source = f"{self.name}: {', '.join(sorted({s.collection or '?' for s in place.choice.chosen}))}"
        try:
            images = iter([read.image for read in place.used])
            return build_patch(self.name, source, place.request, place.choice, images, place.used, place.dropped)
        except ProviderError as error:
            return error


@dataclass(slots=True)
class _Gathered:
    """A place, and what has been read for it so far."""

    position: int
    request: PatchRequest
    choice: Choice
    used: list[ReadScene] = field(default_factory=list)
    dropped: list[DroppedScene] = field(default_factory=list)

    def add(self, place: ReadPlace) -> ProviderError | None:
        """Take over what was read of some scenes, harmonised; an error where the request cannot be met at all."""
        sensor = self.request.sensor
        for number, scene in enumerate(place.scenes):
            if sensor.cloud_mask == "scl" and "SCL" not in scene.files:
                return ProviderError(f"scene {scene.id} has no band SCL; ask without cloud_mask")
            layers = [place.layers.pop((number, i), None) for i in range(len(place.bands(number)))]
            bands = [layer for layer in layers[: len(sensor.bands)] if layer is not None]
            complete = number not in place.faults and len(bands) == len(sensor.bands)
            valid: Any = np.logical_and.reduce([band.valid for band in bands]) if complete else np.zeros(1, bool)
            if not valid.any():
                reason = place.faults.get(number, "no valid pixel in the place")
                self.dropped.append(DroppedScene(scene.id, reason))
                continue
            rule = scene_radiometry(scene, scene.files[sensor.bands[0]], *place.tags[number])
            dn = harmonise(np.stack([band.values for band in bands]), rule)
            image = SceneImage(dn, valid, _scene_classes(layers, len(bands), valid.shape))
            self.used.append(ReadScene(scene, image, rule))
        return None

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


def unique(scenes: Iterable[ArchiveScene], collections: Sequence[str]) -> list[ArchiveScene]:
    """One scene for each tile and second: the newest processing baseline, then the first collection."""
    best: dict[tuple[str, str], ArchiveScene] = {}

    def rank(scene: ArchiveScene) -> tuple[str, int]:
        baseline = processing_baseline(scene.properties, (scene.id, *scene.names)) or ""
        place = collections.index(scene.collection) if scene.collection in collections else len(collections)
        return baseline, -place

    for scene in scenes:
        key = _tile(scene), scene.acquired.isoformat(timespec="seconds")
        if key not in best or rank(scene) > rank(best[key]):
            best[key] = scene
    return list(best.values())


def _tile(scene: ArchiveScene) -> str:
    told = scene.properties.get("grid:code") or scene.properties.get("s2:mgrs_tile") or scene.id
    match = _TILE.search(str(told).upper().replace("MGRS-", "").replace("_", " "))
    return match[1] if match else scene.id


def _scenes(items: Iterable[Mapping[str, Any]]) -> Iterator[ArchiveScene]:
    for item in items:
        try:
            yield scene_of_item(item, _cog_address)
        except (ProviderError, KeyError, ValueError, TypeError):
            continue  # not a Sentinel-2 item; a catalog may hold others beside them


def _cog_address(href: str) -> str | None:
    """An address that can be read by ranges, without a query: what is signed is signed when it is read."""
    parts = urlsplit(href)
    if parts.scheme not in ("http", "https") or not parts.path.lower().endswith((".tif", ".tiff")):
        return None
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def _cells(asked: Sequence[PatchRequest]) -> Iterator[tuple[TemporalSpec, list[int]]]:
    """Requests that one search answers: the same time range, within a degree of each other."""
    cells: dict[tuple[TemporalSpec, int, int], list[int]] = defaultdict(list)
    for i, request in enumerate(asked):
        west, south, _, _ = lonlat_bounds(request.geobox)
        cells[request.temporal, int(west // _CELL_DEGREES), int(south // _CELL_DEGREES)].append(i)
    for (temporal, _, _), members in sorted(cells.items(), key=lambda pair: pair[1][0]):
        yield temporal, members


def _parts(asked: Sequence[PatchRequest]) -> Iterator[list[int]]:
    """Positions in sweeps of at most `_TOGETHER` places, neighbours together."""
    order = sorted(
        range(len(asked)), key=lambda i: (str(asked[i].geobox.crs), -asked[i].geobox.affine.f, asked[i].geobox.affine.c)
    )
    for start in range(0, len(order), _TOGETHER):
        yield order[start : start + _TOGETHER]
