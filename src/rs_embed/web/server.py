"""The HTTP API over one dataset: search, similar places, all places, thumbnails. Nothing else can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response

from rs_embed.errors import RSEmbedError
from rs_embed.export.dataset import open_dataset
from rs_embed.search.index import EmbeddingIndex, Found
from rs_embed.specs import BBox, TemporalSpec

MAX_TEXT = 500
MAX_WORDS = 8
MAX_K = 500
MAX_PLACES = 20_000
MAX_ID = 200
_BUSY = 4
"""Searches at a time; others wait."""
_log = logging.getLogger("rs_embed")

Text = Annotated[str | None, Query(max_length=MAX_TEXT, description="Words, such as `river through forest`.")]
Negative = Annotated[
    list[str] | None, Query(max_length=MAX_WORDS, description="Words for what is not wanted; may be repeated.")
]
Example = Annotated[str | None, Query(max_length=MAX_ID, description="A row as the example.")]
Box = Annotated[str | None, Query(max_length=100, description="West,south,east,north in degrees.")]
Day = Annotated[str | None, Query(max_length=10, description="YYYY-MM-DD; both or none.")]
K = Annotated[int, Query(ge=1, le=MAX_K)]


def create_app(folder: Path) -> FastAPI:
    """The service over one dataset.

    Raises:
        RSEmbedError: when the folder holds none.
    """
    index, data = EmbeddingIndex(folder), open_dataset(folder)
    app = FastAPI(title="rs-embed", description=f"Search {len(index):,} places embedded by {index.request.model}.")
    busy = anyio.Semaphore(_BUSY)

    async def ask(question: Callable[[], Found]) -> dict[str, Any]:
        async with busy:
            return (await anyio.to_thread.run_sync(question)).facts()

    @app.get("/api/search")
    async def search(
        text: Text = None,
        negative: Negative = None,
        id: Example = None,
        bbox: Box = None,
        start: Day = None,
        end: Day = None,
        k: K = 20,
    ) -> dict[str, Any]:
        """The rows most like some words, or another row, or both."""
        _check_lengths(negative)
        box, time = _box(bbox), _time(start, end)
        return await ask(lambda: index.search(text, id=id, negative=negative or (), bbox=box, time=time, k=k))

    @app.get("/api/similar/{id}")
    async def similar(id: str, bbox: Box = None, start: Day = None, end: Day = None, k: K = 20) -> dict[str, Any]:
        """The rows most like another one."""
        _row(index, id)
        box, time = _box(bbox), _time(start, end)
        return await ask(lambda: index.search(id=id, bbox=box, time=time, k=k))

    @app.get("/api/places")
    def places(
        bbox: Box = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PLACES)] = 1000,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        """Rows in the order of the dataset."""
        return index.places(_box(bbox), limit=limit, offset=offset).facts()

    @app.get("/api/thumbnail/{id}", response_class=Response)
    def thumbnail(id: str) -> Response:
        """A row's quicklook, PNG."""
        unique_id = _row(index, id)
        png = data.thumbnails_of([unique_id]).get(unique_id)
        if png is None:
            raise HTTPException(404, f"the dataset has no thumbnail of {id!r}")
        return Response(png, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    @app.exception_handler(RSEmbedError)
    async def refused(request: Request, error: RSEmbedError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    return app


def serve(folder: Path, host: str, port: int) -> None:
    """Run until it is interrupted."""
    import uvicorn

    app = create_app(folder)
    if host not in ("127.0.0.1", "localhost", "::1"):
        _log.warning("anyone who reaches %s:%s can read this dataset: there is no password", host, port)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=5)


def _row(index: EmbeddingIndex, id: str) -> str:
    """The `unique_id` of a row by one of its names; 404 when there is none."""
    if len(id) > MAX_ID:
        raise HTTPException(404, f"the dataset has no row of a name of {len(id)} characters")
    try:
        return index.unique_id(index.position_of(id))
    except RSEmbedError as error:
        raise HTTPException(404, str(error)) from None


def _check_lengths(negative: list[str] | None) -> None:
    if any(len(words) > MAX_TEXT for words in negative or ()):
        raise HTTPException(422, f"negative: at most {MAX_TEXT} characters")


def _box(text: str | None) -> BBox | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise HTTPException(422, f"bbox {text!r} must be W,S,E,N in degrees") from None
    return BBox(west, south, east, north)


def _time(start: str | None, end: str | None) -> TemporalSpec | None:
    if (start is None) != (end is None):
        raise HTTPException(422, "start and end come together")
    return TemporalSpec.range(start, end) if start is not None and end is not None else None
