"""Metadata of a SAFE product: `MTD_MSIL2A.xml` and a granule's `MTD_TL.xml`, under their names of all years."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from xml.etree import ElementTree

from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from rs_embed.errors import ProviderError
from rs_embed.outlines import split
from rs_embed.sentinel2 import Level

XML_LIMIT_BYTES = 16 << 20
_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")  # by `band_id`
_QUANTIFICATION = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
_OFFSET_BASELINE = "04.00"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeMetadata:
    """Facts of one granule; None where no file states them."""

    level: Level | None = None
    acquired: datetime | None = None
    sensed: datetime | None = None  # of the tile, some minutes after the start of the datatake
    baseline: str | None = None
    cloud_pct: float | None = None
    quantification: float | None = None
    offsets: Mapping[str, float] = field(default_factory=dict)  # DN by band; no entry where none is stated
    footprint: BaseGeometry | None = None  # of the whole product, in degrees

    def scale_and_offset(self, band: str) -> tuple[float, float] | None:
        """Return scale and offset of a band, reflectance = DN * scale + offset; None where the files leave it open."""
        offset = self.offsets.get(band)
        if offset is None and not self.offsets and self.baseline is not None and self.baseline < _OFFSET_BASELINE:
            offset = 0.0  # products had no list of offsets before
        if offset is None or self.quantification is None:
            return None
        return 1 / self.quantification, offset / self.quantification


def read_metadata(product: bytes | None, tile: bytes | None) -> SafeMetadata:
    """Read the facts of a granule from its product's and its own file; a value that makes no sense is left out."""
    values = _values(product)
    of_tile = _values(tile)
    level = (values.get("PROCESSING_LEVEL") or [("", "")])[0][1].replace("evel-", "")[:3].upper()
    quantification = next((q for name in _QUANTIFICATION if (q := _number(values, name)) is not None), None)
    cloud = _number(of_tile, "CLOUDY_PIXEL_PERCENTAGE")
    cloud = _number(values, "Cloud_Coverage_Assessment") if cloud is None else cloud
    return SafeMetadata(
        level="L1C" if level == "L1C" else "L2A" if level == "L2A" else None,
        acquired=_time(values, "PRODUCT_START_TIME"),
        sensed=_time(of_tile, "SENSING_TIME"),
        baseline=next((text for _, text in values.get("PROCESSING_BASELINE", ()) if text), None),
        cloud_pct=cloud if cloud is not None and 0 <= cloud <= 100 else None,
        quantification=quantification if quantification is not None and quantification > 0 else None,
        offsets=_offsets(values),
        footprint=_footprint(values),
    )


_Values = Mapping[str, list[tuple[str, str]]]  # element's name to `band_id` and text of each


def _values(document: bytes | None) -> _Values:
    """Return the leaves of an XML document, which must be self-contained: no document type, so no entities."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    if document is None:
        return found
    try:
        text = document.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ProviderError("the metadata has a document type: entities are not read; take the original file")
        for element in ElementTree.fromstring(text).iter():
            if element.text and element.text.strip():
                found[element.tag.rpartition("}")[2]].append((element.get("band_id", ""), element.text.strip()))
    except (ElementTree.ParseError, ValueError) as error:
        raise ProviderError(f"the metadata cannot be read as XML: {error}") from error
    return found


def _offsets(values: _Values) -> dict[str, float]:
    stated = values.get("BOA_ADD_OFFSET") or values.get("RADIO_ADD_OFFSET") or ()
    found = {}
    for number, text in stated:
        offset = _float(text)
        if number.isdigit() and int(number) < len(_BANDS) and offset is not None:
            found[_BANDS[int(number)]] = offset
    return found


def _footprint(values: _Values) -> BaseGeometry | None:
    """Return the outline; None where the list of its corners is no valid one."""
    numbers = [_float(v) for _, text in values.get("EXT_POS_LIST", [])[:1] for v in text.split()]
    if len(numbers) < 8 or len(numbers) % 2 or None in numbers:
        return None
    outline = Polygon(list(zip(numbers[1::2], numbers[::2], strict=True)))
    return split(outline) if outline.is_valid else None


def _number(values: _Values, name: str) -> float | None:
    return next((number for _, text in values.get(name, ()) if (number := _float(text)) is not None), None)


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(values: _Values, name: str) -> datetime | None:
    for _, text in values.get(name, ()):
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            continue
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None
