"""Places from options or a file, and text about them that shows swapped coordinates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from rs_embed.cli.options import RequestOptions
from rs_embed.errors import SpecError, visible
from rs_embed.specs import BBox, Place, PointBuffer

if TYPE_CHECKING:
    from rs_embed.embedding import Result


@dataclass(frozen=True, slots=True)
class NamedPlace:
    """A place with the name that results carry."""

    id: str
    place: Place


def read_places(options: RequestOptions, file: Path | None = None) -> list[NamedPlace]:
    """Return the places of exactly one of a file, a point or a box."""
    check_one_source(
        {"FILE": file, "--point": options.point, "--bbox": options.bbox},
        "one place or one file is needed: --point LON LAT --buffer-m M, --bbox W S E N, or a file of places",
    )
    if options.bbox is not None:
        if options.buffer_m is not None or options.chip is not None:
            raise SpecError("--bbox sets the size itself: leave out --buffer-m and --chip")
        return _only("--bbox", BBox(*options.bbox))
    side = side_m(options.buffer_m, options.chip)
    if side is None:
        raise SpecError("a size is needed: --buffer-m M (half the side) or --chip M (the whole side)")
    if options.point is not None:
        return _only("--point", PointBuffer(*options.point, side / 2))
    from rs_embed.export.formats import ReadOptions
    from rs_embed.export.inputs import read_places as read_rows

    places = []
    for row in read_rows(file, ReadOptions(chip_m=side)).rows:
        if row.place is None:  # an error, because the vectors of `embed` have no column for it
            raise SpecError(f"{file}, {row.where}: {row.error}")
        if row.start or row.end:
            raise SpecError(f"{file}, {row.where}: only `rs-embed export` takes time ranges of rows; leave them out")
        places.append(NamedPlace(row.id, row.place))
    return places


def _only(option: str, place: Place) -> list[NamedPlace]:
    """Return one place; a warning says if its coordinates look swapped."""
    from rs_embed.export.land import warn_if_swapped

    warn_if_swapped([place.centre], option)
    return [NamedPlace("0", place)]


def check_one_source(sources: dict[str, object], needed: str) -> None:
    """Refuse several sources of places, and none."""
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise SpecError(f"{needed}; got {' and '.join(given) or 'none'}")


def side_m(buffer_m: float | None, chip: float | None) -> float | None:
    """Return the side of a square in metres from --buffer-m or --chip, None where neither is given; refuse both."""
    if buffer_m is not None and chip is not None:
        raise SpecError("--chip M equals --buffer-m M/2: give one of the two")
    return chip if buffer_m is None else 2 * buffer_m


def describe(place: Place) -> str:
    """Return `39.3638°N 8.2132°W · 1,200 m · UTM 29N · https://…`: zone and map link show swapped coordinates."""
    from rs_embed.grid import lonlat_text, map_url, utm_epsg

    lon, lat = place.centre
    epsg = utm_epsg(lon, lat)
    zone = f"UTM {epsg % 100}{'N' if epsg < 32700 else 'S'}"
    size = f"{2 * place.buffer_m:,.0f} m" if isinstance(place, PointBuffer) else "box"
    return f"{lonlat_text(lon, lat)} · {size} · {zone} · {map_url(lon, lat)}"


def exit_on_failures(places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    """Print one line on stderr for each place that failed, and exit with code 1 if there is one."""
    from rs_embed.embedding import EmbeddingFailure

    failed = [(p, r) for p, r in zip(places, results, strict=True) if isinstance(r, EmbeddingFailure)]
    for place, failure in failed:
        name = f"{place.id}: " if len(places) > 1 else ""
        print(f"error: {visible(name)}{' '.join(str(failure.error).split())}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
