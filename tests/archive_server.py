"""A Sentinel-2 archive on loopback: COGs behind a server with ranges, and a real STAC API over their items."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.shutil import copy as copy_raster

BANDS = {"red": "B04", "green": "B03", "blue": "B02"}


@dataclass
class FileServer:
    """Serves a folder with ranges, counts what is asked, and misbehaves on demand."""

    root: Path
    url: str = ""
    delay_s: float = 0.0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(path, range) to how often it was answered well."""
    queries: list[str] = field(default_factory=list)
    error_share: float = 0.0
    reset_share: float = 0.0
    corrupt_share: float = 0.0
    status_of: dict[str, list[int]] = field(default_factory=dict)
    """Path ending to statuses that are answered before the file is."""
    instead: dict[str, Path] = field(default_factory=dict)
    """Path to the file that is answered in its place."""
    retry_after: str = "1"
    """Header of the answers 429 and 503."""
    token: str | None = None
    """Only addresses with this token are answered."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve_files(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as real servers do; else each answer waits 40 ms for an acknowledgement

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            time.sleep(server.delay_s)
            file = server.root / urlsplit(self.path).path.lstrip("/")
            self.send_response(200 if file.is_file() else 404)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(file.stat().st_size if file.is_file() else 0))
            self.end_headers()

        def do_GET(self) -> None:
            time.sleep(server.delay_s)
            parts = urlsplit(self.path)
            with server.lock:
                server.queries.append(parts.query)
                chance = server.chance.random()
                planned = next((s for end, s in server.status_of.items() if parts.path.endswith(end) and s), [])
                status = planned.pop(0) if planned else 0
            if status or chance < server.error_share:
                self._send(status or 500, b"", {"Retry-After": server.retry_after} if status in (429, 503) else {})
                return
            if chance < server.error_share + server.reset_share:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if server.token is not None and parts.query != server.token:
                self._send(403, b"", {})
                return
            self._file(parts.path, corrupt=chance > 1 - server.corrupt_share)

        def _file(self, path: str, corrupt: bool) -> None:
            file = server.instead.get(path, server.root / path.lstrip("/"))
            if not file.is_file():
                self._send(404, b"", {})
                return
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            size = file.stat().st_size
            start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
            with file.open("rb") as stream:
                stream.seek(start)
                body = stream.read(stop - start)
            if corrupt and start > 0:
                body = body[:100] + bytes(len(body) - 100)
            else:
                with server.lock:
                    server.requests[path, f"{start}-{stop}"] += 1
            self._send(206 if wanted else 200, body, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass  # the client went away, which is what some tests are about

    running = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{running.server_port}"
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()


@contextmanager
def serve_stac(items: Path) -> Iterator[str]:
    """`rustac serve` over an item collection; yields the API's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "rustac"), "serve", str(items), "--addr", f"127.0.0.1:{port}"]
    with subprocess.Popen(
        [*command, "--create-collections"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@dataclass
class Api:
    """A STAC API that answers every search with the same items, after the refusals that are planned."""

    items: list[dict[str, object]]
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses and headers that are answered first, to searches alone."""
    searched_at: list[float] = field(default_factory=list)
    url: str = ""
    shown_at: str = ""
    """Address in its links, where it is another one."""


@contextmanager
def serve_api(api: Api) -> Iterator[Api]:
    """`Api` on loopback, for what a real server does not do on demand."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in ("core", "item-search")]
            kind = {"type": "application/geo+json", "method": "POST"}
            url = api.shown_at or api.url
            links = [{"rel": "search", "href": f"{url}/search"} | kind, {"rel": "root", "href": url}]
            landing = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "api"}
            self._send(200, landing | {"conformsTo": conforms, "links": links}, {})

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            api.searched_at.append(time.monotonic())
            if api.refusals:
                status, headers = api.refusals.pop(0)
                self._send(status, {"detail": "refused"}, headers)
            else:
                self._send(200, {"type": "FeatureCollection", "features": api.items, "links": []}, {})

        def _send(self, status: int, document: object, headers: dict[str, str]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            for key, value in (headers | {"Content-Type": "application/json"}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, daemon=True).start()
    api.url = f"http://127.0.0.1:{running.server_port}"
    try:
        yield api
    finally:
        running.shutdown()
        running.server_close()


@dataclass(frozen=True)
class Tile:
    """Where a made-up MGRS tile lies."""

    code: str
    epsg: int
    left: float
    top: float
    side_px: int = 1536

    @property
    def transform(self) -> Affine:
        return Affine(10, 0, self.left, 0, -10, self.top)


def write_cog(
    path: Path, values: np.ndarray, transform: Affine, epsg: int, block: int = 512, overviews: str = "NONE"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"count": 1, "height": values.shape[0], "width": values.shape[1], "dtype": values.dtype, "nodata": 0}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", crs=f"EPSG:{epsg}", transform=transform, **profile) as file:
            file.write(values, 1)
        with memory.open() as file:
            options = {"blocksize": block, "compress": "DEFLATE", "predictor": 2, "overviews": overviews}
            options["overview_resampling"] = "NEAREST"  # noise would average out
            copy_raster(file, path, driver="COG", **options)


def write_scene(
    root: Path,
    url: str,
    tile: Tile,
    day: str,
    *,
    seed: int,
    cloud: float = 5.0,
    baseline: str = "05.09",
    collection: str = "sentinel-2-l2a",
    cloudy_share: float = 0.0,
    scl: bool = True,
    block: int = 512,
    darkest: int = 1001,
    overviews: str = "NONE",
) -> dict[str, object]:
    """One scene's files, and its STAC item as Earth Search would write it."""
    rng = np.random.default_rng(seed)
    identifier = f"S2A_T{tile.code}_{day.replace('-', '')}_{collection.split('-')[2]}_{baseline.replace('.', '')}"
    n, assets = tile.side_px, {}
    clouds = rng.random((n // 2, n // 2)) < cloudy_share
    for key, name in BANDS.items():
        values = rng.integers(darkest, darkest + 3000, (n, n)).astype(np.uint16)
        values[np.kron(clouds, np.ones((2, 2), bool))] = 9500
        values[:40, :30] = 0  # outside of the swath
        write_cog(root / identifier / f"{name}.tif", values, tile.transform, tile.epsg, block, overviews)
        assets[key] = {"href": f"{url}/{identifier}/{name}.tif", "type": "image/tiff; application=geotiff"}
    assets["visual"] = {"href": f"{url}/{identifier}/TCI.tif", "eo:bands": [{"name": b} for b in BANDS]}
    assets["red-jp2"] = {"href": f"{url}/{identifier}/B04.jp2", "eo:bands": [{"name": "red"}]}
    if scl:
        classes = np.where(clouds, 9, 4).astype(np.uint8)
        write_cog(root / identifier / "SCL.tif", classes, tile.transform * Affine.scale(2), tile.epsg, block)
        assets["scl"] = {"href": f"{url}/{identifier}/SCL.tif"}
    to_lonlat = Transformer.from_crs(tile.epsg, 4326, always_xy=True)
    right, bottom = tile.left + 10 * n, tile.top - 10 * n
    corners = [(tile.left, bottom), (right, bottom), (right, tile.top), (tile.left, tile.top), (tile.left, bottom)]
    ring = [list(to_lonlat.transform(*corner)) for corner in corners]
    xs, ys = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identifier,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(xs), min(ys), max(xs), max(ys)],
        "properties": {
            "datetime": f"{day}T10:10:31.024Z",
            "eo:cloud_cover": cloud,
            "s2:processing_baseline": baseline,
            "grid:code": f"MGRS-{tile.code}",
            "proj:code": f"EPSG:{tile.epsg}",
            "proj:shape": [n, n],
            "proj:transform": list(tile.transform)[:6],
        },
        "assets": assets,
        "links": [],
    }


def write_items(path: Path, items: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def write_dates(root: Path, url: str, tile: Tile) -> list[dict[str, object]]:
    """Scenes of 3, 13 and 23 June 2022."""
    return [write_scene(root, url, tile, f"2022-06-{day}", seed=i) for i, day in enumerate(("03", "13", "23"))]


@contextmanager
def serve_archive(root: Path, items: list[dict[str, object]], folder: Path) -> Iterator[tuple[str, FileServer]]:
    """The files of items whose addresses begin with `http://files`, and an API over the items; yields its address."""
    with serve_files(FileServer(root)) as files:
        moved = json.loads(json.dumps(items).replace("http://files", files.url))
        with serve_stac(write_items(folder / "items.json", moved)) as api:
            yield api, files
