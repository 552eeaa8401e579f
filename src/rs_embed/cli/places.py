"""Places from options or a file, and a place in words that nobody can read the wrong way round."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rs_embed.errors import SpecError
from rs_embed.specs import BBox, Place, PointBuffer

_LON_NAMES = ("lon", "longitude", "lng", "long", "x")
_LAT_NAMES = ("lat", "latitude", "y")
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
    if not file.is_file():
        raise SpecError(f"{file}: no such file")
    readers = {".csv": _csv_rows, ".geojson": _geojson_rows, ".json": _geojson_rows, ".parquet": _parquet_rows}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise SpecError(f"{file}: places come from {', '.join(readers)}, not {file.suffix or 'a file without ending'}")
    seen: set[str] = set()
    for where, name, lon, lat in reader(file):
        if name in seen:
            raise SpecError(f"{file}, {where}: the id {name!r} stands there twice")
        seen.add(name)
        try:
            yield NamedPlace(name, PointBuffer(lon, lat, half))
        except SpecError as error:
            raise SpecError(f"{file}, {where}: {error}") from error


_Row = tuple[str, str, float, float]
"""Where it stands, id, longitude, latitude."""


def _csv_rows(file: Path) -> Iterator[_Row]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
        lon, lat = (_column(columns, names, file) for names in (_LON_NAMES, _LAT_NAMES))
        for number, row in enumerate(reader):
            where = f"line {reader.line_num}"
            try:
                yield where, row.get(columns.get("id", ""), str(number)), float(row[lon]), float(row[lat])
            except (TypeError, ValueError) as error:
                raise SpecError(f"{file}, {where}: {lon}={row[lon]!r}, {lat}={row[lat]!r} are no numbers") from error


def _column(columns: dict[str, str], names: Sequence[str], file: Path) -> str:
    found = next((columns[name] for name in names if name in columns), None)
    if found is None:
        raise SpecError(
            f"{file} has no column {' or '.join(names[:2])}; it has {', '.join(columns.values()) or 'none'}"
        )
    return found


def _geojson_rows(file: Path) -> Iterator[_Row]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{file} is not readable as GeoJSON: {error}") from error
    from shapely.geometry import shape

    features = document.get("features", []) if isinstance(document, dict) else []
    if not features:
        raise SpecError(f"{file} is no GeoJSON FeatureCollection with features")
    for number, feature in enumerate(features):
        if not feature.get("geometry"):
            raise SpecError(f"{file}, feature {number}: it has no geometry")
        centre = shape(feature["geometry"]).centroid
        name = feature.get("id") or (feature.get("properties") or {}).get("id") or number
        yield f"feature {number}", str(name), centre.x, centre.y


def _parquet_rows(file: Path) -> Iterator[_Row]:
    import pyarrow.parquet as pq
    from shapely import from_wkb

    table = pq.read_table(file)
    geo = json.loads((table.schema.metadata or {}).get(b"geo", b"{}"))
    column = geo.get("primary_column", "geometry")
    if column not in table.column_names:
        raise SpecError(f"{file} has no geometry column {column!r}; it has {', '.join(table.column_names)}")
    names = table.column("id").to_pylist() if "id" in table.column_names else range(table.num_rows)
    for number, (name, wkb) in enumerate(zip(names, table.column(column).to_pylist(), strict=True)):
        centre = from_wkb(wkb).centroid
        yield f"row {number}", str(name), centre.x, centre.y


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
