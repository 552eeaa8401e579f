"""Blocks of COGs for many places at once: each block is fetched and decoded once, and goes to all places on it.

Blocks are taken in the order in which they lie on the map. A place's buffers are made when its first block arrives and
handed over when its last one has, so that memory holds the places along the front of the sweep, not all of them.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from affine import Affine
from async_tiff import TIFF, DecoderRegistry
from async_tiff.enums import Compression, PlanarConfiguration
from isal import isal_zlib
from odc.geo.geobox import GeoBox
from pyproj import CRS
from typing_extensions import Buffer

from rs_embed.providers.archive import ArchiveScene
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.http import FetchError, RangeReader, SasTokens, new_client
from rs_embed.providers.raster import IndexArray, source_pixels

_DECODE_ATTEMPTS = 3
_BLOCK_BYTES = 1 << 21
"""Of a block as it mostly is: 1024 px a side, uint16."""


def _inflate(buffer: Buffer) -> bytes:
    """Decoding is the limit, and isal does it three times as fast as the library; it lets other threads run."""
    return isal_zlib.decompress(buffer, bufsize=_BLOCK_BYTES)


_DECODERS = DecoderRegistry({int(kind): _inflate for kind in (Compression.Deflate, Compression.OldDeflate)})

_POLL_S = 0.01
_SCALE_TAG = re.compile(r'role="(scale|offset)"[^>]*>([^<]+)<')


@dataclass(frozen=True, slots=True, kw_only=True)
class Cog:
    """What a COG's header tells."""

    tiff: TIFF
    height: int
    width: int
    block_height: int
    block_width: int
    transform: Affine
    crs: CRS
    planar: bool
    """Whether its blocks hold one band after the other."""
    nodata: float | None
    scale: float
    offset: float


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one file's pixels go: a band of a scene of a place, or its scene classification."""

    place: ReadPlace
    scene: int
    index: int
    """Which of the place's bands."""
    band: int
    """Which band of the file, from 0."""


@dataclass(slots=True, eq=False)
class Layer:
    """Stored values of one file on one place's grid."""

    values: npt.NDArray[np.generic]
    """(y, x), of the file's own type, `nodata` where nothing was read."""
    nodata: float

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """(y, x), True where a value was read that is not nodata."""
        found: npt.NDArray[np.bool_] = ~np.isnan(self.values) if np.isnan(self.nodata) else self.values != self.nodata
        return found


@dataclass(slots=True, eq=False)
class ReadPlace:
    """A place and what has been read of it."""

    position: int
    request: PatchRequest
    scenes: Sequence[ArchiveScene]
    """Newest first."""
    tags: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Scale and offset tags of each scene's first band."""
    faults: dict[int, str] = field(default_factory=dict)
    """What could not be read of a scene."""
    layers: dict[tuple[int, int], Layer] = field(default_factory=dict)
    """What was read, by scene and band."""
    waiting: int = 0

    def bands(self, scene: int) -> list[str]:
        """Bands to read of a scene, the scene classification last; it is read whenever there is one."""
        files = self.scenes[scene].files
        return [*self.request.sensor.bands, *(["SCL"] if "SCL" in files else [])]

    def layer(self, scene: int, index: int, dtype: np.dtype[np.generic], nodata: float) -> Layer:
        """Where the values of one band of one scene go; made when it is first asked for."""
        if (scene, index) not in self.layers:
            if dtype.kind in "ui":
                limits = np.iinfo(dtype.name)
                nodata = nodata if limits.min <= nodata <= limits.max else 0.0  # what it cannot hold marks nothing
            empty = np.full(self.request.geobox.shape, nodata).astype(dtype)
            self.layers[scene, index] = Layer(empty, nodata)
        return self.layers[scene, index]

    def give_up(self, scene: int, fault: str) -> None:
        """Note why a scene cannot be read, and forget what was."""
        self.faults.setdefault(scene, fault)
        for key in [key for key in self.layers if key[0] == scene]:
            del self.layers[key]


@dataclass(frozen=True, slots=True)
class _Block:
    """One block of one file."""

    url: str
    row: int
    col: int


