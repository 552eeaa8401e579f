"""Blocks of COGs for many places at once: each block is fetched and decoded once, and goes to all places on it.

Blocks are taken in the order in which they lie on the map. A place's buffers are made when its first block arrives and
handed over when its last one has, so that memory holds the places along the front of the sweep, not all of them.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rs_embed.providers.archive import Scene
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.http import FetchError, RangeReader, SasTokens, new_client
from rs_embed.providers.raster import BlockGrid, IndexArray, by_themselves
from rs_embed.providers.stac.cog import Cog, open_cog, read_blocks, read_dark_end
from rs_embed.providers.stac.offsets import DarkEnd

_TOGETHER = 4
"""Blocks of one request, where they follow one another in the file."""
_POLL_S = 0.01


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
    scenes: Sequence[Scene]
    """Newest first."""
    tags: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Scale and offset tags of each scene's first band."""
    faults: dict[int, str] = field(default_factory=dict)
    """What could not be read of a scene."""
    layers: dict[tuple[int, int], Layer] = field(default_factory=dict)
    """What was read, by scene and band."""
    waiting: int = 0
    """Headers and blocks that are still to come."""

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
class _Run:
    """Blocks of one file side by side, read with one request."""

    cog: Cog
    row: int
    cols: tuple[int, ...]
    targets: tuple[tuple[_Target, ...], ...]
    """For each block the places that wait for it."""


_Order = tuple[float, float, float, int]
"""North to south, then west to east; then as they were queued."""
_Queue = asyncio.PriorityQueue[tuple[_Order, "_Run | None"]]


class BlockReader:
    """One sweep over the blocks that some places need; iterate over it for the places as they are complete.

    Args:
        places: what to read.
        in_flight: requests at a time.
        tokens: for files that want them.
        dark_ends: files whose overview is looked at too, None where it is not known yet; it is filled in.
    """

    def __init__(
        self,
        places: Sequence[ReadPlace],
        *,
        in_flight: int,
        tokens: SasTokens | None = None,
        dark_ends: MutableMapping[str, DarkEnd | None] | None = None,
    ) -> None:
        self._places = places
        self._in_flight = in_flight
        self._tokens = tokens
        self._dark_ends = {} if dark_ends is None else dark_ends
        self._done: queue.Queue[ReadPlace | BaseException | None] = queue.Queue(maxsize=2 * in_flight)
        self._stop = threading.Event()
        self._numbers = count()

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
        """Headers are asked for first; the blocks of a file follow as soon as its header is there."""
        runs: _Queue = asyncio.PriorityQueue()
        targets = self._targets_by_file()
        for place in self._places:
            if place.waiting == 0:
                await self._hand_over(place)
        async with new_client() as client:
            reader = RangeReader(client, asyncio.Semaphore(self._in_flight), self._tokens)
            workers = self._in_flight + (os.cpu_count() or 1)
            working = [asyncio.create_task(self._work(runs, reader)) for _ in range(workers)]
            await asyncio.gather(*(self._open(url, found, runs, reader) for url, found in targets.items()))
            for number, _ in enumerate(working):
                runs.put_nowait(((float("inf"), 0.0, 0.0, number), None))
            await asyncio.gather(*working)

    def _targets_by_file(self) -> dict[str, list[_Target]]:
        """Which places wait for which file; a scene without a band of its own is faulty from the start."""
        found: dict[str, list[_Target]] = defaultdict(list)
        for place in self._places:
            for number, scene in enumerate(place.scenes):
                missing = next((band for band in place.bands(number) if band not in scene.files), None)
                if missing is not None:
                    place.faults[number] = f"it has no band {missing}"
                    continue
                for index, band in enumerate(place.bands(number)):
                    file = scene.files[band]
                    found[file.path].append(_Target(place, number, index, file.index - 1))
                    place.waiting += 1
        return found

    async def _open(self, url: str, targets: Sequence[_Target], runs: _Queue, reader: RangeReader) -> None:
        """Read a file's header, and queue the blocks that its places need."""
        if self._stop.is_set():
            return
        try:
            look = url in self._dark_ends and self._dark_ends[url] is None
            cog = await open_cog(reader, url, with_overview=look)
        except FetchError as error:
            for target in targets:
                target.place.give_up(target.scene, str(error))
        else:
            for target in targets:
                if target.index == 0:
                    target.place.tags[target.scene] = (cog.scale, cog.offset)
            for run in _runs(cog, targets):
                runs.put_nowait(((*_map_order(run), next(self._numbers)), run))
            if look:
                self._dark_ends[url] = await read_dark_end(cog, reader)
        for target in targets:
            await self._one_less(target.place)

    async def _work(self, runs: _Queue, reader: RangeReader) -> None:
        while not self._stop.is_set():
            _, run = await runs.get()
            if run is None:
                return
            wanted = any(target.scene not in target.place.faults for block in run.targets for target in block)
            blocks = await read_blocks(run.cog, reader, run.row, run.cols) if wanted else []
            for col, values, waiting in zip(run.cols, blocks, run.targets, strict=False):
                _give(run, col, values, waiting)
            for target in (target for block in run.targets for target in block):
                await self._one_less(target.place)

    async def _one_less(self, place: ReadPlace) -> None:
        place.waiting -= 1
        if place.waiting == 0:
            await self._hand_over(place)

    async def _hand_over(self, place: ReadPlace) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._done.put_nowait(place)
                return
            await asyncio.sleep(_POLL_S)


