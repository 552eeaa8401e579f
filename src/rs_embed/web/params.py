"""Parameters of the HTTP API: each checks itself, and what is not valid is answered with 422."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from rs_embed.lonlat import Box
from rs_embed.specs import TemporalSpec, bounds_of

MAX_MARKS = 50
MAX_ID = 200


def _box(text: str) -> str:
    """Check that a text is four numbers; a ValueError is answered with 422."""
    box_edges(text)
    return text


def box_edges(text: str) -> Box:
    """Return west, south, east, north of `W,S,E,N`."""
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"bbox {text!r} must be W,S,E,N in degrees") from None
    return west, south, east, north


Id = Annotated[str, StringConstraints(max_length=MAX_ID)]
Words = Annotated[str, StringConstraints(max_length=500)]
BoxText = Annotated[str, StringConstraints(max_length=100), AfterValidator(_box)]
Day = Annotated[str, StringConstraints(max_length=10)]
K = Annotated[int, Field(ge=1, le=500)]
Marks = Annotated[list[Id], Field(max_length=MAX_MARKS)]


class FilterParams(BaseModel):
    """Filters on place and time."""

    bbox: BoxText | None = Field(None, description="West,south,east,north in degrees; west > east across 180°.")
    start: Day | None = Field(None, description="YYYY-MM-DD; both days or none.")
    end: Day | None = Field(None, description="YYYY-MM-DD; both days or none.")

    @model_validator(mode="after")
    def _both_days(self) -> FilterParams:
        if (self.start is None) != (self.end is None):
            raise ValueError("start and end come together")
        return self

    def filters(self) -> dict[str, Any]:
        """Return the filters as arguments for `EmbeddingIndex.search` or `places`."""
        time = TemporalSpec.range(self.start, self.end) if self.start is not None and self.end is not None else None
        return {"bbox": None if self.bbox is None else bounds_of(box_edges(self.bbox)), "time": time}


class QueryParams(FilterParams):
    """Criteria that rows are ranked by, and filters."""

    text: Words | None = Field(None, description="Words, such as `river through forest`.")
    negative: list[Words] = Field([], max_length=8, description="Words for what is not wanted; repeatable.")
    id: Marks = Field([], description="An example row; repeatable.")
    unlike: Marks = Field([], description="A negative example row; repeatable.")
    concept: Id | None = Field(None, description="A concept that `EmbeddingIndex.train` saved.")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `EmbeddingIndex.search` or `places`."""
        return self.model_dump(exclude={"bbox", "start", "end"}) | self.filters()


class SearchParams(QueryParams):
    """Parameters of a search."""

    k: K = 20


class SimilarParams(FilterParams):
    """Parameters of a search for rows that resemble one row."""

    k: K = 20


class PlacesParams(QueryParams):
    """Parameters of a list of rows in the order of the dataset; with a query, each has its percentile."""

    limit: Annotated[int, Field(ge=1, le=20_000)] = 1000
    offset: Annotated[int, Field(ge=0)] = 0
    spread: bool = Field(False, description="Every n-th row instead of the first ones, if there are more than `limit`.")


class TownParams(BaseModel):
    """Parameters of a list of towns, by name or by area."""

    name: Annotated[str, StringConstraints(max_length=100)] = ""
    bbox: BoxText | None = Field(None, description="West,south,east,north in degrees: the largest towns in it.")
    limit: Annotated[int, Field(ge=1, le=50)] = 8


class PointParams(BaseModel):
    """A point in degrees."""

    lon: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]
    lat: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)]


class ConceptParams(BaseModel):
    """Marks to learn a concept from."""

    name: Annotated[str, StringConstraints(max_length=63)]
    id: Marks = Field([], description="A row that shows it; repeatable.")
    unlike: Marks = Field([], description="A row that does not; repeatable.")
    text: Words | None = Field(None, description="Words to start from.")