class BlockReader:
    """One sweep over the blocks that some places need; iterate over it for the places as they are complete."""

    def __init__(self, places: Sequence[ReadPlace], *, in_flight: int, tokens: SasTokens | None = None) -> None:
        self._places = places
        self._in_flight = in_flight
        self._tokens = tokens
        self._done: queue.Queue[ReadPlace | BaseException | None] = queue.Queue(maxsize=2 * in_flight)
        self._stop = threading.Event()

    def __iter__(self) -> Iterator[ReadPlace]:
        threading.Thread(target=self._start, name="rs-embed-blocks", daemon=True).start()
        try:
            while (item := self._done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()

    def _start(self) -> None:
        last: BaseException | None = None
        try:
            asyncio.run(self._sweep())
        except BaseException as error:  # noqa: BLE001  (handed to the consumer, which raises it)
            last = error
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._done.put(last, timeout=_POLL_S)
                return

    async def _sweep(self) -> None:
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(self._in_flight), self._tokens)
            cogs = await self._open_all(reader)
            targets = self._targets_by_block(cogs)
            for place in self._places:
                if place.waiting == 0:
                    await self._hand_over(place)
            order = iter(sorted(targets, key=lambda block: _map_order(block, cogs[block.url])))
            workers = self._in_flight + (os.cpu_count() or 1)
            await asyncio.gather(*(self._work(order, targets, cogs, reader) for _ in range(workers)))

    async def _open_all(self, reader: RangeReader) -> dict[str, Cog | str]:
        """Header of each file that any place needs, once; or why it has none."""
        urls = sorted(
            {
                f.path
                for p in self._places
                for s in p.scenes
                for b, f in s.files.items()
                if b in (*p.request.sensor.bands, "SCL")
            }
        )
        found = await asyncio.gather(*(_open_cog(reader, url) for url in urls))
        return dict(zip(urls, found, strict=True))

    def _targets_by_block(self, cogs: Mapping[str, Cog | str]) -> dict[_Block, list[_Target]]:
        """Which places wait for which block; scenes with a file that cannot be opened are faulty from the start."""
        found: dict[_Block, list[_Target]] = defaultdict(list)
        for place in self._places:
            for number, scene in enumerate(place.scenes):
                self._plan_scene(place, number, scene, cogs, found)
        return found

    def _plan_scene(
        self,
        place: ReadPlace,
        number: int,
        scene: ArchiveScene,
        cogs: Mapping[str, Cog | str],
        found: dict[_Block, list[_Target]],
    ) -> None:
        for index, band in enumerate(place.bands(number)):
            file = scene.files.get(band)
            cog = f"it has no band {band}" if file is None else cogs[file.path]
            if file is None or isinstance(cog, str):
                place.faults[number] = str(cog)
                return
            if index == 0:
                place.tags[number] = (cog.scale, cog.offset)
            for row, col in _blocks_of(place.request.geobox, cog):
                found[_Block(file.path, row, col)].append(_Target(place, number, index, file.index - 1))
                place.waiting += 1

    async def _work(
        self,
        order: Iterator[_Block],
        targets: dict[_Block, list[_Target]],
        cogs: Mapping[str, Cog | str],
        reader: RangeReader,
    ) -> None:
        for block in order:
            if self._stop.is_set():
                return
            cog = cogs[block.url]
            assert isinstance(cog, Cog)
            waiting = targets.pop(block)
            wanted = [target for target in waiting if target.scene not in target.place.faults]
            try:
                if wanted:
                    values = await _read_block(cog, block, reader)
                    for target in wanted:
                        _scatter(target, cog, block, values)
            except FetchError as error:
                for target in wanted:
                    target.place.give_up(target.scene, str(error))
            for target in waiting:
                target.place.waiting -= 1
                if target.place.waiting == 0:
                    await self._hand_over(target.place)

    async def _hand_over(self, place: ReadPlace) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._done.put_nowait(place)
                return
            await asyncio.sleep(_POLL_S)


async def _open_cog(reader: RangeReader, url: str) -> Cog | str:
    try:
        tiff = await TIFF.open(url, store=reader, prefetch=32_768)
        return _read_header(tiff)
    except Exception as error:  # noqa: BLE001  (the library wraps what our reader raised; its text is kept in `faults`)
        return reader.faults.get(url) or f"its header cannot be read ({error})"


