"""Sentinel-2 L2A: bands, scene classes, product names, and the DN offset of 2022.

Source: Sentinel-2 Products Specification Document; https://sentiwiki.copernicus.eu/web/s2-processing
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

from rs_embed.errors import ProviderError

HARMONIZED_COLLECTION = "COPERNICUS/S2_SR_HARMONIZED"
COLLECTIONS = (HARMONIZED_COLLECTION, "COPERNICUS/S2_SR", "sentinel-2-l2a", "sentinel-2-c1-l2a")
"""Names of the product Sentinel-2 L2A; each backend maps them to its collection."""
L2A_COLLECTION, L1C_COLLECTION = "sentinel-2-l2a", "sentinel-2-l1c"

RGB_BANDS = ("B4", "B3", "B2")
REFLECTANCE_DN = 10_000.0
"""DN of reflectance 1."""
LARGEST_DN = 65_535.0
_LARGEST_REFLECTANCE = 10.0  # above that of any DN; no scene of DN stays below it

COMMON_NAMES = (
    {"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red"}
    | {"B5": "rededge1", "B6": "rededge2", "B7": "rededge3"}
    | {"B8": "nir", "B8A": "nir08", "B9": "nir09", "B11": "swir16", "B12": "swir22", "SCL": "scl"}
)
"""Earth Engine's band name to the asset key that Earth Search uses."""

NATIVE_M = dict.fromkeys(("B2", "B3", "B4", "B8"), 10) | dict.fromkeys(("B1", "B9"), 60)
"""Ground resolution of the sensor by band, in metres, where it is not 20."""

CLEAR_SCL = (2, 4, 5, 6, 7, 11)
"""Scene classes in which the ground is seen: dark, vegetation, bare, water, unclassified, snow.

Not clear: 0 no data, 1 saturated, 3 cloud shadow, 8 and 9 cloud, 10 cirrus.
"""

_OFFSET_BASELINE = "04.00"
_OFFSET_DATE = datetime(2022, 1, 25, tzinfo=UTC)
OFFSET_2022 = -1000.0
_PRODUCT = re.compile(
    r"(?P<mission>S2[A-Z])_MSI(?P<level>L[12][AC])_(?P<start>\d{8}T\d{4,6})(?:_N(?P<baseline>\d{4}))?", re.IGNORECASE
)
_SHORT_PRODUCT = re.compile(
    r"(?P<mission>S2[A-Z])_\d{1,2}[A-Z]{3}_(?P<start>\d{8})_\d+_(?P<level>L2A|L1C)", re.IGNORECASE
)
_LONG_PRODUCT = re.compile(  # until 2016; the first time in it is that of its making
    r"(?P<mission>S2[A-Z])_(?:USER|OPER)_PRD_MSI(?P<level>L[12][AC])_\S*?_V(?P<start>\d{8}T\d{6})", re.IGNORECASE
)
_TOOLBOX_BASELINE, _TOOLBOX_VERSION = "9999", "99.99"  # of the Sen2Cor toolbox: it says nothing of the offset
_BAND_IN_TEXT = re.compile(  # at its end or before a blank: B04_std is no band
    r"(?:^|[_.\-, (])(B\d{1,2}A?|SCL|SCENECLASSIFICATION)(?:_(?:10|20|60)m)?(?=[, )]|$)", re.IGNORECASE
)

Level = Literal["L1C", "L2A"]


def canonical_band(name: str) -> str | None:
    """Return `"B4"` for `"B04"`, `"b4"` or `"red"`; None when Sentinel-2 has no such band."""
    return _ALIASES.get(name.strip().lower())


def band_in_text(text: str) -> str | None:
    """Return the band that a description or a variable's name states, such as `"B4"` for `"S2-L2A-B04_10m"`."""
    match = _BAND_IN_TEXT.search(text)
    return canonical_band(text) or (
        canonical_band(match[1].upper().replace("SCENECLASSIFICATION", "SCL")) if match else None
    )


def is_l1c(collection: str | None) -> bool:
    """Return True for the name of a collection of Sentinel-2 L1C, reflectance above the atmosphere."""
    return collection is not None and collection.upper().endswith("L1C")


def asset_keys(band: str) -> tuple[str, ...]:
    """Return the names that catalogs give the asset of a band, such as `("red", "B04", "B4", "b4", "B04_10m", …)`."""
    padded = re.sub(r"^B(\d)$", r"B0\1", band)
    resampled = (f"{padded}_{resolution}m" for resolution in (10, 20, 60))
    return tuple(dict.fromkeys((COMMON_NAMES[band], padded, band, band.lower(), *resampled)))


_ALIASES = {key.lower(): band for band in COMMON_NAMES for key in asset_keys(band)}


@dataclass(frozen=True, slots=True)
class ProductName:
    """Facts in the name of a Sentinel-2 product."""

    acquired: datetime
    """Start of sensing, UTC."""
    baseline: str | None
    """Processing baseline, `"05.10"`, where the name has one."""
    level: Level


@lru_cache(maxsize=4096)
def parse_product_name(name: str) -> ProductName | None:
    """Read `S2A_MSIL2A_20220601T…_N0400_…`, `S2A_USER_PRD_MSIL2A_…` or Earth Search's `S2A_29RKH_20200219_0_L2A`."""
    match = _PRODUCT.search(name) or _SHORT_PRODUCT.search(name) or _LONG_PRODUCT.search(name)
    if match is None:
        return None
    digits = match.groupdict().get("baseline")
    if digits == _TOOLBOX_BASELINE:
        digits = None
    level: Level = "L1C" if match["level"].upper() == "L1C" else "L2A"
    for width, form in ((15, "%Y%m%dT%H%M%S"), (8, "%Y%m%d")):
        try:
            acquired = datetime.strptime(match["start"][:width], form).replace(tzinfo=UTC)
        except ValueError:
            continue  # BigEarthNet has names such as 20170924T93020: the day is still there
        return ProductName(acquired, f"{digits[:2]}.{digits[2:]}" if digits else None, level)
    return None


