"""Places from options or a file, and a place in words that nobody can read the wrong way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rs_embed.errors import SpecError
from rs_embed.specs import BBox, Place, PointBuffer

EXPORT_FROM = 200


@dataclass(frozen=True, slots=True)
class NamedPlace:
    """A place with the name that results carry."""

    id: str
    place: Place


def read_places(
    file: Path | None,
    point: tuple[float, float] | None,
    bbox: tuple[float, float, float, float] | None,
    buffer_m: float | None,
    chip: float | None,
) -> list[NamedPlace]:
    """Places from exactly one of a file, a point or a box.

    Raises:
        SpecError: for none or several of them, a missing or doubled size, or a file that cannot be read.
    """
    given = [name for name, value in (("FILE", file), ("--point", point), ("--bbox", bbox)) if value is not None]
    if len(given) != 1:
        raise SpecError(
            f"one place or one file is needed: --point LON LAT --buffer-m M, --bbox W S E N, or a file of places; got "
            f"{' and '.join(given) or 'none'}"
        )
    if bbox is not None:
        if buffer_m is not None or chip is not None:
            raise SpecError("--bbox has its own size: leave out --buffer-m and --chip")
        return [NamedPlace("0", BBox(*bbox))]
    half = _half_side(buffer_m, chip)
    if point is not None:
        return [NamedPlace("0", PointBuffer(*point, half))]
    assert file is not None
    return list(_from_file(file, half))


def _half_side(buffer_m: float | None, chip: float | None) -> float:
    if (buffer_m is None) == (chip is None):
        raise SpecError("a size is needed: --buffer-m M (half the side) or --chip M (the whole side), one of the two")
    return buffer_m if buffer_m is not None else chip / 2  # type: ignore[operator]


def _from_file(file: Path, half: float) -> Iterator[NamedPlace]:
    """Places of a file; here, where nothing is kept beside the vectors, a bad row is an error."""
    from rs_embed.export.inputs import ReadOptions
    from rs_embed.export.inputs import read_places as read_rows

    for row in read_rows(file, ReadOptions(chip_m=2 * half)).rows:
        if row.place is None:
            raise SpecError(f"{file}, {row.where}: {row.error}")
        if row.start or row.end:
            raise SpecError(
                f"{file}, {row.where}: time ranges of single rows are for `rs-embed export`; leave them out"
            )
        yield NamedPlace(row.id, row.place)


def describe(place: Place) -> str:
    """`39.3638°N 8.2132°W · 1,200 m · UTM 29N · https://…`: with its zone and a link, since people swap the two."""
    from rs_embed.grid import utm_epsg
    from rs_embed.providers.archive import lonlat_text

    lon, lat = place.centre
    epsg = utm_epsg(lon, lat)
    zone = f"UTM {epsg % 100}{'N' if epsg < 32700 else 'S'}"
    size = f"{2 * place.buffer_m:,.0f} m" if isinstance(place, PointBuffer) else "box"
    link = f"https://www.openstreetmap.org/?mlat={lat:.5f}&mlon={lon:.5f}#map=13/{lat:.5f}/{lon:.5f}"
    return f"{lonlat_text(lon, lat)} · {size} · {zone} · {link}"
