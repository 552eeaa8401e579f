"""Facts in the names of files and folders: date, level, and images that are no reflectance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rs_embed.sentinel2 import Level, parse_product_name

_DATE = re.compile(  # in a granule's long name the time of its making follows the station: _TL_SGS__20160504T163055
    r"(?<!\d)(?<!_TL_[A-Z]{3}__)(20\d{2})-?(\d{2})-?(\d{2})(?:T(\d{2})(\d{2})(\d{2}))?(?!\d)"
)
_LEVEL = re.compile(r"(?:^|[_/.\- ])(?:S2)?(?:MSI)?(L1C|L2A)(?=[_/.\- ]|$)", re.IGNORECASE)
_NO_REFLECTANCE = re.compile(
    r"(?:^|[_.\- ])(?:TCI|PVI|MSK|AOT|WVP|VIS|DEM|SNW|CLD|CLDPRB|SNWPRB|CLASSI|DETFOO|QUALIT|true.?colou?r|visual|"
    r"mask|thumbnail|thumb|preview|quicklook|browse|overview)(?=[_.\- ]|$)",
    re.IGNORECASE,
)
_OTHER_MISSION = re.compile(
    r"(?:^|[_/.\- ])(?:L[COTEM]0[1-9]_L\w+|L(?:C8|C9|E7|T5)\d{13}\w*|HLS|M[OY]D\d{2}\w*|VNP\d{2}\w*|PSScene\w*|"
    r"S1[A-D]_(?:IW|EW|SM|WV)_\w+|S3[A-D]_(?:OL|SL|SY|SR)_\w+)(?=[_/.\- ]|$)",
    re.IGNORECASE,
)


def acquisition_time(names: Iterable[str]) -> datetime | None:
    """Return the time of sensing by a product's name, else the last date in a name, UTC."""
    names = tuple(names)
    products = filter(None, map(parse_product_name, names))
    return next((product.acquired for product in products), None) or next(filter(None, map(_last_date, names)), None)


def level_of(names: Sequence[str]) -> Level | None:
    """Return the processing level that a product's name states, else a part of a name such as `L1C_T33UVP`."""
    for name in names:
        product = parse_product_name(name)
        if product is not None:
            return product.level
    stated = (match[1].upper() for name in names if (match := _LEVEL.search(name)))
    level = next(stated, None)
    return None if level is None else "L1C" if level == "L1C" else "L2A"


def is_no_reflectance(stem: str) -> bool:
    """Tell if a file's name says that it is a picture, a mask or an auxiliary layer: TCI, PVI, MSK, AOT, WVP…"""
    return _NO_REFLECTANCE.search(stem) is not None


def other_mission(name: str) -> str | None:
    """Return the part of a name that states a mission other than Sentinel-2."""
    match = _OTHER_MISSION.search(name)
    return match[0].strip("_/.- ") if match else None


def _last_date(name: str) -> datetime | None:
    for match in reversed(list(_DATE.finditer(name))):
        try:
            year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
            return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            continue  # digits, but not a date
    return None
