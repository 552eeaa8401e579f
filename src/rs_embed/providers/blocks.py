"""Blocks of files, each read once for all places on it, in map order: memory holds the front of the sweep alone.

Files lie behind HTTP addresses, or on this machine.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np

from rs_embed.arrays import AnyArray, BoolArray
from rs_embed.background import Channel
from rs_embed.errors import FetchError, UnusableImageryError
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.block_files import BlockFile, open_block_file
from rs_embed.providers.ranges import ByteReader, is_remote
from rs_embed.providers.raster import RasterPixels, has_value
from rs_embed.providers.scenes import Scene
from rs_embed.providers.stac.offsets import DarkPixels

if TYPE_CHECKING:
    from rs_embed.providers.http import Signer

_PLACE_BYTES = 1 << 30  # of a file that is finer than the place's grid, decoded
_POLL_S = 0.01


@dataclass(slots=True, eq=False)
class Layer:
    """Stored values of one file on one place's grid."""

    values: AnyArray  # (y, x), of the file's own type, 0 where nothing was read
    nodata: float | None

    @property
    def valid(self) -> BoolArray:
        """(y, x), True where a value was read that is not nodata."""
        return has_value(self.values, self.nodata)


@dataclass(slots=True, eq=False)
class PlaceLayers:
    """Layers of one place, filled block by block."""

    position: int  # of the request in its batch
    request: PatchRequest
    scenes: Sequence[Scene]  # newest first
    scale_and_offset: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)  # as in `layers`
    gsd_m: dict[tuple[int, int], float] = field(default_factory=dict)  # likewise
    faults: dict[int, FetchError] = field(default_factory=dict)  # why a scene cannot be read, by scene number
    layers: dict[tuple[int, int], Layer] = field(default_factory=dict)  # by scene number and band number
    pending: int = 0  # headers and blocks that are still to come

    def bands(self, scene: int) -> list[str]:
        """Return the bands to read of a scene; its scene classification comes last, and is read if it exists."""
        return [*self.request.sensor.bands, *(["SCL"] if "SCL" in self.scenes[scene].files else [])]

    def layer(self, scene: int, band: int, dtype: np.dtype[np.generic], nodata: float | None) -> Layer:
        """Return the layer of one band of one scene, created empty on first use."""
        if (scene, band) not in self.layers:
            self.layers[scene, band] = Layer(np.zeros(self.request.geobox.shape, dtype), nodata)
        return self.layers[scene, band]

    def take_pixels(self, scene: int) -> list[RasterPixels]:
        """Return the pixels of a scene's bands, and free its layers; a band without a block is empty."""
        return [self._take_band(scene, band, name) for band, name in enumerate(self.bands(scene))]

    def _take_band(self, scene: int, band: int, name: str) -> RasterPixels:
        layer = self.layers.pop((scene, band), None)
        layer = layer or Layer(np.zeros(self.request.geobox.shape, np.uint8), None)
        valid, stated_nodata = layer.valid, self.scenes[scene].files[name].nodata
        if stated_nodata is not None:
            valid &= has_value(layer.values, stated_nodata)
        return RasterPixels(layer.values[None], valid, *self.scale_and_offset[scene, band], self.gsd_m[scene, band])

    def drop_scene(self, scene: int, error: FetchError) -> None:
        """Record why a scene cannot be read, and free its layers."""
        self.faults.setdefault(scene, error)
        for key in [key for key in self.layers if key[0] == scene]:
            del self.layers[key]


