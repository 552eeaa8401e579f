"""Provider of Sentinel-2 COGs in any STAC API: one search for many places, and each block is read once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

from rs_embed.errors import ProviderError
from rs_embed.patch import Patch
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.providers.block_files import fetch_dark_pixels
from rs_embed.providers.compositing import CompositeBuilder
from rs_embed.providers.http import SasTokens, Signer
from rs_embed.providers.listings import group_by_search
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.providers.stac.catalogs import StacCatalog, find_catalog
from rs_embed.providers.stac.offsets import MANY_TOO_DARK, DarkPixels, check_offset
from rs_embed.providers.stac.s3 import new_signer
from rs_embed.providers.stac.search import Searcher
from rs_embed.providers.sweep import fetch_swept, layer_bytes, sweeps
from rs_embed.sentinel2 import OFFSET_2022, Radiometry, may_carry_offset

_DARK_BAND, _SECOND_BAND = "B2", "B4"  # the darkest, and one with bright sand: their overviews show the offset of 2022
_TYPICAL_BLOCK_PX = 1024
_SCL_BYTES_PER_PIXEL = 0.1
_BAND_BYTES_PER_PIXEL = 1.3  # of a deflated band over real ground, for items that do not state the size of their files
_WITH_OVERVIEWS = 4 / 3  # pixels of a file with its overviews, as a multiple of the full image

OffsetSource = Literal["item", "pixels"]


class StacProvider:
    """Sentinel-2 imagery of a STAC API whose assets are cloud-optimised GeoTIFFs.

    A provider remembers its searches, its read tokens and the offsets it has checked; pickling it, for example for a
    Ray worker, keeps the arguments only.

    Args:
        catalog: `"earth-search"`, `"planetary-computer"`, `"cdse"`, the URL of a STAC API, or a `StacCatalog` for files
            that need tokens from elsewhere.
        collection: one or several collections of Sentinel-2 L2A. Required for a URL; a known catalog has its own.
        offset: `"item"` takes the DN offset of a scene from its metadata, and warns where the pixels contradict it;
            `"pixels"` follows the pixels there.

    Raises:
        ProviderError: when the catalog is unknown, a URL has no collection, or `offset` is none of the two.

    Examples:
        >>> from rs_embed import StacProvider
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
        token_url = self.catalog.sas_token_url
        self._signer: Signer | None = None if token_url is None else SasTokens(token_url, self.catalog.signed_hosts)
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
        """Yield each patch as its last block arrives.

        Args:
            requests: grid, time range and sensor of each place.
        """
        if self.catalog.has_s3_files:
            self._signer = new_signer()
        selections = self._select_scenes(requests)

        def start(position: int) -> CompositeBuilder:
            selection = selections[position]
            selection.check(self.name)
            for url in _files_to_check(selection):
                self._dark_pixels.setdefault(url, None)
            source = f"{self.name}: {', '.join(sorted({s.collection or '?' for s in selection.scenes}))}"
            return CompositeBuilder(self.name, source, selection, self._check_offset)

        yield from fetch_swept(requests, start, self._signer, self._dark_pixels)

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes, blocks and bytes from the catalog alone.

        Args:
            requests: grid, time range and sensor of each place.
        """
        selections = self._select_scenes(requests)
        grouped = sweeps(requests, lambda position: layer_bytes(selections[position]))
        costs = [_sweep_cost([selections[i] for i in positions]) for positions in grouped]
        files, blocks, read_bytes = (sum(values) for values in zip((0, 0, 0.0), *costs, strict=True))
        return FetchPlan(
            scenes_of=tuple(len(s.scenes) for s in selections),
            covered=tuple(s.covered for s in selections),
            blocks=round(blocks),
            requests=round(blocks + files),
            read_bytes=round(read_bytes),
        )

    def _select_scenes(self, requests: Sequence[PatchRequest]) -> list[Selection]:
        selections: dict[int, Selection] = {}
        for search, positions in group_by_search(requests):
            scenes = self._searcher.search(search)
            selections |= {i: select_scenes(scenes, requests[i]) for i in positions}
        return [selections[i] for i in range(len(requests))]

    def _check_offset(self, scene: Scene, stated: Radiometry) -> tuple[Radiometry, str | None]:
        """Check the offset that an item states against the pixels of the whole scene."""
        first = self._dark_pixels.get(scene.files[_DARK_BAND].path) if _DARK_BAND in scene.files else None
        if first is None:
            return stated, None
        bands = [first]
        if stated.offset != OFFSET_2022 and first.too_dark_share < MANY_TOO_DARK and _SECOND_BAND in scene.files:
            path = scene.files[_SECOND_BAND].path  # only two bands can show that the offset is still present
            if path not in self._dark_pixels:
                self._dark_pixels[path] = fetch_dark_pixels(path, self._signer)
            second = self._dark_pixels[path]
            bands += [] if second is None else [second]
        return check_offset(stated, bands, pixels_decide=self.offset == "pixels")


def _files_to_check(selection: Selection) -> list[str]:
    """Return the blue file of each scene that may carry the offset of 2022."""
    if _DARK_BAND not in selection.request.sensor.bands:
        return []
    scenes = [scene for scene in selection.scenes if _DARK_BAND in scene.files]
    suspects = (s for s in scenes if may_carry_offset(s.properties, s.product_names, s.acquired))
    return [scene.files[_DARK_BAND].path for scene in suspects]


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
