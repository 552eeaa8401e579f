"""Specs of a request: place, time range, sensor, output. They are frozen, JSON-ready, and checked when built."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, cast

from rs_embed.errors import SpecError
from rs_embed.lonlat import Box, check_box, check_lonlat, check_utm, middle
from rs_embed.sentinel2 import COLLECTIONS, HARMONIZED_COLLECTION, RGB_BANDS, canonical_band, is_l1c

Composite = Literal["median", "mosaic"]
CloudMask = Literal["scl"]
Pooling = Literal["mean", "projected"]
OnLostScene = Literal["keep", "fail"]
"""Use a place's other scenes where one could not be read, or fail the place."""
InputPrep = Literal["resize", "tile"]
OutputMode = Literal["pooled", "grid"]
Every = Literal["month", "quarter", "year"]
VectorType = Literal["float32", "float16"]
Engine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class BBox:
    """Box in longitude and latitude, degrees; with `minlon` (its west) > `maxlon` (its east) it crosses 180°.

    Args:
        minlon: western edge.
        minlat: southern edge.
        maxlon: eastern edge.
        maxlat: northern edge.
        crs: "EPSG:4326", the only one that is taken.

    Raises:
        SpecError: for a box that is empty, reversed or beyond UTM's latitudes.

    Examples:
        >>> from rs_embed import BBox
        >>> BBox(13.5, 48.0, 14.0, 48.5).centre
        (13.75, 48.25)
    """

    minlon: float
    minlat: float
    maxlon: float
    maxlat: float
    crs: str = "EPSG:4326"

    def __post_init__(self) -> None:
        _set_numbers(self, "minlon", "minlat", "maxlon", "maxlat")
        check_lonlat(self.crs, (self.minlon, self.minlat), (self.maxlon, self.maxlat))
        check_utm(self.minlat, self.maxlat)
        check_box(self.bounds)

    @property
    def bounds(self) -> Box:
        """West, south, east and north; west > east where it crosses 180°."""
        return self.minlon, self.minlat, self.maxlon, self.maxlat

    @property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the middle, degrees."""
        return middle(self.bounds)


@dataclass(frozen=True, slots=True)
class PointBuffer:
    """Square with sides of `2 * buffer_m` ground metres, centred on a point.

    Args:
        lon: longitude of the centre, degrees.
        lat: latitude of the centre, degrees.
        buffer_m: half the side, ground metres.
        crs: "EPSG:4326", the only one that is taken.

    Raises:
        SpecError: for a point off the globe or beyond UTM's latitudes, or a buffer that is not positive.

    Examples:
        >>> from rs_embed import PointBuffer
        >>> PointBuffer(13.72, 48.22, buffer_m=600)  # 1,200 m a side
        PointBuffer(lon=13.72, lat=48.22, buffer_m=600.0, crs='EPSG:4326')
    """

    lon: float
    lat: float
    buffer_m: float
    crs: str = "EPSG:4326"

    def __post_init__(self) -> None:
        _set_numbers(self, "lon", "lat", "buffer_m")
        check_lonlat(self.crs, (self.lon, self.lat))
        check_utm(self.lat)
        if self.buffer_m <= 0:
            raise SpecError(f"buffer_m must be greater than 0 metres, got {self.buffer_m:g} (it is half the side)")

    @property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the point, degrees."""
        return self.lon, self.lat


Place = BBox | PointBuffer
BBoxLike = BBox | tuple[float, float, float, float]
"""A box to filter by, or its west, south, east, north in degrees, at any latitude."""


def bounds_of(bbox: BBoxLike) -> Box:
    """Return west, south, east and north of a box to filter by; a SpecError for what is no box."""
    if isinstance(bbox, BBox):
        return bbox.bounds
    try:
        west, south, east, north = map(float, bbox)
    except (TypeError, ValueError):
        raise SpecError(f"a box is W S E N in degrees, got {bbox!r}") from None
    if not all(map(math.isfinite, (west, south, east, north))):
        raise SpecError(f"the box {bbox!r} must be finite")
    check_lonlat("EPSG:4326", (west, south), (east, north))
    check_box((west, south, east, north))
    return west, south, east, north