@dataclass(frozen=True, slots=True)
class StatedScale:
    """Scale and offset that an item or a product states for one band: reflectance = value * scale + offset.

    The values are as they were found: None where null or absent, and only numbers are accepted.
    """

    source: str
    scale: object = None
    offset: object = None

    @property
    def numbers(self) -> tuple[float | None, float | None]:
        """Scale and offset, both None where they are 1 and 0: many tools write that when they know nothing."""
        scale, offset = self._number("scale"), self._number("offset")
        if scale is not None and scale <= 0:
            raise ProviderError(f"the {self.source} states the scale {scale:g}: correct it, or leave the scene out")
        return (None, None) if scale == 1.0 and not offset else (scale, offset)

    def _number(self, name: Literal["scale", "offset"]) -> float | None:
        value: object = getattr(self, name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ProviderError(
                f"the {self.source} states the {name} {value!r}, which is no number: correct it, or leave the scene out"
            )
        return float(value)


@dataclass(frozen=True, slots=True)
class Radiometry:
    """Conversion of one band's stored values to DN: `DN = value * gain + offset`, DN = 10,000 × reflectance."""

    gain: float
    offset: float | None
    """DN added to every valid pixel; None when unknown (then nothing is added, and a warning says so)."""
    reason: str


def radiometry(
    *,
    collection: str | None = None,
    properties: Mapping[str, Any] | None = None,
    stated: StatedScale | None = None,
    names: Sequence[str] = (),
    file_scale: float = 1.0,
    file_offset: float = 0.0,
    largest_float: float | None = None,
    acquired: datetime | None = None,
) -> Radiometry:
    """Decide scale and DN offset of one band from its item and file; for each the first rule that applies wins.

    `names` may hold the product's (item id, product URI, file name); a file without tags has scale 1 and offset 0.
    `largest_float` is the largest value of a scene that is stored in floats. A scale or offset that is no number is a
    ProviderError. `docs/catalogs.md` lists the rules, and what they give for each catalog.
    """
    facts = properties or {}
    tags = StatedScale("file", file_scale, file_offset)
    scale, offset = (None, None) if stated is None else stated.numbers
    tag_scale, tag_offset = tags.numbers
    known_scale = tag_scale if scale is None else scale
    is_reflectance = largest_float is not None and largest_float <= _LARGEST_REFLECTANCE and known_scale in (None, 1.0)
    gain, suffix = 1.0 if known_scale is None else round(known_scale * REFLECTANCE_DN, 6), ""
    if is_reflectance:
        gain, suffix = REFLECTANCE_DN, f"; floats up to {largest_float:.3g} are reflectance"
    elif gain != 1.0:
        suffix = f"; {tags.source if scale is None or stated is None else stated.source} scale {known_scale:g}"

    if collection is not None and collection.upper().endswith("_HARMONIZED"):
        return Radiometry(gain, 0.0, "the collection is harmonised" + suffix)
    for flag in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        if facts.get(flag) is True:
            return Radiometry(gain, 0.0, f"{flag} is true" + suffix)
    if stated is not None and offset is not None:
        return Radiometry(gain, *_dn_offset(stated.source, scale, offset))
    if is_reflectance:
        return Radiometry(gain, (tag_offset or 0.0) * REFLECTANCE_DN, "no offset is stated" + suffix)
    baseline = processing_baseline(facts, names)
    if baseline is not None:
        dn_offset = OFFSET_2022 if baseline >= _OFFSET_BASELINE else 0.0
        return Radiometry(gain, dn_offset, f"processing baseline {baseline}" + suffix)
    if tag_offset is not None:
        return Radiometry(gain, *_dn_offset(tags.source, tag_scale, tag_offset))
    if acquired is not None and acquired < _OFFSET_DATE:
        return Radiometry(gain, 0.0, "acquired before 2022-01-25" + suffix)
    reason = "unknown: no flag, no offset of the item, no processing baseline, no tags in the file"
    return Radiometry(gain, None, reason + suffix)


def _dn_offset(source: str, scale: float | None, offset: float) -> tuple[float, str]:
    """Return an offset in DN, and its reason."""
    known_scale = "" if scale is None else f"scale {scale:g}, "
    return round(offset * REFLECTANCE_DN, 6), f"{source} {known_scale}offset {offset:g}"


def may_carry_offset(properties: Mapping[str, Any], names: Sequence[str], acquired: datetime) -> bool:
    """Return True if a scene's product may hold the +1000 DN of 2022."""
    baseline = processing_baseline(properties, names)
    return acquired >= _OFFSET_DATE if baseline is None else baseline >= _OFFSET_BASELINE


def processing_baseline(properties: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the baseline, such as `"05.10"`, from the item's properties or a product name."""
    for key in ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline"):
        value = properties.get(key)
        text = f"{value:05.2f}" if isinstance(value, float) else str(value)
        if re.fullmatch(r"\d{2}\.\d{2}", text) and text != _TOOLBOX_VERSION:
            return text
    products = filter(None, map(parse_product_name, names))
    return next((product.baseline for product in products if product.baseline is not None), None)
