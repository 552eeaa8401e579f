"""Small real things for tests: networks with random weights, rasters, providers, a hub on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
from affine import Affine

from rs_embed.clip.model import Activation, ClipConfig, TextConfig, TextTower, VisionConfig, VisionTower, initialise
from rs_embed.errors import NoImageryError, ProviderError
from rs_embed.patch import Patch, SceneRecord
from rs_embed.providers.base import FetchPlan, PatchRequest

SMALL = ClipConfig(
    vision=VisionConfig(width=64, layers=2, heads=1, patch_px=32, image_px=224),
    text=TextConfig(width=64, layers=2, heads=1, context=77, vocabulary=49_408),
    projection=32,
)
SMALL_JSON = {"model_name": "small", "vision_cfg": {"heads": 1}, "text_cfg": {"heads": 1}}


def towers(config: ClipConfig = SMALL, seed: int = 0) -> tuple[VisionTower, TextTower]:
    """Both towers with random weights, ready to use."""
    vision = VisionTower(config.vision, config.projection, config.activation)
    text = TextTower(config.text, config.projection, config.activation)
    initialise(vision, seed)
    initialise(text, seed + 1)
    return vision.requires_grad_(False).eval(), text.requires_grad_(False).eval()


def state_dict(config: ClipConfig = SMALL, seed: int = 0, prefix: str = "") -> dict[str, object]:
    """Both towers as one state dict with open_clip's names."""
    vision, text = towers(config, seed)
    names = {f"visual.{k}": v for k, v in vision.state_dict().items()} | dict(text.state_dict())
    return {f"{prefix}{k}": v.contiguous() for k, v in names.items()}


def small_config(activation: Activation = "gelu") -> ClipConfig:
    return ClipConfig(vision=SMALL.vision, text=SMALL.text, projection=SMALL.projection, activation=activation)


def write_checkpoint(folder: Path, config: ClipConfig = SMALL, seed: int = 0, prefix: str = "model.") -> Path:
    """A hub-mixin checkpoint folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(state_dict(config, seed, prefix), folder / "model.safetensors")  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps(SMALL_JSON))
    return folder


def write_raster(
    path: Path,
    values: np.ndarray,
    *,
    transform: Affine,
    crs: str = "EPSG:32633",
    nodata: float | None = None,
    descriptions: Sequence[str] = (),
    scale: float | None = None,
    offset: float | None = None,
    mask: np.ndarray | None = None,
) -> Path:
    """A GeoTIFF of (bands, y, x)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", crs=crs, transform=transform, nodata=nodata, **profile) as file,
    ):
        file.write(values)
        for index, name in enumerate(descriptions, start=1):
            file.set_band_description(index, name)
        if scale is not None:
            file.scales = [scale] * bands
        if offset is not None:
            file.offsets = [offset] * bands
        if mask is not None:
            file.write_mask(mask)
    return path


@dataclass
class FakeProvider:
    """Answers from the place's own grid: flat patches whose DN tell which place they are."""

    name: str = "fake"
    failing: Mapping[int, Exception] = field(default_factory=dict)
    delay_s: float = 0.0
    backwards: bool = False
    dn: np.ndarray | None = None
    """The pixels of every place, instead of a texture of its own."""
    asked: list[PatchRequest] = field(default_factory=list)
    yielded_at: list[float] = field(default_factory=list)

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        order = range(len(requests) - 1, -1, -1) if self.backwards else range(len(requests))
        for position in order:
            self.asked.append(requests[position])
            time.sleep(self.delay_s)
            self.yielded_at.append(time.perf_counter())
            error = self.failing.get(position)
            if isinstance(error, ProviderError):
                yield position, error
            elif error is not None:
                raise error
            else:
                yield position, patch_of(requests[position], **({} if self.dn is None else {"dn": self.dn}))

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        return FetchPlan(scenes_of=(1,) * len(requests), covered=(1.0,) * len(requests), read_bytes=0)


def patch_of(request: PatchRequest, **changes: object) -> Patch:
    """Pixels that depend on the place alone: a texture seeded by its grid."""
    seed = abs(hash((request.geobox.affine.c, request.geobox.affine.f))) % 2**32
    dn = np.random.default_rng(seed).integers(1, 4000, (3, *request.geobox.shape)).astype(np.float32)
    scene = SceneRecord(
        id="S2A_FAKE",
        datetime="2022-06-03T10:00:00Z",
        cloud_pct=1.0,
        processing_baseline="04.00",
        dn_offset=-1000.0,
        dn_offset_reason="fake",
    )
    facts = {
        "dn": dn,
        "geobox": request.geobox,
        "bands": request.sensor.bands,
        "source": "fake",
        "scenes": (scene,) * 3,
    }
    return Patch(**(facts | changes))  # type: ignore[arg-type]


NO_IMAGERY = NoImageryError("fake: 0 scenes before and after the cloud filter")


@dataclass
class Hub:
    """A model hub: what it serves, what it answers with, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By name in the one repo."""
    repo: str = "owner/small"
    status: int | None = None
    """Answer everything with this."""
    cut: int = 0
    """Send this many bytes less than announced."""
    private: bool = False
    silent_s: float = 0.0
    """Wait before any answer."""
    answer: Callable[[BaseHTTPRequestHandler, str], bool] | None = None
    """Called with each request and its path; returns True once it has answered."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that it states, where they are not those of the files."""
    etag: str | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""
    commit: str = "a" * 40


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    """Serve the hub's API on loopback, as its real client asks for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            time.sleep(hub.silent_s)
            if hub.answer is not None and hub.answer(self, path):
                return
            if hub.status is not None:
                self._send(hub.status, b"{}", {}, with_body)
            elif hub.private:
                self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            elif path.startswith("/api/models/"):
                self._api(path, with_body)
            else:
                self._file(path, with_body)

        def _api(self, path: str, with_body: bool) -> None:
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if repo != hub.repo:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            elif revision not in ("", "main", "v1", hub.commit):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
            else:
                siblings = [
                    {"rfilename": name, "size": hub.sizes.get(name, len(body))} for name, body in hub.files.items()
                ]
                body = {"id": repo, "modelId": repo, "sha": hub.commit, "siblings": siblings, "private": False}
                self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"}, with_body)

        def _file(self, path: str, with_body: bool) -> None:
            name = path.partition("/resolve/")[2].partition("/")[2]
            body = hub.files.get(name)
            if body is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
                return
            headers = {
                "ETag": hub.etag or f'"{sha256(body).hexdigest()}"',
                "X-Repo-Commit": hub.commit,
                "Accept-Ranges": "bytes",
            }
            cut = hub.cut if name.endswith("safetensors") else 0
            wanted = self.headers.get("Range", "")
            if not wanted:
                self._send(200, body, headers, with_body, cut)
                return
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self._send(206, body[start:], headers, with_body, cut)

        def _send(self, status: int, body: bytes, headers: Mapping[str, str], with_body: bool, cut: int = 0) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if with_body:
                self.wfile.write(body[: max(0, len(body) - cut)])
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
