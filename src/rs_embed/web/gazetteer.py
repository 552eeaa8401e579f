"""Towns of the world with 5,000 inhabitants or more, from GeoNames: found by name, in a box, or near a point."""

from __future__ import annotations

import heapq
import lzma
import threading
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from pyproj import Geod

from rs_embed.lonlat import Box, meets

_ELLIPSOID = Geod(ellps="WGS84")
_DIRECTIONS = ("N", "NE", "E", "SE", "S", "SW", "W", "NW")
_AT_A_TIME = 64  # points that are compared with all towns in one product: 35 MB
Degrees = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Town:
    """One town; `country` and `region` are codes, and `region` is empty where a country numbers its regions."""

    name: str
    country: str
    region: str
    lat: float
    lon: float
    population: int


class Gazetteer:
    """Towns, the largest first, with their names in other languages: `Town`'s fields, then the names, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._fields = [line.split("\t") for line in lines]
        self._lats, self._lons = (np.array([float(f[column]) for f in self._fields]) for column in (3, 4))

    def __len__(self) -> int:
        return len(self._fields)

    def named(self, name: str, limit: int) -> list[Town]:
        """Return the towns whose name in some language begins with a text: those of just this name, then by size."""
        wanted, keys = plain(name), self._keys
        if not wanted:
            return []
        best: dict[int, bool] = {}
        for key, number in keys[bisect_left(keys, (wanted, -1)) :]:
            if not key.startswith(wanted):
                break
            best[number] = best.get(number, True) and key != wanted
        found = heapq.nsmallest(limit, best, key=lambda number: (best[number], number))
        return [self._town(number) for number in found]

    def within(self, box: Box, limit: int) -> list[Town]:
        """Return the largest towns in a box of west, south, east, north."""
        inside = meets(box, self._lons, self._lats, self._lons, self._lats)
        return [self._town(int(number)) for number in np.flatnonzero(inside)[:limit]]

    def near(self, lons: Sequence[float], lats: Sequence[float]) -> list[str | None]:
        """Return distance and direction from the nearest town for each point, such as `4.1 km NW of Tulln`."""
        if not self._fields:
            return [None] * len(lons)
        points = _on_sphere(np.asarray(lons, np.float64), np.asarray(lats, np.float64))
        parts = range(0, len(points), _AT_A_TIME)
        nearest = [int(n) for i in parts for n in (points[i : i + _AT_A_TIME] @ self._sphere.T).argmax(axis=1)]
        azimuths, _, metres = _ELLIPSOID.inv(self._lons[nearest], self._lats[nearest], lons, lats)
        return [_words(*each) for each in zip(metres, azimuths, (self._fields[n][0] for n in nearest), strict=True)]

    def _town(self, number: int) -> Town:
        name, country, region, _, _, population, _ = self._fields[number]
        lat, lon = float(self._lats[number]), float(self._lons[number])
        return Town(name, country, region, lat, lon, int(population))

    @cached_property
    def _sphere(self) -> Degrees:
        return _on_sphere(self._lons, self._lats)

    @cached_property
    def _keys(self) -> list[tuple[str, int]]:
        """Return all names as `plain` has them, sorted, each with the number of its town."""
        return sorted((plain(name), number) for number, fields in enumerate(self._fields) for name in _names(fields))


def plain(name: str) -> str:
    """Return a name in lower case, without accents and with single spaces."""
    name = " ".join(name.casefold().replace("-", " ").split())
    if name.isascii():
        return name
    return "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))


def gazetteer() -> Gazetteer:
    """Return the towns of this installation, read once (a second); none where it was built without them."""
    with _reading:
        return _read()


_reading = threading.Lock()


@lru_cache(maxsize=1)
def _read() -> Gazetteer:
    file = resources.files(__package__) / "page" / "vendor" / "towns.tsv.xz"
    return Gazetteer(lzma.decompress(file.read_bytes()).decode().splitlines() if file.is_file() else [])


def _names(fields: Sequence[str]) -> Iterator[str]:
    yield fields[0]
    if fields[-1]:
        yield from fields[-1].split("|")


def _on_sphere(lons: Degrees, lats: Degrees) -> Degrees:
    """Return points (n, 3) on the unit sphere, where the nearest has the largest product."""
    x, y = np.radians(lons), np.radians(lats)
    return np.column_stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)])


def _words(metres: float, azimuth: float, town: str) -> str:
    km = metres / 1000
    direction = _DIRECTIONS[round(azimuth / 45) % 8]
    return f"{km:.{km < 99.95:d}f} km {direction} of {town}"
