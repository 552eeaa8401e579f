"""What a search answers: rows in their order, and what is to be said of the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

FloatArray = npt.NDArray[np.float32]

JUDGED_BY = 20
"""So many of the best tell whether what was asked is there at all."""
NOTHING_LIKE_IT = "probably nothing like this here"
UNLIKELY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One row that was found."""

    rank: int
    """From 1."""
    score: float
    """Only its order means anything."""
    percentile: float
    """Share of the rows searched that score lower, per cent."""
    probability: float | None
    """Of the words against the background vocabulary; None where nothing was asked in words."""
    unique_id: str
    id: str
    lon: float
    lat: float
    bounds: tuple[float, float, float, float]
    """West, south, east, north."""
    footprint: tuple[tuple[float, float], ...]
    """Corners (longitude, latitude): north-west, north-east, south-east, south-west of the place's own UTM square."""
    start: str
    end: str
    status: str
    scene_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer."""

    hits: tuple[Hit, ...]
    notice: str | None
    """A warning about the whole answer: that nothing here is like what was asked, or what of the words is not known."""
    searched: int
    """Rows that the filters left."""
    exact: bool
    recall: float | None
    """Of an answer that is not exact: the share of the truly best that such answers hold, measured at the build."""

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "results": [asdict(hit) for hit in self.hits],
            "notice": self.notice,
            "searched": self.searched,
            "exact": self.exact,
            "recall": self.recall,
        }

    def to_geojson(self) -> dict[str, Any]:
        """Footprints as a GeoJSON FeatureCollection."""
        return {"type": "FeatureCollection", "features": [_feature(hit) for hit in self.hits]}


def notice_of(odds: FloatArray | None, remarks: Sequence[str]) -> str | None:
    """Percentiles are high for anything; the words' odds among the best tell whether it is there at all."""
    told = list(remarks)
    if odds is not None and len(odds) and (mean := float(odds[:JUDGED_BY].mean())) < UNLIKELY:
        best = f"the best {min(len(odds), JUDGED_BY)} are like these words with {mean:.0%} on average"
        told.insert(0, f"{NOTHING_LIKE_IT}: {best}")
    return ". ".join(told) or None


def day_of(moment: datetime) -> str:
    """The UTC day of a moment, ISO."""
    return moment.astimezone(UTC).date().isoformat()


def corners_of(wkb: bytes) -> tuple[tuple[float, float], ...]:
    """North-west, north-east, south-east, south-west; the export writes them from the south-east, anticlockwise."""
    south_east, north_east, north_west, south_west = shapely.get_coordinates(shapely.from_wkb(wkb))[:4].tolist()
    return tuple((x, y) for x, y in (north_west, north_east, south_east, south_west))


def _feature(hit: Hit) -> dict[str, Any]:
    north_west, *others = hit.footprint
    return {
        "type": "Feature",
        "id": hit.unique_id,
        "geometry": {"type": "Polygon", "coordinates": [[north_west, *reversed(others), north_west]]},
        "properties": asdict(hit),
    }