@dataclass(frozen=True, slots=True)
class _Target:
    """Layer that one band of a file fills."""

    place: PlaceLayers
    scene: int
    band: int  # band number within the place
    file_band: int  # band number within the file, from 0

    @property
    def is_wanted(self) -> bool:
        """True until the scene has failed."""
        return self.scene not in self.place.faults

    def fill(self, block: AnyArray | FetchError | None, run: _BlockRun, col: int) -> None:
        """Copy the pixels of one block that lie on the place to the layer; an error drops the scene."""
        if isinstance(block, FetchError):
            self.place.drop_scene(self.scene, block)
        elif block is not None:
            layer = self.place.layer(self.scene, self.band, block.dtype, run.file.nodata)
            values = block[run.bands.index(self.file_band)]
            for rows, where, source in run.file.grid.windows(self.place.request.geobox, run.row, col):
                layer.values[rows][where] = values[source]

    def start(self, file: BlockFile) -> bool:
        """Take what the file's header says of the band; False where the file has no such band."""
        if self.file_band >= file.count:
            missing = f"its file has {file.count} band(s), and none has number {self.file_band + 1}"
            self.place.drop_scene(self.scene, UnusableImageryError(missing))
            return False
        reason = self._why_too_fine(file)
        if reason is not None:
            self.place.drop_scene(self.scene, UnusableImageryError(reason))
            return False
        self.place.scale_and_offset[self.scene, self.band] = file.scale_and_offset(self.file_band)
        self.place.gsd_m[self.scene, self.band] = file.grid.gsd_m
        return True

    def _why_too_fine(self, file: BlockFile) -> str | None:
        """Return the reason why a file has too many pixels within the place; None for one that has not."""
        grid, blocks = file.grid, file.grid.blocks_under(self.place.request.geobox)
        high, wide = (max(n) - min(n) + 1 for n in zip(*blocks, strict=True)) if blocks else (0, 0)
        size = high * grid.block_height * wide * grid.block_width * file.value_bytes
        if len(blocks) == 1 or size <= _PLACE_BYTES:
            return None
        return (
            f"{file.name} is {grid.width} x {grid.height} px, and the place would take {size >> 20:,} MB of it: "
            "resample it to 10 m"
        )


@dataclass(frozen=True, slots=True)
class _BlockRun:
    """Adjacent blocks of one file that are fetched with one request."""

    file: BlockFile
    row: int
    cols: tuple[int, ...]
    bands: tuple[int, ...]
    targets: tuple[Sequence[_Target], ...]  # layers to fill, for each block

    @property
    def map_order(self) -> _MapOrder:
        """Sort key: by zone, then north to south, then west to east."""
        grid = self.file.grid
        x, y = grid.transform * (self.cols[0] * grid.block_width, self.row * grid.block_height)
        return str(grid.crs), -y, x


_MapOrder = tuple[str, float, float]
_Addresses = tuple[str, ...]  # of one file, the first one to be tried first
_Queue = asyncio.PriorityQueue[tuple[_MapOrder, int, "_BlockRun | None"]]
"""Runs in map order, and in order of arrival where they lie in one place; None ends a worker."""
_LAST: _MapOrder = ("\U0010ffff", 0.0, 0.0)


def read_places(
    places: Sequence[PlaceLayers],
    in_flight: int,
    signer: Signer | None,
    dark_pixels: MutableMapping[str, DarkPixels | None],
) -> Iterator[PlaceLayers]:
    """Read places in one sweep, yield each when it is complete, and fill in those of `dark_pixels` that are None."""
    channel: Channel[PlaceLayers] = Channel(limit=2 * in_flight)
    sweep = _Sweep(channel, in_flight, signer, dark_pixels)
    return channel.consume([lambda: asyncio.run(sweep.run(places))])