@dataclass(frozen=True, slots=True)
class TemporalSpec:
    """Time range in UTC days; `TemporalSpec.range` and `TemporalSpec.year` build it.

    Args:
        mode: "range" or "year".
        start: first day, YYYY-MM-DD.
        end: day after the last.

    Raises:
        SpecError: for a text that is no day, or a range that is empty or reversed.

    Examples:
        >>> from rs_embed import TemporalSpec
        >>> summer = TemporalSpec.range("2022-06-01", "2022-09-01")
        >>> summer.start, summer.end  # the last day is 31 August
        ('2022-06-01', '2022-09-01')
    """

    mode: Literal["range", "year"]
    start: str
    end: str

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("range", "year"))
        first, last = parse_day("start", self.start), parse_day("end", self.end)
        if first >= last:
            fault = "is empty" if first == last else "is reversed"
            raise SpecError(
                f"the time range {first} to {last} {fault}: end is not included, so it must be later than start "
                f"(one day is range({first.isoformat()!r}, {(first + timedelta(days=1)).isoformat()!r}))"
            )
        object.__setattr__(self, "start", first.isoformat())
        object.__setattr__(self, "end", last.isoformat())

    @classmethod
    def range(cls, start: str | date, end: str | date) -> TemporalSpec:
        """Return the days from `start` to the day before `end`.

        Args:
            start: first day, a date or YYYY-MM-DD.
            end: day after the last.
        """
        return cls("range", cast(str, start), cast(str, end))  # dates become texts as they are checked

    @classmethod
    def year(cls, year: int) -> TemporalSpec:
        """Return one calendar year; `remoteclip_s2rgb` takes ranges only.

        Args:
            year: four digits, such as 2022.
        """
        if isinstance(year, bool) or not isinstance(year, int) or not 1 <= year <= 9998:
            raise SpecError(f"year must be a whole number such as 2022, got {year!r}")
        return cls("year", date(year, 1, 1).isoformat(), date(year + 1, 1, 1).isoformat())


