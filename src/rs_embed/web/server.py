"""The HTTP API over one dataset (search, similar places, all places, thumbnails) and its page. Nothing else is read."""

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
from rs_embed.search.results import Found
from rs_embed.specs import BBox, TemporalSpec

MAX_TEXT = 500
MAX_WORDS = 8
MAX_MARKS = 50
MAX_K = 500
MAX_PLACES = 20_000
MAX_ID = 200
_LOOK_EVERY_S = 3.0
_BUSY = 4
"""Searches at a time; others wait."""
BASEMAP = "https://tile.openstreetmap.org"
"""Where the page takes its basemap from once a person switches it on; nothing else leaves this machine."""
_POLICY = (
    f"default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self' 'unsafe-inline'; "
    f"img-src 'self' data: blob: {BASEMAP}; connect-src 'self' {BASEMAP}; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_log = logging.getLogger("rs_embed")

Id = Annotated[str, StringConstraints(max_length=MAX_ID)]
Words = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Box = Annotated[str | None, Query(max_length=100, description="West,south,east,north in degrees.")]
Day = Annotated[str | None, Query(max_length=10, description="YYYY-MM-DD; both or none.")]
K = Annotated[int, Query(ge=1, le=MAX_K)]


class Terms(BaseModel):
    """What rows are ranked by, and among which."""

    text: Words | None = Field(None, description="Words, such as `river through forest`.")
    negative: list[Words] = Field([], max_length=MAX_WORDS, description="What is not wanted; may be repeated.")
    id: list[Id] = Field([], max_length=MAX_MARKS, description="A row as the example; may be repeated.")
    unlike: list[Id] = Field([], max_length=MAX_MARKS, description="A row that is not meant; may be repeated.")
    concept: Id | None = Field(None, description="What `EmbeddingIndex.train` saved.")
    bbox: Box = None
    start: Day = None
    end: Day = None

    def facts(self) -> dict[str, Any]:
        """As an index takes them."""
        terms = self.model_dump(include={"text", "negative", "id", "unlike", "concept"})
        return terms | {"bbox": _box(self.bbox), "time": _time(self.start, self.end)}


class Question(Terms):
    """A search."""

    k: K = 20

    def put_to(self, index: EmbeddingIndex) -> Found:
        """The answer."""
        return index.search(**self.facts(), k=self.k)


class Listing(Terms):
    """Rows in their own order; with terms, each with its percentile."""

    limit: Annotated[int, Field(ge=1, le=MAX_PLACES)] = 1000
    offset: Annotated[int, Field(ge=0)] = 0
    spread: bool = Field(False, description="Of more than `limit`, some from everywhere.")

    def put_to(self, index: EmbeddingIndex) -> Found:
        """The rows."""
        return index.places(**self.facts(), limit=self.limit, offset=self.offset, spread=self.spread)


def create_app(folder: Path) -> FastAPI:
    """The service over one dataset.

    Raises:
        RSEmbedError: when the folder holds none.
    """
    return app_of(EmbeddingIndex(folder))


def app_of(index: EmbeddingIndex) -> FastAPI:
    """The service over an index; rows that are added to the dataset meanwhile are seen within seconds."""
    about = f"Search places embedded by {index.request.model}."
    app = FastAPI(title="rs-embed", description=about, docs_url=None, redoc_url=None)  # those pages come from a CDN
    busy, looked = anyio.Semaphore(_BUSY), [time.monotonic()]

    def fresh(question: Callable[[], Found]) -> Found:
        if time.monotonic() - looked[0] > _LOOK_EVERY_S:
            looked[0] = time.monotonic()
            index.refresh()
        return question()

    async def ask(question: Callable[[], Found]) -> Found:
        async with busy:
            return await anyio.to_thread.run_sync(fresh, question)

    @app.get("/api/search")
    async def search(question: Annotated[Question, Query()]) -> dict[str, Any]:
        """The rows most like some words, or other rows, or both, or a saved concept."""
        return (await ask(lambda: question.put_to(index))).facts()

    @app.get("/api/search.geojson")
    async def download(question: Annotated[Question, Query()]) -> JSONResponse:
        """The same as a GeoJSON file of footprints."""
        found = await ask(lambda: question.put_to(index))
        headers = {"Content-Disposition": 'attachment; filename="hits.geojson"'}
        return JSONResponse(found.to_geojson(), media_type="application/geo+json", headers=headers)

    @app.get("/api/similar/{id:path}")
    async def similar(id: str, bbox: Box = None, start: Day = None, end: Day = None, k: K = 20) -> dict[str, Any]:
        """The rows most like another one."""
        _row(index, id)
        box, days = _box(bbox), _time(start, end)
        return (await ask(lambda: index.search(id=id, bbox=box, time=days, k=k))).facts()

    @app.get("/api/places")
    async def places(listing: Annotated[Listing, Query()]) -> dict[str, Any]:
        """Rows in the order of the dataset; with words or examples, how well each of them answers."""
        return (await ask(lambda: listing.put_to(index))).facts()

    @app.get("/api/dataset")
    def dataset() -> dict[str, Any]:
        """What is searched: its model, size, extent and time range, words to begin with, saved concepts."""
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
        """A row's quicklook, PNG."""
        unique_id = _row(index, id)
        png = index.thumbnails([unique_id]).get(unique_id)
        if png is None:
            raise HTTPException(404, f"the dataset has no thumbnail of {id!r}")
        return Response(png, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    @app.exception_handler(RSEmbedError)
    async def refused(request: Request, error: RSEmbedError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    app.mount("/", StaticFiles(packages=[(__package__, "page")], html=True))
    return app


def map_is_there() -> bool:
    """Whether the page's third-party JavaScript was built into this installation."""
    return (resources.files(__package__) / "page" / "vendor" / "maplibre-gl.mjs").is_file()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound.

    Raises:
        RSEmbedError: when it cannot be.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise RSEmbedError(f"{host}:{port} cannot be listened on ({reason}): take another --port") from None
    # connections inherit it (asyncio would set it only where a socket names its protocol): else an answer takes 40 ms
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(index: EmbeddingIndex, listener: socket.socket) -> None:
    """Run until it is interrupted."""
    host, port = listener.getsockname()[:2]
    if host not in ("127.0.0.1", "::1"):
        _log.warning("anyone who reaches %s:%s can read this dataset: there is no password", host, port)
    server = uvicorn.Server(uvicorn.Config(app_of(index), log_level="warning", timeout_keep_alive=5))
    server.run(sockets=[listener])


def _suggestions(index: EmbeddingIndex) -> Sequence[str]:
    """Words to begin with; all of them where the model's text side cannot be loaded (a search will say why)."""
    try:
        return known_words(index.request.model, index.request.checkpoint)
    except RSEmbedError:
        return background_words()


def _row(index: EmbeddingIndex, id: str) -> str:
    """The `unique_id` of a row by one of its names; 404 when there is none."""
    if len(id) > MAX_ID:
        raise HTTPException(404, f"the dataset has no row of a name of {len(id)} characters")
    try:
        return index.unique_id(id)
    except RSEmbedError as error:
        raise HTTPException(404, str(error)) from None


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
