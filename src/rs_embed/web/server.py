"""HTTP API over one dataset (search, similar places, all places, thumbnails) and its page. Nothing else is read."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from rs_embed.errors import RSEmbedError
from rs_embed.search.index import EmbeddingIndex
from rs_embed.search.query import background_words, known_words
from rs_embed.search.results import SearchResults
from rs_embed.specs import TemporalSpec, bounds_of
from rs_embed.web.guards import CONNECTIONS, BoundedConnection, HostCheck

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


def _box(text: str) -> str:
    """Check that a text is four numbers; a ValueError is answered with 422."""
    _box_edges(text)
    return text


def _box_edges(text: str) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"bbox {text!r} must be W,S,E,N in degrees") from None
    return west, south, east, north


Id = Annotated[str, StringConstraints(max_length=MAX_ID)]
Words = Annotated[str, StringConstraints(max_length=500)]
Box = Annotated[str, StringConstraints(max_length=100), AfterValidator(_box)]
Day = Annotated[str, StringConstraints(max_length=10)]
K = Annotated[int, Field(ge=1, le=500)]


class FilterParams(BaseModel):
    """Filters on place and time."""

    bbox: Box | None = Field(None, description="West,south,east,north in degrees; west > east across 180°.")
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
        return {"bbox": None if self.bbox is None else bounds_of(_box_edges(self.bbox)), "time": time}


class QueryParams(FilterParams):
    """Criteria that rows are ranked by, and filters."""

    text: Words | None = Field(None, description="Words, such as `river through forest`.")
    negative: list[Words] = Field([], max_length=8, description="Words for what is not wanted; repeatable.")
    id: list[Id] = Field([], max_length=MAX_MARKS, description="An example row; repeatable.")
    unlike: list[Id] = Field([], max_length=MAX_MARKS, description="A negative example row; repeatable.")
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


class Problem(BaseModel):
    """Answer to a request that cannot be served."""

    detail: str


class GeoJSONResponse(JSONResponse):
    """Answer that is a GeoJSON file."""

    media_type = "application/geo+json"


_Answers = dict[int | str, dict[str, Any]]
_BUSY: _Answers = {503: {"description": "Too many connections.", "content": {"text/plain": {}}}}
_REFUSED: _Answers = {400: {"model": Problem, "description": "A request that is not valid."}, **_BUSY}
_UNKNOWN: _Answers = {404: {"model": Problem, "description": "No such row."}, **_REFUSED}


class Searcher:
    """A few searches at a time, each over the rows that are loaded, whatever happens on the disk."""

    def __init__(self) -> None:
        self._slots = anyio.Semaphore(_CONCURRENT_SEARCHES)

    async def run(self, search: Callable[..., SearchResults], **arguments: Any) -> SearchResults:
        """Call `search` or `places` of the index in a thread once a slot is free."""
        async with self._slots:
            return await anyio.to_thread.run_sync(lambda: search(**arguments))


def create_app(folder: Path, allow_hosts: Collection[str] = ()) -> FastAPI:
    """Create the web application over one dataset; `allow_hosts` are names that it answers for, `*` for all.

    Raises:
        RSEmbedError: for a folder without a dataset.
    """
    return _app(EmbeddingIndex(folder), allow_hosts)


def _app(index: EmbeddingIndex, allow_hosts: Collection[str]) -> FastAPI:
    about = f"Search places embedded by {index.request.model}."

    @asynccontextmanager
    async def watch(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        threading.Thread(target=_refresh, args=(index, stop), name="rs-embed-refresh", daemon=True).start()
        yield
        stop.set()

    # the usual pages of documentation come from a CDN
    app = FastAPI(title="rs-embed", description=about, docs_url=None, redoc_url=None, lifespan=watch)
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

    app.add_middleware(HostCheck, names=allow_hosts)
    app.mount("/", StaticFiles(packages=[(__package__, "page")], html=True))
    return app


def _refresh(index: EmbeddingIndex, stop: threading.Event) -> None:
    """Load what was added to the dataset every few seconds. A thread of its own waits for locks, and no search does."""
    while not stop.wait(_REFRESH_S):
        index.refresh()


def _add_searches(app: FastAPI, index: EmbeddingIndex) -> None:
    """Add the routes that search or list rows."""
    searcher = Searcher()

    @app.get("/api/search", responses=_REFUSED)
    async def search(params: Annotated[SearchParams, Query()]) -> dict[str, Any]:
        """Find the rows that resemble words, other rows, both, or a saved concept most."""
        return (await searcher.run(index.search, **params.arguments())).to_dict()

    geojson: _Answers = {200: {"description": "The footprints.", "content": {"application/geo+json": {}}}}

    @app.get("/api/search.geojson", responses={**geojson, **_REFUSED})
    async def download(params: Annotated[SearchParams, Query()]) -> GeoJSONResponse:
        """Return the footprints of the same search as a GeoJSON file."""
        results = await searcher.run(index.search, **params.arguments())
        headers = {"Content-Disposition": 'attachment; filename="hits.geojson"'}
        return GeoJSONResponse(results.to_geojson(), headers=headers)

    @app.get("/api/similar/{id:path}", responses=_UNKNOWN)
    async def similar(id: str, params: Annotated[SimilarParams, Query()]) -> dict[str, Any]:
        """Find the rows that resemble one row most."""
        _unique_id(index, id)
        return (await searcher.run(index.search, id=id, k=params.k, **params.filters())).to_dict()

    @app.get("/api/places", responses=_REFUSED)
    async def places(params: Annotated[PlacesParams, Query()]) -> dict[str, Any]:
        """List rows in the order of the dataset; with words or examples, each has its percentile."""
        return (await searcher.run(index.places, **params.arguments())).to_dict()


def _add_dataset(app: FastAPI, index: EmbeddingIndex) -> None:
    """Add the routes that describe the dataset and its rows."""

    @app.get("/api/dataset", responses=_REFUSED)
    def dataset() -> dict[str, Any]:
        """Describe the dataset: model, size, extent, time range, words, concepts, and what is wrong with its files."""
        return {
            "rows": len(index),
            "model": index.request.model,
            "extent": index.extent,
            "time": index.time_range,
            "suggestions": _suggestions(index),
            "thumbnails": index.request.thumbnails,
            "concepts": index.concepts.names(),
            "problems": index.problems,
        }

    @app.get("/api/problems", responses=_REFUSED)
    def problems() -> dict[str, Any]:
        """Tell what is wrong with the dataset's files at the moment; `/api/dataset` has the same list."""
        return {"problems": index.problems}

    picture: _Answers = {200: {"description": "The picture.", "content": {"image/png": {}}}}

    @app.get("/api/thumbnail/{id:path}", response_class=Response, responses={**picture, **_UNKNOWN})
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


def serve(index: EmbeddingIndex, listener: socket.socket, allow_hosts: Collection[str] = ()) -> None:
    """Serve an index on a listening socket until the process is interrupted."""
    host, port = listener.getsockname()[:2]
    if host not in ("127.0.0.1", "::1"):
        _log.warning("anyone who reaches %s:%s can read this dataset: there is no password", host, port)
    uvicorn.Server(server_config(_app(index, allow_hosts))).run(sockets=[listener])


def server_config(app: FastAPI) -> uvicorn.Config:
    """Return the server's options, with which nobody can hold it by many or idle connections."""
    return uvicorn.Config(
        app,
        http=BoundedConnection,
        ws="none",
        limit_concurrency=CONNECTIONS,
        log_level="warning",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
    )


def _suggestions(index: EmbeddingIndex) -> Sequence[str]:
    """Return words for a first query; all of them if the model's text side cannot be loaded (a search will say why)."""
    try:
        return known_words(index.weights.texts())
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