@dataclass(frozen=True, slots=True)
class SensorSpec:
    """Imagery to fetch. Every backend honours every field or refuses it.

    Args:
        collection: product (Sentinel-2 L2A, by any catalog's name; "sentinel-2-l1c" for local L1C products), or
            "hf:<repo_or_path>" to override the checkpoint.
        bands: bands by any of their names, such as "B4", "B04" or "red"; the models take B4, B3, B2.
        scale_m: ground metres a pixel.
        cloudy_pct: highest cloud cover of a scene, per cent; cloudier scenes are left out.
        fill_value: DN of pixels that were not observed.
        composite: "median" of all scenes, or "mosaic", which takes the best scene of each pixel.
        cloud_mask: "scl" masks pixels that the scene classification calls cloud, shadow, saturated or empty.
        max_scenes: number of scenes, the least cloudy ones; None for all of the time range.
        check_input: inspect the imagery before it is embedded; the report is in `meta["input_checks"]`.
        check_raise: make issues that an inspection finds an error.
        check_save_dir: folder for a PNG of what was inspected.

    Raises:
        SpecError: for a field out of its range, with the value.

    Examples:
        >>> from rs_embed import SensorSpec
        >>> sensor = SensorSpec(cloudy_pct=20, cloud_mask="scl", max_scenes=5)
        >>> sensor.composite, sensor.scale_m
        ('median', 10.0)
    """

    collection: str = HARMONIZED_COLLECTION
    bands: tuple[str, ...] = RGB_BANDS
    scale_m: float = 10
    cloudy_pct: float = 30
    fill_value: float = 0.0
    composite: Composite = "median"
    cloud_mask: CloudMask | None = None
    max_scenes: int | None = None
    check_input: bool = False
    check_raise: bool = True
    check_save_dir: str | None = None

    def __post_init__(self) -> None:
        name = self.collection
        if not isinstance(name, str) or not name.strip() or name == "hf:":
            raise SpecError(f"collection must name a product or be 'hf:<repo_or_path>', got {name!r}")
        if not name.startswith("hf:") and name not in COLLECTIONS and not is_l1c(name):
            raise SpecError(
                f"collection {name!r} is not Sentinel-2 L2A; known names: {', '.join(COLLECTIONS)}, or a name that "
                "ends in L1C for local L1C products"
            )
        object.__setattr__(self, "bands", _bands(self.bands))
        _set_numbers(self, "scale_m", "cloudy_pct", "fill_value")
        if self.scale_m <= 0:
            raise SpecError(f"scale_m must be greater than 0 metres a pixel, got {self.scale_m:g}")
        if not 0 <= self.cloudy_pct <= 100:
            raise SpecError(f"cloudy_pct must lie in 0…100 per cent, got {self.cloudy_pct:g}")
        check_choice("composite", self.composite, ("median", "mosaic"))
        check_choice("cloud_mask", self.cloud_mask, (None, "scl"))
        n = self.max_scenes
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise SpecError(f"max_scenes must be None or a whole number of at least 1, got {n!r}")
        for name in ("check_input", "check_raise"):
            check_choice(name, getattr(self, name), (True, False))
        if self.check_save_dir is not None:
            object.__setattr__(self, "check_save_dir", os.fspath(self.check_save_dir))

    @property
    def checkpoint(self) -> str | None:
        """Checkpoint of a collection `"hf:…"`, without the prefix; None for a product."""
        return self.collection[3:] if self.collection.startswith("hf:") else None

    @property
    def product(self) -> str:
        """Imagery collection: `collection`, or the default where that names a checkpoint."""
        return HARMONIZED_COLLECTION if self.checkpoint is not None else self.collection


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """Kind of output; `OutputSpec.pooled` and `OutputSpec.grid` build it.

    Args:
        mode: "pooled" for a vector, "grid" for a ViT token grid.
        pooling: "mean" or "projected" for a vector; None for a grid.

    Raises:
        SpecError: for a value that is not among these.

    Examples:
        >>> from rs_embed import OutputSpec
        >>> OutputSpec.pooled("projected")  # the space that texts share
        OutputSpec(mode='pooled', pooling='projected')
    """

    mode: OutputMode
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        check_choice("output mode", self.mode, ("pooled", "grid"))
        if self.mode == "grid":
            check_choice("pooling of a grid", self.pooling, (None,))
        else:
            object.__setattr__(self, "pooling", "mean" if self.pooling is None else self.pooling)
            check_choice("pooling", self.pooling, ("mean", "projected"))

    @classmethod
    def pooled(cls, pooling: Pooling = "mean") -> OutputSpec:
        """Return a vector as the output.

        Args:
            pooling: "mean" of all tokens (768,), or "projected", the CLIP embedding (512,).
        """
        return cls("pooled", pooling)

    @classmethod
    def grid(cls) -> OutputSpec:
        """Return a grid of patch tokens on their footprints, (768, 7, 7) for ViT-B/32."""
        return cls("grid")


def _set_numbers(spec: object, *names: str) -> None:
    """Turn fields of a spec into floats, numpy scalars too, and refuse those that are no finite number."""
    for name in names:
        value = getattr(spec, name)
        number = getattr(value, "item", lambda value=value: value)()
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise SpecError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(number):
            raise SpecError(f"{name} must be finite, got {number}")
        object.__setattr__(spec, name, float(number))


def parse_day(name: str, value: object) -> date:
    """Return a day from a date or a text YYYY-MM-DD; a SpecError with its name for anything else."""
    text = value.isoformat() if isinstance(value, date) else value
    try:
        if isinstance(text, str) and len(text) == 10:
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise SpecError(f"{name} must be a day as YYYY-MM-DD, got {value!r}")


def _bands(bands: Sequence[str]) -> tuple[str, ...]:
    if isinstance(bands, str) or not isinstance(bands, Sequence) or not bands:
        raise SpecError(f"bands must be a sequence of Sentinel-2 band names such as {RGB_BANDS}, got {bands!r}")
    known = dict.fromkeys(name for b in bands if isinstance(b, str) and (name := canonical_band(b)))
    if len(known) != len(bands):
        raise SpecError(f"bands {tuple(bands)!r} holds an unknown or repeated Sentinel-2 band; RGB is {RGB_BANDS}")
    return tuple(known)


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise a SpecError unless a value is one of those allowed, of the same type."""
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        raise SpecError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


DEFAULT_SENSOR = SensorSpec()
"""Sentinel-2 RGB at 10 m a pixel, median of the scenes with at most 30 % cloud."""
DEFAULT_OUTPUT = OutputSpec.pooled()
