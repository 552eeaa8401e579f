"""What a provider is: it takes a batch of requests and yields patches as they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from odc.geo.geobox import GeoBox

from rs_embed.errors import ProviderError
from rs_embed.patch import Patch
from rs_embed.specs import SensorSpec, TemporalSpec


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """Imagery of one grid in one time range."""

    geobox: GeoBox
    temporal: TemporalSpec
    sensor: SensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """What a fetch would read, known before any pixel is."""

    places: int
    scenes: int
    """Scenes to read, each place's own counted."""
    read_bytes: int
    """Uncompressed bytes of the pixels that the places cover."""
    places_without_scene: tuple[int, ...] = ()
    """Positions of requests that no scene meets."""


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


def fetch_in_threads(
    requests: Sequence[PatchRequest], fetch_one: Callable[[PatchRequest], Patch], workers: int
) -> Iterator[tuple[int, Patch | ProviderError]]:
    """Run `fetch_one` on every request, at most `workers` at a time and as many finished ones waiting.

    The threads are daemons: Ctrl-C ends the program without waiting for reads in flight. Closing the
    iterator lets each thread finish what it reads and take no more.
    """
    finished: queue.Queue[tuple[int, Patch | BaseException]] = queue.Queue()
    waiting = threading.Semaphore(2 * workers)
    positions = iter(range(len(requests)))
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while waiting.acquire() and not stop.is_set():
            with lock:
                position = next(positions, None)
            if position is None:
                return
            try:
                finished.put((position, fetch_one(requests[position])))
            except BaseException as error:  # noqa: BLE001  (handed to the consumer, which raises it)
                finished.put((position, error))

    try:
        for _ in range(min(workers, len(requests))):
            threading.Thread(target=work, name="rs-embed-fetch", daemon=True).start()
        for _ in requests:
            position, result = finished.get()
            waiting.release()
            if isinstance(result, BaseException) and not isinstance(result, ProviderError):
                raise result  # a defect, not a place without imagery
            yield position, result
    finally:
        stop.set()
        for _ in range(workers):
            waiting.release()