def _runs(cog: Cog, targets: Sequence[_Target]) -> Iterator[_Run]:
    """The blocks of a file that its places need, those that follow one another together."""
    needed: dict[tuple[int, int], list[_Target]] = defaultdict(list)
    for target in targets:
        for block in cog.grid.blocks_under(target.place.request.geobox):
            needed[block].append(target)
            target.place.waiting += 1
    run: list[tuple[int, int]] = []
    for row, col in sorted(needed):
        if run and not (run[-1] == (row, col - 1) and len(run) < _TOGETHER and cog.follow(*run[-1])):
            yield _run(cog, run, needed)
            run = []
        run.append((row, col))
    if run:
        yield _run(cog, run, needed)


def _run(cog: Cog, blocks: Sequence[tuple[int, int]], needed: Mapping[tuple[int, int], Sequence[_Target]]) -> _Run:
    return _Run(cog, blocks[0][0], tuple(col for _, col in blocks), tuple(tuple(needed[block]) for block in blocks))


def _map_order(run: _Run) -> tuple[float, float, float]:
    grid = run.cog.grid
    x, y = grid.transform * (run.cols[0] * grid.block_width, run.row * grid.block_height)
    return float(grid.epsg), -y, x


def _give(run: _Run, col: int, values: npt.NDArray[np.generic] | FetchError, waiting: Sequence[_Target]) -> None:
    """One block to the places that wait for it, or the reason why their scene cannot be read."""
    for target in waiting:
        if target.scene in target.place.faults:
            continue
        if isinstance(values, FetchError):
            target.place.give_up(target.scene, str(values))
        else:
            _scatter(target, run.cog, run.row, col, values)


def _scatter(target: _Target, cog: Cog, row: int, col: int, values: npt.NDArray[np.generic]) -> None:
    """One block's pixels to one place."""
    where, rows, cols = _window(target.place.request.geobox, cog.grid, row, col)
    nodata = 0.0 if cog.nodata is None else cog.nodata
    layer = target.place.layer(target.scene, target.index, values.dtype, nodata)
    layer.values[where] = values[target.band][rows, cols]


def _window(
    geobox: GeoBox, grid: BlockGrid, row: int, col: int
) -> tuple[tuple[IndexArray, ...], IndexArray, IndexArray]:
    """Target pixels under a block, and the block's rows and columns for them."""
    rows, cols = grid.pixels_under(geobox)
    top, left = row * grid.block_height, col * grid.block_width
    bottom, right = min(top + grid.block_height, grid.height), min(left + grid.block_width, grid.width)
    in_rows, in_cols = (rows >= top) & (rows < bottom), (cols >= left) & (cols < right)
    if by_themselves(rows, cols):
        y, x = np.flatnonzero(in_rows), np.flatnonzero(in_cols)
        return np.ix_(y, x), rows[y] - top, cols[:, x] - left
    where = np.nonzero(in_rows & in_cols)
    return where, rows[where] - top, cols[where] - left
