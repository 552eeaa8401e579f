"""What a provider is: it takes a batch of requests and yields patches as they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from rs_embed.errors import ProviderError
from rs_embed.patch import Patch
from rs_embed.specs import SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

T = TypeVar("T")

_IN_FLIGHT_BYTES = 1 << 30
"""Patches on their way to the model, float32; a place of 4 km has 2 MB, the largest allowed 805 MB."""


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """Imagery of one grid in one time range."""

    geobox: GeoBox
    temporal: TemporalSpec
    sensor: SensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """What a fetch would read, known before any pixel is."""

    scenes_of: tuple[int, ...]
    """Scenes to read for each request."""
    covered: tuple[float, ...]
    """Share of each place that lies under their footprints, 0…1."""
    read_bytes: int
    """Over the network, or from disk."""
    blocks: int = 0
    """Blocks of files to fetch, each once; 0 where nothing is fetched by blocks."""
    requests: int = 0
    """Requests for pixels, at most."""

    @property
    def places(self) -> int:
        """How many there are."""
        return len(self.scenes_of)

    @property
    def scenes(self) -> int:
        """Scenes to read, each place's own counted."""
        return sum(self.scenes_of)

    @property
    def places_without_scene(self) -> tuple[int, ...]:
        """Positions of requests that no scene meets."""
        return tuple(i for i, n in enumerate(self.scenes_of) if n == 0)


Pixels = npt.NDArray[np.generic]
Pixeled = Patch | Pixels | ProviderError
Arrivals = Iterator[tuple[int, Pixeled]]
"""Positions of requests and what came for them, in any order."""


@runtime_checkable
class Provider(Protocol):
    """A source of imagery. Any object with these three will do as `backend=`."""

    @property
    def name(self) -> str:
        """How metadata and errors call it."""
        ...

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield each request's position once, in any order, with its patch or why there is none."""
        ...

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Say what `fetch` would read, without reading a pixel."""
        ...


def from_provider(provider: Provider, requests: Sequence[PatchRequest]) -> Arrivals:
    """What a provider yields, each position once; a position that it forgets is its error."""
    missing = set(range(len(requests)))
    for position, result in provider.fetch(requests):
        if position in missing:
            missing.remove(position)
            yield position, result
    for position in sorted(missing):
        yield position, ProviderError(f"the provider {provider.name!r} returned nothing for place {position}")


def fetch_in_threads(
    requests: Sequence[PatchRequest], fetch_one: Callable[[PatchRequest], Patch], workers: int
) -> Iterator[tuple[int, Patch | ProviderError]]:
    """Run `fetch_one` on every request, at most `workers` at a time and as many finished ones waiting."""
    sizes = [r.geobox.shape[0] * r.geobox.shape[1] * len(r.sensor.bands) * 4 for r in requests]
    return in_threads(sizes, lambda i: fetch_one(requests[i]), workers)


def in_threads(sizes: Sequence[int], work: Callable[[int], T], workers: int) -> Iterator[tuple[int, T | ProviderError]]:
    """Run `work` on the position of every size, and yield what it gives or its ProviderError, in any order.

    The threads are daemons: Ctrl-C ends the program without waiting for reads in flight. Closing the
    iterator lets each thread finish what it reads and take no more.

    Args:
        sizes: bytes of each result; there is room for some, so that memory is bounded.
        work: what to do.
        workers: at most so many at a time, and as many finished ones waiting.
    """
    finished: queue.Queue[tuple[int, T | BaseException]] = queue.Queue()
    room = _Room(2 * workers, _IN_FLIGHT_BYTES)
    positions = iter(range(len(sizes)))
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:  # held while waiting for room, so that places start in their order
                position = next(positions, None)
                if position is None or not room.enter(sizes[position]):
                    return
            try:
                finished.put((position, work(position)))
            except BaseException as error:  # noqa: BLE001  (handed to the consumer, which raises it)
                finished.put((position, error))

    try:
        for _ in range(min(workers, len(sizes))):
            threading.Thread(target=run, name="rs-embed-fetch", daemon=True).start()
        for _ in sizes:
            position, result = finished.get()
            room.leave(sizes[position])
            if isinstance(result, BaseException) and not isinstance(result, ProviderError):
                raise result  # a defect, not a place without imagery
            yield position, result
    finally:
        room.close()


class _Room:
    """How many patches and bytes may be in memory at once; one patch always fits, however large."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._count = self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, size: int) -> bool:
        """Wait until there is room; False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size))
            self._count, self._bytes = self._count + 1, self._bytes + size
            return not self._closed

    def leave(self, size: int) -> None:
        with self._changed:
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return self._count == 0 or (self._count < self._limit and self._bytes + size <= self._limit_bytes)
