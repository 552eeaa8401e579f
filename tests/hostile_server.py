"""A STAC API and its files on one loopback server, whose every answer a test may replace."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class Answering(BaseHTTPRequestHandler):
    """One request, with helpers for hooks."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.start(status, len(body), **headers)
        self.wfile.write(body)

    def start(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def reply_json(self, document: object) -> None:
        self.reply(200, json.dumps(document).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        world, path = self.server.world, urlsplit(self.path).path
        if path == "/":
            self.reply_json(world.landing_page())
        elif path == "/search":
            world.searches += 1
            if world.on_search is None:
                self.reply_json({"type": "FeatureCollection", "features": world.items, "links": []})
            else:
                world.on_search(self)
        else:
            self._file(path)

    def _file(self, path: str) -> None:
        world, file = self.server.world, self.server.world.root / path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not file.is_file() or wanted is None:
            self.reply(404)
            return
        data = file.read_bytes()
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        if world.on_file is None or not world.on_file(self, path, start, data[start:stop], len(data)):
            self.reply(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    world: World

    def handle_error(self, *_: object) -> None:
        pass  # the client gave up, which is what the tests are about


@dataclass
class World:
    """What the server has, and what replaces its answers."""

    root: Path
    items: list[dict[str, Any]] = field(default_factory=list)
    on_search: Callable[[Answering], None] | None = None
    on_file: Callable[[Answering, str, int, bytes, int], bool] | None = None
    """Called with path, start, bytes and size of the file; returns True once it has answered."""
    searches: int = 0
    url: str = ""

    def landing_page(self) -> dict[str, Any]:
        links = [{"rel": rel, "href": f"{self.url}/"} for rel in ("self", "root")]
        search = {"rel": "search", "type": "application/geo+json", "href": f"{self.url}/search", "method": "POST"}
        core = "https://api.stacspec.org/v1.0.0"
        return {
            "type": "Catalog",
            "id": "world",
            "stac_version": "1.0.0",
            "description": "a world",
            "conformsTo": [f"{core}/core", f"{core}/item-search"],
            "links": [*links, search],
        }


@contextmanager
def serve_world(world: World) -> Iterator[World]:
    server = _Server(("127.0.0.1", 0), Answering)
    server.world = world
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world.url = f"http://127.0.0.1:{server.server_port}"
    world.items = json.loads(json.dumps(world.items).replace("http://world", world.url))
    try:
        yield world
    finally:
        server.shutdown()
        server.server_close()


# --- answers below HTTP's rules, for any handler -----------------------------------------------------------

CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"


def endless(handler: BaseHTTPRequestHandler) -> None:
    begin(handler, b"Transfer-Encoding: chunked")
    while True:
        handler.wfile.write(CHUNK)


def drip(handler: BaseHTTPRequestHandler) -> None:
    begin(handler, b"Content-Length: 1000000")
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


def drip_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.1)


def begin(handler: BaseHTTPRequestHandler, *headers: bytes, status: bytes = b"200 OK") -> None:
    handler.close_connection = True
    handler.wfile.write(b"\r\n".join((b"HTTP/1.1 " + status, *headers, b"Connection: close", b"", b"")))


def send(handler: BaseHTTPRequestHandler, body: bytes, *headers: bytes) -> None:
    begin(handler, b"Content-Length: %d" % len(body), *headers)
    handler.wfile.write(body)


def redirect(handler: BaseHTTPRequestHandler, target: str) -> None:
    begin(handler, b"Location: " + target.encode(), b"Content-Length: 0", status=b"307 Temporary Redirect")
