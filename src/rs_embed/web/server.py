"""HTTP API over one dataset (search, places, thumbnails, concepts), the towns around it, and its page.

Nothing else is read, and nothing is written but concepts, where `serve` was started with `--save-concepts`.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from rs_embed.errors import RSEmbedError
from rs_embed.search.concepts import Concept
from rs_embed.search.index import EmbeddingIndex
from rs_embed.search.results import SearchResults
from rs_embed.specs import bounds_of
from rs_embed.web.gazetteer import Town, gazetteer
from rs_embed.web.guards import CONNECTIONS, BoundedConnection, HostCheck
from rs_embed.web.params import (
    MAX_ID,
    ConceptParams,
    PlacesParams,
    PointParams,
    SearchParams,
    SimilarParams,
    TownParams,
    box_edges,
)
from rs_embed.web.suggestions import Suggestions, readable_words
from rs_embed.web.tables import csv_of

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

    async def named(self, search: Callable[..., SearchResults], **arguments: Any) -> dict[str, Any]:
        """Return results as JSON-ready values, each hit with its distance from the nearest town as `near`."""
        found = (await self.run(search, **arguments)).to_dict()
        rows = found["results"]
        names = await anyio.to_thread.run_sync(
            lambda: gazetteer().near(*([r[n] for r in rows] for n in ("lon", "lat")))
        )
        return found | {"results": [row | {"near": near} for row, near in zip(rows, names, strict=True)]}


def create_app(folder: Path, allow_hosts: Collection[str] = (), *, save_concepts: bool = False) -> FastAPI:
    """Create the web application over one dataset; `allow_hosts` are names that it answers for, `*` for all.

    With `save_concepts`, concepts that the page learns are saved beside the dataset.

    Raises:
        RSEmbedError: for a folder without a dataset.
    """
    return _app(EmbeddingIndex(folder), allow_hosts, save_concepts)


def _app(index: EmbeddingIndex, allow_hosts: Collection[str], save_concepts: bool) -> FastAPI:
    about = f"Search places embedded by {index.request.model}."

    @asynccontextmanager
    async def watch(app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        threading.Thread(target=_refresh, args=(index, stop), name="rs-embed-refresh", daemon=True).start()
        threading.Thread(target=gazetteer, name="rs-embed-towns", daemon=True).start()  # before the first search
        yield
        stop.set()

    # the usual pages of documentation come from a CDN
    app = FastAPI(title="rs-embed", description=about, docs_url=None, redoc_url=None, lifespan=watch)
    _add_searches(app, index)
    _add_dataset(app, index, save_concepts)
    _add_concepts(app, index, save_concepts)
    _add_towns(app)

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
        return await searcher.named(index.search, **params.arguments())

    geojson: _Answers = {200: {"description": "The footprints.", "content": {"application/geo+json": {}}}}

    @app.get("/api/search.geojson", responses={**geojson, **_REFUSED})
    async def download(params: Annotated[SearchParams, Query()]) -> GeoJSONResponse:
        """Return the footprints of the same search as a GeoJSON file."""
        results = await searcher.run(index.search, **params.arguments())
        headers = {"Content-Disposition": 'attachment; filename="hits.geojson"'}
        return GeoJSONResponse(results.to_geojson(), headers=headers)

    table: _Answers = {200: {"description": "The table.", "content": {"text/csv": {}}}}

    @app.get("/api/search.csv", response_class=Response, responses={**table, **_REFUSED})
    async def spreadsheet(params: Annotated[SearchParams, Query()]) -> Response:
        """Return the same search as a table for a spreadsheet."""
        found = await searcher.named(index.search, **params.arguments())
        headers = {"Content-Disposition": 'attachment; filename="hits.csv"'}
        return Response(csv_of(found["results"]), media_type="text/csv; charset=utf-8", headers=headers)

    @app.get("/api/similar/{id:path}", responses=_UNKNOWN)
    async def similar(id: str, params: Annotated[SimilarParams, Query()]) -> dict[str, Any]:
        """Find the rows that resemble one row most."""
        _unique_id(index, id)
        return await searcher.named(index.search, id=id, k=params.k, **params.filters())

    @app.get("/api/places", responses=_REFUSED)
    async def places(params: Annotated[PlacesParams, Query()]) -> dict[str, Any]:
        """List rows in the order of the dataset; with words or examples, each has its percentile."""
        return (await searcher.run(index.places, **params.arguments())).to_dict()


def _add_dataset(app: FastAPI, index: EmbeddingIndex, save_concepts: bool) -> None:
    """Add the routes that describe the dataset and its rows."""
    suggestions = Suggestions(index)

    @app.get("/api/dataset", responses=_REFUSED)
    def dataset() -> dict[str, Any]:
        """Describe the dataset: model, size, extent, time range, words, concepts, and what is wrong with its files."""
        return {
            "rows": len(index),
            "model": index.request.model,
            "extent": index.extent,
            "dense_extent": index.dense_extent,
            "time": index.time_range,
            "words": readable_words(index),
            "thumbnails": index.request.thumbnails,
            "concepts": index.concepts.names(),
            "saves_concepts": save_concepts,
            "problems": index.problems,
        }

    @app.get("/api/suggestions", responses=_REFUSED)
    def suggest() -> dict[str, Any]:
        """List some words that occur in the dataset, each with the row that shows it best."""
        return {"suggestions": suggestions.get()}

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


def _add_concepts(app: FastAPI, index: EmbeddingIndex, save_concepts: bool) -> None:
    """Add the routes that learn a concept from marks."""

    def learn(params: ConceptParams, *, save: bool) -> Concept:
        return index.train(params.id, params.unlike, name=params.name, text=params.text or None, save=save)

    @app.get("/api/concept", response_class=Response, responses=_REFUSED)
    def download(params: Annotated[ConceptParams, Query()]) -> Response:
        """Return a concept as the file that `search` reads from the folder `concepts` of the dataset."""
        concept = learn(params, save=False)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(concept.name)}.json"}
        return Response(concept.to_json(), media_type="application/json", headers=headers)

    closed: _Answers = {
        403: {"model": Problem, "description": "The service only reads, or another site asked."},
        409: {"model": Problem, "description": "There is a concept of that name."},
        413: {"model": Problem, "description": "A request that is too long, or does not say its length."},
    }

    @app.post("/api/concept", status_code=201, responses={**closed, **_REFUSED})
    def save(params: ConceptParams) -> dict[str, Any]:
        """Save a concept beside the dataset, where the service was started with `--save-concepts`."""
        if not save_concepts:
            raise HTTPException(403, "this service only reads: start it with --save-concepts, or download the concept")
        if params.name in index.concepts.names():
            raise HTTPException(409, f"there is a concept {params.name!r}: take another name")
        return {"name": learn(params, save=True).name}


def _add_towns(app: FastAPI) -> None:
    """Add the routes that know towns, of this installation and without a network."""

    @app.get("/api/gazetteer", responses=_REFUSED)
    def towns(params: Annotated[TownParams, Query()]) -> dict[str, list[Town]]:
        """List towns by the beginning of their name in any language, or the largest ones in a box."""
        if params.bbox is not None:
            return {"towns": gazetteer().within(bounds_of(box_edges(params.bbox)), params.limit)}
        return {"towns": gazetteer().named(params.name, params.limit)}

    @app.get("/api/gazetteer/near", responses=_REFUSED)
    def near(params: Annotated[PointParams, Query()]) -> dict[str, str | None]:
        """Return the distance and direction of a point from the nearest town."""
        [words] = gazetteer().near([params.lon], [params.lat])
        return {"near": words}


def has_page_files() -> bool:
    """Return True if the page's third-party files were built into this installation."""
    return (resources.files(__package__) / "page" / "vendor" / "made-of.txt").is_file()


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


def serve(
    index: EmbeddingIndex, listener: socket.socket, allow_hosts: Collection[str] = (), *, save_concepts: bool = False
) -> None:
    """Serve an index on a listening socket until the process is interrupted; `create_app` has the options."""
    host, port = listener.getsockname()[:2]
    if host not in ("127.0.0.1", "::1"):
        _log.warning("anyone who reaches %s:%s can read this dataset: there is no password", host, port)
    uvicorn.Server(server_config(_app(index, allow_hosts, save_concepts))).run(sockets=[listener])


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


def _unique_id(index: EmbeddingIndex, id: str) -> str:
    """Return the `unique_id` of a row by one of its ids, or answer 404."""
    if len(id) > MAX_ID:
        raise HTTPException(404, f"the dataset has no row of a name of {len(id)} characters")
    try:
        return index.unique_id(id)
    except RSEmbedError as error:
        raise HTTPException(404, str(error)) from None
