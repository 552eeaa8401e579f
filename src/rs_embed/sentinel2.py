"""Sentinel-2 L2A: bands, scene classes, product names, and the DN offset of 2022.

Source: Sentinel-2 Products Specification Document; https://sentiwiki.copernicus.eu/web/s2-processing
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

HARMONIZED_COLLECTION = "COPERNICUS/S2_SR_HARMONIZED"
COLLECTIONS = (HARMONIZED_COLLECTION, "COPERNICUS/S2_SR", "sentinel-2-l2a", "sentinel-2-c1-l2a")
"""Names of the product Sentinel-2 L2A; each backend maps them to its collection."""
L2A_COLLECTION, L1C_COLLECTION = "sentinel-2-l2a", "sentinel-2-l1c"

RGB_BANDS = ("B4", "B3", "B2")
REFLECTANCE_DN = 10_000.0
"""DN of reflectance 1."""

COMMON_NAMES = (
    {"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red"}
    | {"B5": "rededge1", "B6": "rededge2", "B7": "rededge3"}
    | {"B8": "nir", "B8A": "nir08", "B9": "nir09", "B11": "swir16", "B12": "swir22", "SCL": "scl"}
)
"""Earth Engine's band name to the asset key that Earth Search uses."""

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
_TOOLBOX_BASELINE = "9999"  # products made with the Sen2Cor toolbox: it says nothing of the offset
_BAND_IN_TEXT = re.compile(r"(?:^|[_.\-, (])(B\d{1,2}A?|SCL|SCENECLASSIFICATION)(?=[_.\-, )]|$)", re.IGNORECASE)

Level = Literal["L1C", "L2A"]


def canonical_band(name: str) -> str | None:
    """Return `"B4"` for `"B04"`, `"b4"` or `"red"`; None when Sentinel-2 has no such band."""
    return _ALIASES.get(name.strip().lower())


def band_in_text(text: str) -> str | None:
    """Return the band that a description or a variable's name states, such as `"B4"` for `"S2-L2A-B04_10m"`."""
    match = _BAND_IN_TEXT.search(text)
    return canonical_band(text) or (canonical_band(match[1].replace("SCENECLASSIFICATION", "SCL")) if match else None)


def is_l1c(collection: str | None) -> bool:
    """Return True for the name of a collection of Sentinel-2 L1C, reflectance above the atmosphere."""
    return collection is not None and collection.upper().endswith("L1C")


def asset_keys(band: str) -> tuple[str, ...]:
    """Return the names that catalogs give the asset of a band, such as `("red", "B04", "B4", "b4")`."""
    return tuple(dict.fromkeys((COMMON_NAMES[band], re.sub(r"^B(\d)$", r"B0\1", band), band, band.lower())))


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
class Radiometry:
    """Conversion of stored values to DN: `DN = value * gain + offset`, DN = 10,000 × reflectance."""

    gain: float
    offset: float | None
    """DN added to every valid pixel; None when unknown (then nothing is added, and a warning says so)."""
    reason: str

    @classmethod
    def of_reflectance(cls, source: str, scale: float, offset: float) -> Radiometry:
        """Return the conversion of values that become reflectance by a scale and an offset."""
        gain, dn_offset = (round(v * REFLECTANCE_DN, 6) for v in (scale, offset))
        return cls(gain, dn_offset, f"{source} scale {scale:g}, offset {offset:g}")


def radiometry(
    *,
    collection: str | None = None,
    properties: Mapping[str, Any] | None = None,
    raster_bands: Sequence[Mapping[str, Any]] = (),
    names: Sequence[str] = (),
    file_scale: float = 1.0,
    file_offset: float = 0.0,
    acquired: datetime | None = None,
) -> Radiometry:
    """Decide the DN offset of one scene from its item and file; the first rule that applies wins.

    `names` may hold the product's (item id, product URI, file name); a file without tags has scale 1 and offset 0.
    """
    facts = properties or {}
    if collection is not None and collection.upper().endswith("_HARMONIZED"):
        return Radiometry(1.0, 0.0, "the collection is harmonised")
    if facts.get("earthsearch:boa_offset_applied") is True:
        return Radiometry(1.0, 0.0, "earthsearch:boa_offset_applied is true")
    if raster_bands and ("offset" in raster_bands[0] or "scale" in raster_bands[0]):
        scale, offset = raster_bands[0].get("scale", 1.0 / REFLECTANCE_DN), raster_bands[0].get("offset", 0.0)
        return Radiometry.of_reflectance("raster:bands", float(scale), float(offset))
    baseline = processing_baseline(facts, names)
    if baseline is not None:
        shifted = baseline >= _OFFSET_BASELINE
        return Radiometry(1.0, OFFSET_2022 if shifted else 0.0, f"processing baseline {baseline}")
    if (file_scale, file_offset) != (1.0, 0.0):
        return Radiometry.of_reflectance("file", file_scale, file_offset)
    if acquired is not None and acquired < _OFFSET_DATE:
        return Radiometry(1.0, 0.0, "acquired before 2022-01-25")
    return Radiometry(1.0, None, "unknown: no flag, no raster:bands, no processing baseline, no tags in the file")


def may_carry_offset(properties: Mapping[str, Any], names: Sequence[str], acquired: datetime) -> bool:
    """Return True if a scene's product may hold the +1000 DN of 2022."""
    baseline = processing_baseline(properties, names)
    return acquired >= _OFFSET_DATE if baseline is None else baseline >= _OFFSET_BASELINE


def processing_baseline(properties: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the baseline, such as `"05.10"`, from the item's properties or a product name."""
    for key in ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline"):
        value = str(properties.get(key, ""))
        if re.fullmatch(r"\d{2}\.\d{2}", value):
            return value
    products = filter(None, map(parse_product_name, names))
    return next((product.baseline for product in products if product.baseline is not None), None)