def _read_header(tiff: TIFF) -> Cog | str:
    ifd = tiff.ifds[0]
    keys = ifd.geo_key_directory
    epsg = None if keys is None else keys.projected_type or keys.geographic_type
    if ifd.tile_width is None or ifd.tile_height is None:
        return "it is no COG: it has strips, not blocks"
    if not epsg or not ifd.model_pixel_scale or not ifd.model_tiepoint:
        return "it has no georeference"
    x, y = ifd.model_pixel_scale[:2]
    col, row, _, left, top = ifd.model_tiepoint[:5]
    tags = dict(_SCALE_TAG.findall(ifd.gdal_metadata or ""))
    return Cog(
        tiff=tiff,
        height=ifd.image_height,
        width=ifd.image_width,
        block_height=ifd.tile_height,
        block_width=ifd.tile_width,
        transform=Affine(x, 0, left - col * x, 0, -y, top + row * y),
        crs=CRS.from_epsg(epsg),
        planar=ifd.planar_configuration == PlanarConfiguration.Planar,
        nodata=float(ifd.gdal_nodata.strip("\x00 ")) if ifd.gdal_nodata else None,
        scale=float(tags.get("scale", 1.0)),
        offset=float(tags.get("offset", 0.0)),
    )


async def _read_block(cog: Cog, block: _Block, reader: RangeReader) -> npt.NDArray[np.generic]:
    """One block (bands, y, x), fetched again when what came cannot be decoded.

    Raises:
        FetchError: when it cannot be had.
    """
    for attempt in range(1, _DECODE_ATTEMPTS + 1):
        reader.faults.pop(block.url, None)
        try:
            tile = await cog.tiff.fetch_tile(block.col, block.row, 0)
            values = np.asarray(await tile.decode(decoder_registry=_DECODERS))
        except Exception as error:  # noqa: BLE001  (the library wraps what our reader raised, and raises bare errors of its own)
            if block.url in reader.faults:
                raise FetchError(reader.faults[block.url]) from None
            if attempt == _DECODE_ATTEMPTS:
                name = block.url.rpartition("/")[2]
                raise FetchError(f"{name}: block {block.row},{block.col} is corrupt ({error})") from None
        else:
            return values if cog.planar else np.moveaxis(values, -1, 0)
    raise AssertionError("unreachable")


def _scatter(target: _Target, cog: Cog, block: _Block, values: npt.NDArray[np.generic]) -> None:
    """One block's pixels to one place."""
    where, rows, cols = _window(target.place.request.geobox, cog, block)
    nodata = 0.0 if cog.nodata is None else cog.nodata
    layer = target.place.layer(target.scene, target.index, values.dtype, nodata)
    layer.values[where] = values[target.band][rows, cols]


def _window(geobox: GeoBox, cog: Cog, block: _Block) -> tuple[tuple[IndexArray, ...], IndexArray, IndexArray]:
    """Target pixels under a block, and the block's rows and columns for them."""
    rows, cols = _mapping(geobox, cog.transform, cog.crs)
    top, left = block.row * cog.block_height, block.col * cog.block_width
    bottom, right = min(top + cog.block_height, cog.height), min(left + cog.block_width, cog.width)
    in_rows, in_cols = (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
    if _by_themselves(rows, cols):
        y, x = np.flatnonzero(in_rows), np.flatnonzero(in_cols)
        return np.ix_(y, x), rows[y] - top, cols[:, x] - left
    where = np.nonzero(in_rows & in_cols)
    return where, rows[where] - top, cols[where] - left


def _by_themselves(rows: IndexArray, cols: IndexArray) -> bool:
    """Whether rows depend on y alone and columns on x alone: the same CRS, north-up."""
    return bool(rows.shape[1] == 1 and cols.shape[0] == 1)


def _blocks_of(geobox: GeoBox, cog: Cog) -> list[tuple[int, int]]:
    """Row and column of each block that a place needs."""
    rows, cols = _mapping(geobox, cog.transform, cog.crs)
    in_rows, in_cols = (rows >= 0) & (rows < cog.height), (cols >= 0) & (cols < cog.width)
    if _by_themselves(rows, cols):
        block_rows = np.unique(rows[in_rows] // cog.block_height)
        block_cols = np.unique(cols[in_cols] // cog.block_width)
        return [(int(r), int(c)) for r in block_rows for c in block_cols]
    inside = in_rows & in_cols
    pairs = np.unique(np.stack([rows[inside] // cog.block_height, cols[inside] // cog.block_width], axis=1), axis=0)
    return [(int(r), int(c)) for r, c in pairs]


@lru_cache(maxsize=64)
def _mapping(geobox: GeoBox, transform: Affine, crs: CRS) -> tuple[IndexArray, IndexArray]:
    return source_pixels(transform, crs, geobox)


def _map_order(block: _Block, cog: Cog | str) -> tuple[str, float, float, str]:
    """North to south, then west to east; files of one grid side by side."""
    assert isinstance(cog, Cog)
    x, y = cog.transform * (block.col * cog.block_width, block.row * cog.block_height)
    return str(cog.crs.to_epsg()), -y, x, block.url
