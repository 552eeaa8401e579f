"""HTTP API over one dataset (search, similar places, all places, thumbnails) and its page. Nothing else is read."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, StringConstraints

from rs_embed.errors import RSEmbedError
from rs_embed.search.index import EmbeddingIndex
from rs_embed.search.query import background_words, known_words
from rs_embed.search.results import SearchResults
from rs_embed.specs import BBox, TemporalSpec

MAX_MARKS = 50
MAX_ID = 200
_REFRESH_S = 3.0
_CONCURRENT_SEARCHES = 4
BASEMAP = "https://tile.openstreetmap.org"
"""Tile server of the page's basemap, asked once a person switches it on; nothing else leaves this machine."""
_POLICY = (
    f"default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data: blob: {BASEMAP}; connect-src 'self' {BASEMAP}; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_log = logging.getLogger("rs_embed")

Id = Annotated[str, StringConstraints(max_length=MAX_ID)]
Words = Annotated[str, StringConstraints(max_length=500)]
BBoxText = Annotated[str | None, Query(max_length=100, description="West,south,east,north in degrees.")]
Day = Annotated[str | None, Query(max_length=10, description="YYYY-MM-DD; both days or none.")]
K = Annotated[int, Query(ge=1, le=500)]


class QueryParams(BaseModel):
    """Criteria that rows are ranked by, and filters."""

    text: Words | None = Field(None, description="Words, such as `river through forest`.")
    negative: list[Words] = Field([], max_length=8, description="Words for what is not wanted; repeatable.")
    id: list[Id] = Field([], max_length=MAX_MARKS, description="An example row; repeatable.")
    unlike: list[Id] = Field([], max_length=MAX_MARKS, description="A negative example row; repeatable.")
    concept: Id | None = Field(None, description="A concept that `EmbeddingIndex.train` saved.")
    bbox: BBoxText = None
    start: Day = None
    end: Day = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `EmbeddingIndex.search` or `places`."""
        filters = {"bbox": _parse_bbox(self.bbox), "time": _parse_time(self.start, self.end)}
        return self.model_dump(exclude={"bbox", "start", "end"}) | filters


class SearchParams(QueryParams):
    """Parameters of a search."""

    k: K = 20


class PlacesParams(QueryParams):
    """Parameters of a list of rows in the order of the dataset; with a query, each has its percentile."""

    limit: Annotated[int, Field(ge=1, le=20_000)] = 1000
    offset: Annotated[int, Field(ge=0)] = 0
    spread: bool = Field(False, description="Every n-th row instead of the first ones, if there are more than `limit`.")


class Searcher:
    """Index behind the API: a few searches at a time, with rows that were added seen within seconds."""

    def __init__(self, index: EmbeddingIndex) -> None:
        self._index = index
        self._slots = anyio.Semaphore(_CONCURRENT_SEARCHES)
        self._refreshed = time.monotonic()

    async def run(self, search: Callable[..., SearchResults], **arguments: Any) -> SearchResults:
        """Call `search` or `places` of the index in a thread once a slot is free."""

        def refresh_and_search() -> SearchResults:
            if time.monotonic() - self._refreshed > _REFRESH_S:
                self._refreshed = time.monotonic()
                self._index.refresh()
            return search(**arguments)

        async with self._slots:
            return await anyio.to_thread.run_sync(refresh_and_search)


def create_app(folder: Path) -> FastAPI:
    """Create the web application over one dataset.

    Raises:
        RSEmbedError: for a folder without a dataset.
    """
    return _app(EmbeddingIndex(folder))


def _app(index: EmbeddingIndex) -> FastAPI:
    about = f"Search places embedded by {index.request.model}."
    app = FastAPI(title="rs-embed", description=about, docs_url=None, redoc_url=None)  # those pages come from a CDN
    _add_searches(app, index)
    _add_dataset(app, index)

    @app.exception_handler(RSEmbedError)
    async def bad_request(request: Request, error: RSEmbedError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.middleware("http")
    async def secure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    app.mount("/", StaticFiles(packages=[(__package__, "page")], html=True))
    return app


def _add_searches(app: FastAPI, index: EmbeddingIndex) -> None:
    """Add the routes that search or list rows."""
    searcher = Searcher(index)

    @app.get("/api/search")
    async def search(params: Annotated[SearchParams, Query()]) -> dict[str, Any]:
        """Find the rows that resemble words, other rows, both, or a saved concept most."""
        return (await searcher.run(index.search, **params.arguments())).to_dict()

    @app.get("/api/search.geojson")
    async def download(params: Annotated[SearchParams, Query()]) -> JSONResponse:
        """Return the footprints of the same search as a GeoJSON file."""
        results = await searcher.run(index.search, **params.arguments())
        headers = {"Content-Disposition": 'attachment; filename="hits.geojson"'}
        return JSONResponse(results.to_geojson(), media_type="application/geo+json", headers=headers)

    @app.get("/api/similar/{id:path}")
    async def similar(id: str, bbox: BBoxText = None, start: Day = None, end: Day = None, k: K = 20) -> dict[str, Any]:
        """Find the rows that resemble one row most."""
        _unique_id(index, id)
        filters = {"bbox": _parse_bbox(bbox), "time": _parse_time(start, end)}
        return (await searcher.run(index.search, id=id, k=k, **filters)).to_dict()

    @app.get("/api/places")
    async def places(params: Annotated[PlacesParams, Query()]) -> dict[str, Any]:
        """List rows in the order of the dataset; with words or examples, each has its percentile."""
        return (await searcher.run(index.places, **params.arguments())).to_dict()


def _add_dataset(app: FastAPI, index: EmbeddingIndex) -> None:
    """Add the routes that describe the dataset and its rows."""

    @app.get("/api/dataset")
    def dataset() -> dict[str, Any]:
        """Describe the dataset: model, size, extent, time range, suggested words, saved concepts."""
        return {
            "rows": len(index),
            "model": index.request.model,
            "extent": index.extent,
            "time": index.time_range,
            "suggestions": _suggestions(index),
            "thumbnails": index.request.thumbnails,
            "concepts": index.concepts.names(),
        }

    @app.get("/api/thumbnail/{id:path}", response_class=Response)
    def thumbnail(id: str) -> Response:
        """Return the thumbnail of a row as PNG."""
        unique_id = _unique_id(index, id)
        png = index.thumbnails([unique_id]).get(unique_id)
        if png is None:
            raise HTTPException(404, f"the dataset has no thumbnail of {id!r}")
        return Response(png, media_type="image/png", headers={"Cache-Control": "max-age=86400"})


def has_map_library() -> bool:
    """Return True if the page's third-party JavaScript was built into this installation."""
    return (resources.files(__package__) / "page" / "vendor" / "maplibre-gl.mjs").is_file()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host and port.

    Raises:
        RSEmbedError: for a port that is taken, or a host that cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise RSEmbedError(f"{host}:{port} cannot be listened on ({reason}): take another --port") from None
    # Connections inherit it. Without it a response takes 40 ms: asyncio sets it only for sockets that name a protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(index: EmbeddingIndex, listener: socket.socket) -> None:
    """Serve an index on a listening socket until the process is interrupted."""
    host, port = listener.getsockname()[:2]
    if host not in ("127.0.0.1", "::1"):
        _log.warning("anyone who reaches %s:%s can read this dataset: there is no password", host, port)
    server = uvicorn.Server(uvicorn.Config(_app(index), log_level="warning", timeout_keep_alive=5))
    server.run(sockets=[listener])


def _suggestions(index: EmbeddingIndex) -> Sequence[str]:
    """Return words for a first query; all of them if the model's text side cannot be loaded (a search will say why)."""
    try:
        return known_words(index.request.model, index.request.checkpoint)
    except RSEmbedError:
        return background_words()


def _unique_id(index: EmbeddingIndex, id: str) -> str:
    """Return the `unique_id` of a row by one of its ids, or answer 404."""
    if len(id) > MAX_ID:
        raise HTTPException(404, f"the dataset has no row of a name of {len(id)} characters")
    try:
        return index.unique_id(id)
    except RSEmbedError as error:
        raise HTTPException(404, str(error)) from None


def _parse_bbox(text: str | None) -> BBox | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise HTTPException(422, f"bbox {text!r} must be W,S,E,N in degrees") from None
    return BBox(west, south, east, north)


def _parse_time(start: str | None, end: str | None) -> TemporalSpec | None:
    if (start is None) != (end is None):
        raise HTTPException(422, "start and end come together")
    return TemporalSpec.range(start, end) if start is not None and end is not None else None
