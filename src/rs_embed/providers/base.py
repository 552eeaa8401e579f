"""The provider protocol: a provider takes a batch of requests and yields patches as they arrive."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from rs_embed.arrays import AnyArray
from rs_embed.background import map_in_background
from rs_embed.errors import ProviderError
from rs_embed.patch import Patch
from rs_embed.specs import OnLostScene, SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

S = TypeVar("S")
T = TypeVar("T")

_IN_FLIGHT_BYTES = 1 << 30  # limit on patches (float32) in memory: a place of 4 km has 2 MB, the largest 805 MB


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """Imagery of one grid in one time range."""

    geobox: GeoBox
    temporal: TemporalSpec
    sensor: SensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPlan:
    """Cost of a fetch, known before any pixel is read."""

    scenes_of: tuple[int, ...]  # number of scenes to read for each request
    covered: tuple[float, ...]  # share of each place that lies under the footprints of its scenes, 0…1
    read_bytes: int  # over the network, or from disk
    blocks: int = 0  # blocks of files to fetch, each once; 0 where nothing is fetched by blocks
    requests: int = 0  # requests for pixels, at most

    @property
    def places(self) -> int:
        """Number of places."""
        return len(self.scenes_of)

    @property
    def scenes(self) -> int:
        """Number of scenes to read; a scene of two places counts twice."""
        return sum(self.scenes_of)

    @property
    def places_without_scene(self) -> tuple[int, ...]:
        """Positions of the requests that no scene meets."""
        return tuple(i for i, n in enumerate(self.scenes_of) if n == 0)


FetchResult = Patch | AnyArray | ProviderError  # a provider's patch, the user's own pixels, or why there are none
FetchResults = Iterator[tuple[int, FetchResult]]  # positions of requests with their results, in any order


@runtime_checkable
class Provider(Protocol):
    """A source of imagery. Any object with these three members can be passed as `backend=`."""

    @property
    def name(self) -> str:
        """Name in metadata and errors."""
        ...

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield each request's position once, in any order, with its patch or the reason why there is none.

        Args:
            requests: grid, time range and sensor of each place.
        """
        ...

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Return what `fetch` would read, without reading a pixel.

        Args:
            requests: grid, time range and sensor of each place.
        """
        ...


def fetch_patches(
    provider: Provider, requests: Sequence[PatchRequest], on_lost_scene: OnLostScene = "keep"
) -> FetchResults:
    """Yield a provider's results, each position once; a position that the provider leaves out becomes an error.

    With `"fail"` a patch without the scenes that could not be read becomes an error too.
    """
    missing = set(range(len(requests)))
    for position, result in provider.fetch(requests):
        if position in missing:
            missing.remove(position)
            if on_lost_scene == "fail" and isinstance(result, Patch) and result.lost:
                yield position, ProviderError(f"{result.lost_text}; ask again")
            else:
                yield position, result
    for position in sorted(missing):
        yield position, ProviderError(f"the provider {provider.name!r} returned nothing for place {position}")


def in_threads(
    items: Sequence[S], work: Callable[[S], T], workers: int, size_of: Callable[[S], int] = lambda item: 0
) -> Generator[tuple[int, T | ProviderError], None, None]:
    """Yield positions with results of `work` or ProviderErrors, in any order; `size_of` (bytes) bounds the memory."""

    def attempt(position: int) -> tuple[int, T | ProviderError]:
        try:
            return position, work(items[position])
        except ProviderError as error:
            return position, error

    return map_in_background(
        attempt,
        range(len(items)),
        workers=min(workers, len(items)),
        limit=2 * workers,
        size_of=lambda position: size_of(items[position]),
        limit_bytes=_IN_FLIGHT_BYTES,
    )
