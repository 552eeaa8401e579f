"""Search results: hits in their order, and a notice about all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from rs_embed.arrays import BoolArray
from rs_embed.errors import import_extra
from rs_embed.grid import lonlat_text, map_url, transformer, utm_epsg
from rs_embed.html import Fact, Link, Picture, result_html
from rs_embed.outlines import box_of, split
from rs_embed.search.presence import ABSENT, FEW, Presence, Verdict

if TYPE_CHECKING:
    import geopandas
    from PIL import Image

Quicklooks = Callable[[Sequence[str]], dict[str, bytes]]
_SHOWN_HITS = 12

NOTHING_LIKE_IT = "probably nothing like this here"
PERHAPS_NOTHING = "perhaps nothing like this here"
LIKELY = 0.5
"""Probability from which the words of a heat map count as present."""
_SHOWN = 20
"""Number of best rows whose imagery the notice speaks of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One row of the results."""

    rank: int
    """From 1."""
    score: float
    """Product with the query; only its order means anything."""
    percentile: float
    """Share of the rows searched that score lower, per cent."""
    probability: float | None
    """Probability that the place shows the words, given how common they are in this dataset.

    None without words, for words that the model does not know, and for imagery unlike its training images.
    """
    unique_id: str
    id: str
    lon: float
    lat: float
    bounds: tuple[float, float, float, float]
    """West, south, east, north; west > east where it crosses 180°."""
    footprint: tuple[tuple[float, float], ...]
    """Corners (longitude, latitude) of the place's UTM square: north-west, north-east, south-east, south-west.

    Longitudes run on past 180 where it crosses 180°, so that it is one shape on a map.
    """
    start: str
    end: str
    status: str
    scene_ids: tuple[str, ...]
    unlike_training: bool | None = None
    """True where the imagery is unlike all that the model was trained on; None for models that cannot tell."""
    warnings: tuple[str, ...] = ()
    """Kinds of the row's warnings, such as "few pixels": its vector may mean little."""

    def caption(self) -> list[str | Link]:
        """Return the lines that go below the row's quicklook on a page."""
        likely = "" if self.probability is None else f" · {self.probability:.0%} likely"
        place = Link(lonlat_text(self.lon, self.lat), map_url(self.lon, self.lat))
        return [f"{self.rank}{likely}", place, self.id]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResults:
    """Hits of one search, best first."""

    hits: tuple[Hit, ...] = ()
    notice: str | None = None
    """Warning about the results: nothing shows the words, or the model does not know them, or such imagery."""
    presence: Verdict | None = None
    """Verdict on whether anything shows the words: "present", "unclear" or "absent"; None where it cannot be given."""
    searched: int = 0
    """Number of rows that the filters left."""
    exact: bool = True
    recall: float | None = None
    """Share of the true best rows that approximate results hold, measured at the build; None for exact results."""
    quicklooks: Quicklooks | None = field(default=None, repr=False, compare=False)
    """Reader of the PNG quicklooks of rows by `unique_id`; results that were pickled have none."""

    def __repr__(self) -> str:
        best = f", best {self.hits[0].id!r}" if self.hits else ""
        said = f", notice={self.notice!r}" if self.notice else ""
        return f"SearchResults({len(self.hits)} hit(s) of {self.searched:,} rows{best}{said})"

    def __getstate__(self) -> dict[str, Any]:
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "quicklooks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def plot(self, title: str = "") -> Image.Image:
        """Draw a contact sheet of the quicklooks, best first.

        Args:
            title: the words that were searched for, or another title.
        """
        from rs_embed.search.draw import contact_sheet

        return contact_sheet(self, self._pngs(self.hits), title).image

    def _pngs(self, hits: Sequence[Hit]) -> dict[str, bytes]:
        return {} if self.quicklooks is None else self.quicklooks([hit.unique_id for hit in hits])

    def _repr_html_(self) -> str:
        shown = self.hits[:_SHOWN_HITS]
        pngs = self._pngs(shown)
        how = "" if self.exact else f", by sign bits: recall {self.recall or 0:.2f}"
        more = f", the first {len(shown)} shown" if len(shown) < len(self.hits) else ""
        facts: list[Fact] = [("hits", f"{len(self.hits)} of {self.searched:,} rows{how}{more}")]
        pictures = [Picture(pngs.get(hit.unique_id), 112, hit.caption()) for hit in shown]
        return result_html("Search results", facts, pictures, [self.notice] if self.notice else [], gallery=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON-ready values."""
        names = [f.name for f in fields(self) if f.name not in ("hits", "quicklooks")]
        return {"results": [asdict(hit) for hit in self.hits], **{name: getattr(self, name) for name in names}}

    def to_geojson(self) -> dict[str, Any]:
        """Return the footprints as a GeoJSON FeatureCollection."""
        features = []
        for hit in self.hits:
            north_west, *others = hit.footprint
            outline = split(shapely.Polygon([north_west, *reversed(others)]))
            geometry = shapely.geometry.mapping(outline)
            features.append({"type": "Feature", "id": hit.unique_id, "geometry": geometry, "properties": asdict(hit)})
        return {"type": "FeatureCollection", "features": features}

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """Return the hits as a GeoDataFrame, best first, with their footprints in longitude and latitude.

        Raises:
            RSEmbedError: without geopandas.
        """
        frames = import_extra("geopandas", extra="notebook")
        columns = [field.name for field in fields(Hit)]
        rows = [asdict(hit) for hit in self.hits]
        table = {name: [row[name] for row in rows] for name in columns if name != "footprint"}
        outlines = [shapely.geometry.shape(feature["geometry"]) for feature in self.to_geojson()["features"]]
        return frames.GeoDataFrame(table, geometry=outlines, crs="OGC:CRS84")


def notice_text(presence: Presence | None, remarks: Sequence[str], model: str, unlike: BoolArray) -> str | None:
    """Return the notice for results, or None.

    `unlike` tells which rows, best first, are unlike what the model was trained on.
    """
    of, count = len(unlike[:_SHOWN]), int(unlike[:_SHOWN].sum())
    found = f"{count} of the best {of} places"
    if count <= FEW * of and presence is not None and presence.verdict != "present":
        of, count = presence.searched, presence.unlike
        found = f"{count:,} of {of:,} places"
    sentences = [*(_doubts(presence) if presence is not None else ()), *remarks]
    if count > FEW * of:
        sentences.append(f"{found} are unlike anything that {model} was trained on: what it says of them means little")
    return ". ".join(sentences) or None


def _doubts(presence: Presence) -> list[str]:
    """Return a sentence for words that are not surely present."""
    likeliest = presence.probabilities[~np.isnan(presence.probabilities)]
    if presence.verdict == "present" or not len(likeliest):
        return []
    if presence.evidence < ABSENT:
        verdict = NOTHING_LIKE_IT if presence.verdict == "absent" else PERHAPS_NOTHING
        return [f"{verdict}: the likeliest place shows these words with {likeliest.max():.0%}"]
    return [f"{PERHAPS_NOTHING}: of {presence.searched:,} places, some look as much like these words by chance"]


def utc_day(moment: datetime) -> str:
    """Return the UTC day of a moment as YYYY-MM-DD."""
    return moment.astimezone(UTC).date().isoformat()


def footprint_corners(wkb: bytes, lon: float, lat: float) -> tuple[tuple[float, float], ...]:
    """Return the corners of an exported footprint, centred on a point, in the order of `Hit.footprint`."""
    footprint = shapely.from_wkb(wkb)
    if footprint.geom_type == "Polygon":  # the export writes corners anticlockwise from the south-east
        south_east, north_east, north_west, south_west = shapely.get_coordinates(footprint)[:4].tolist()
        return tuple((x, y) for x, y in (north_west, north_east, south_east, south_west))
    to_zone = transformer(4326, utm_epsg(lon, lat))  # two pieces: they are one rectangle in their zone
    west, south, east, north = shapely.transform(footprint, to_zone.transform, interleaved=False).bounds
    lons, lats = to_zone.transform((west, east, east, west), (north, north, south, south), direction="INVERSE")
    if not np.isfinite((lons, lats)).all():  # no footprint of ours: the box around it will do
        west, south, east, north = box_of(footprint)
        lons, lats = (west, east, east, west), (north, north, south, south)
    return tuple((float(x) + 360 if x < 0 else float(x), float(y)) for x, y in zip(lons, lats, strict=True))