@dataclass(slots=True)
class _Sweep:
    """Event loop that fetches headers and blocks, and hands over complete places."""

    done: Channel[PlaceLayers]
    in_flight: int
    signer: Signer | None
    dark_pixels: MutableMapping[str, DarkPixels | None]
    _runs: _Queue = field(default_factory=asyncio.PriorityQueue)
    _numbers: Iterator[int] = field(default_factory=count)

    async def run(self, places: Sequence[PlaceLayers]) -> None:
        """Open all files; the blocks of each are queued as soon as its header has arrived."""
        targets = _targets_by_file(places)
        for place in places:
            await self._count_down(place, by=0)
        async with self._reader(remote=any(map(is_remote, chain.from_iterable(targets)))) as reader:
            worker_count = self.in_flight + (os.cpu_count() or 1)  # some decode while others fetch
            workers = [asyncio.create_task(self._work()) for _ in range(worker_count)]
            await asyncio.gather(*(self._open(where, waiting, reader) for where, waiting in targets.items()))
            for _ in workers:
                self._runs.put_nowait((_LAST, next(self._numbers), None))
            await asyncio.gather(*workers)

    @asynccontextmanager
    async def _reader(self, *, remote: bool) -> AsyncIterator[ByteReader | None]:
        """Yield the reader of HTTP addresses; None where all files are local."""
        if not remote:
            yield None
            return
        from rs_embed.providers.http import RangeReader, new_client  # a tenth of a second, which local files save

        async with new_client() as client:
            yield RangeReader(client, asyncio.Semaphore(self.in_flight), self.signer)

    async def _open(self, addresses: _Addresses, targets: Sequence[_Target], reader: ByteReader | None) -> None:
        """Fetch a file's header, and queue the blocks that its places need."""
        if self.done.is_closed:
            return
        url = addresses[0]
        check_dark_pixels = url in self.dark_pixels and self.dark_pixels[url] is None
        try:
            file = await self._open_first(addresses, reader, with_overview=check_dark_pixels)
        except FetchError as error:
            for target in targets:
                target.place.drop_scene(target.scene, error)
        else:
            for run in _block_runs(file, [target for target in targets if target.start(file)]):
                self._runs.put_nowait((run.map_order, next(self._numbers), run))
            if check_dark_pixels:
                self.dark_pixels[url] = await file.fetch_dark_pixels()
        for target in targets:
            await self._count_down(target.place)

    async def _open_first(self, addresses: _Addresses, reader: ByteReader | None, *, with_overview: bool) -> BlockFile:
        """Open a file at the first of its addresses where it can be read."""
        faults: list[FetchError] = []
        for address in addresses:
            try:
                return await open_block_file(reader, address, with_overview=with_overview)
            except FetchError as error:
                faults.append(error)
        kind = UnusableImageryError if all(isinstance(e, UnusableImageryError) for e in faults) else FetchError
        raise kind("; ".join(map(str, faults)))

    async def _work(self) -> None:
        """Fetch runs from the queue, and copy their pixels to the layers."""
        while not self.done.is_closed:
            *_, run = await self._runs.get()
            if run is None:
                return
            if any(target.is_wanted for target in chain.from_iterable(run.targets)):
                blocks = await run.file.fetch_blocks(run.row, run.cols, run.bands)
                for col, block, targets in zip(run.cols, blocks, run.targets, strict=True):
                    for target in targets:
                        if target.is_wanted:
                            target.fill(block, run, col)
            for target in chain.from_iterable(run.targets):
                await self._count_down(target.place)

    async def _count_down(self, place: PlaceLayers, by: int = 1) -> None:
        """Hand a place over when nothing is pending for it any more."""
        place.pending -= by
        while place.pending == 0 and not self.done.offer(place):
            await asyncio.sleep(_POLL_S)


def _targets_by_file(places: Sequence[PlaceLayers]) -> dict[_Addresses, list[_Target]]:
    """Group the layers by their file."""
    targets: dict[_Addresses, list[_Target]] = defaultdict(list)
    for place in places:
        for number, scene in enumerate(place.scenes):
            bands = place.bands(number)
            for index, file in enumerate(scene.files[band] for band in bands):
                targets[file.path, *file.alternates].append(_Target(place, number, index, file.index - 1))
            place.pending += len(bands)
    return targets


def _block_runs(file: BlockFile, targets: Sequence[_Target]) -> Iterator[_BlockRun]:
    """Yield the blocks of a file that its places need, joined where they are contiguous in the file."""
    needed: dict[tuple[int, int], list[_Target]] = defaultdict(list)
    for target in targets:
        for block in file.grid.blocks_under(target.place.request.geobox):
            needed[block].append(target)
            target.place.pending += 1
    runs: list[list[tuple[int, int]]] = []
    for row, col in sorted(needed):
        last = runs[-1] if runs else [(-1, -1)]
        if last[-1] == (row, col - 1) and len(last) < file.blocks_at_once and file.is_contiguous(row, col - 1):
            last.append((row, col))
        else:
            runs.append([(row, col)])
    for run in runs:
        waiting = [needed[block] for block in run]
        bands = sorted({target.file_band for target in chain.from_iterable(waiting)})
        for start in range(0, len(bands), file.bands_at_once):
            part = tuple(bands[start : start + file.bands_at_once])
            chosen = tuple([target for target in of_block if target.file_band in part] for of_block in waiting)
            yield _BlockRun(file, run[0][0], tuple(col for _, col in run), part, chosen)
