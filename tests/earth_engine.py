"""Loopback Earth Engine, which evaluates the expressions that the real client sends, over scenes on disk.

It is **our model of the service**, written from its documentation (developers.google.com/earth-engine), not a recording
of it. It models the filtering, masking, reduction and gridding of images, the size limits and their error messages. The
discovery document and the list of algorithms come from the client's package. A function that our requests do not use is
refused by name.
"""

from __future__ import annotations

import io
import json
import operator
import re
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import Polygon, box, mapping

from local_archive import read_onto
from rs_embed.outlines import split
from rs_embed.providers.compositing import harmonise
from rs_embed.providers.local.provider import LocalProvider
from rs_embed.providers.scenes import Scene
from rs_embed.sentinel2 import processing_baseline

_KINDS = {"Float": "f4", "Uint8": "u1", "Uint16": "u2", "Uint32": "u4"}
COLLECTION = "COPERNICUS/S2_SR_HARMONIZED"
MAX_BYTES, MAX_SIDE, MAX_ELEMENTS, MAX_IN_FLIGHT = 50_331_648, 32_768, 5000, 40


class Refused(Exception):
    """Refusal of a request, with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Band:
    """Values on the requested grid, and their mask: 0 to 1, fractional where overviews were averaged."""

    values: np.ndarray
    mask: np.ndarray


@dataclass
class Picture:
    """Image with named bands; `scene` is set for an image of the collection."""

    bands: dict[str, Band]
    scene: Scene | None = None
    index: str = ""


@dataclass
class Feature:
    geometry: Any
    properties: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass
class Function:
    """Function of an expression, with its argument names."""

    arguments: list[str]
    body: str


class Service:
    """Evaluator of expressions over scenes."""

    def __init__(self, folder: Path) -> None:
        self.scenes: dict[str, Scene] = {}
        for scene in LocalProvider(folder).scenes:
            self.scenes[index_of(scene, taken=self.scenes)] = scene
        self.max_elements, self.max_bytes = MAX_ELEMENTS, MAX_BYTES
        self.partly = 1.0
        """Mask value of observed pixels; below 1, it is that of averaged overviews at the edge of the observed area."""

    # --- evaluation: a node with bound names, on a grid (None if no pixels are requested)

    def evaluate(self, expression: dict[str, Any], grid: GeoBox | None) -> Any:
        values, memo = expression["values"], {}

        def value(node: Any, names: dict[str, Any]) -> Any:
            ((kind, what),) = node.items()
            if kind == "constantValue":
                return what
            if kind == "valueReference":
                if names:
                    return value(values[what], names)
                if what not in memo:
                    memo[what] = value(values[what], names)
                return memo[what]
            if kind == "argumentReference":
                return names[what]
            if kind == "arrayValue":
                return [value(v, names) for v in what["values"]]
            if kind == "dictionaryValue":
                return {k: value(v, names) for k, v in what["values"].items()}
            if kind == "functionDefinitionValue":
                return lambda *given: value(
                    values[what["body"]], {**names, **dict(zip(what["argumentNames"], given, strict=True))}
                )
            if kind == "functionInvocationValue":
                name = what["functionName"]
                arguments = {k: value(v, names) for k, v in what["arguments"].items()}
                function = self._functions(grid).get(name)
                if function is None:
                    raise Refused(400, f"this loopback Earth Engine has no function {name}({', '.join(arguments)})")
                return function(**arguments)
            raise Refused(400, f"this loopback Earth Engine knows no {kind}")

        return value({"valueReference": expression["result"]}, {})

    def _functions(self, grid: GeoBox | None) -> dict[str, Callable[..., Any]]:
        return {
            "ImageCollection.load": lambda id: list(self._collection(id)),
            "Collection.filter": lambda collection, filter: [e for e in collection if filter(e)],
            "Collection.map": lambda collection, baseAlgorithm: [_named(baseAlgorithm(e), e) for e in collection],
            "Filter.intersects": lambda leftField, rightValue: lambda e: _outline(e).intersects(rightValue.geometry),
            "Filter.dateRangeContains": lambda leftValue, rightField: (
                lambda e: leftValue[0] <= properties(e)[rightField] < leftValue[1]
            ),
            "DateRange": lambda start, end: (_milliseconds(start), _milliseconds(end)),
            "GeometryConstructors.Polygon": lambda coordinates, **_: split(Polygon(coordinates[0])),
            "Feature": lambda geometry, metadata=None: Feature(geometry, metadata or {}),
            "Image.geometry": lambda feature, **_: _outline(feature),
            "Element.copyProperties": lambda destination, source, properties: _copied(destination, source, properties),
            "Image.load": lambda id: self._image(id),
            "Image.select": lambda input, bandSelectors, newNames=None: self._select(
                input, bandSelectors, newNames, grid
            ),
            "Image.mask": lambda image: _each(image, lambda b: Band(b.mask, np.ones_like(b.mask))),
            "Image.updateMask": lambda image, mask: _each(
                image, lambda b: Band(b.values, np.minimum(b.mask, _only(mask).values * _only(mask).mask))
            ),
            "Image.unmask": lambda input, value=None: _each(
                input,
                lambda b: Band(
                    np.where(b.mask > 0, b.values, _only(value or _constant(0, grid)).values), np.ones_like(b.mask)
                ),
            ),
            "Image.constant": lambda value: _constant(value, grid),
            "Image.remap": lambda image, **given: _each(image, lambda b: _remapped(b, **given)),
            "Image.and": lambda image1, image2: _both(image1, image2, lambda a, b: ((a != 0) & (b != 0)).astype(float)),
            "Image.gt": lambda image1, image2: _both(image1, image2, lambda a, b: (a > b).astype(float)),
            "Image.multiply": lambda image1, image2: _both(image1, image2, operator.mul),
            "Image.rename": lambda input, names: Picture(dict(zip(_listed(names), input.bands.values(), strict=True))),
            "Image.addBands": lambda dstImg, srcImg: Picture(_joined(dstImg.bands, srcImg.bands)),
            "Image.reduce": lambda image, reducer: Picture({reducer.__name__: reducer(list(image.bands.values()))}),
            "Reducer.min": lambda: least,
            "ImageCollection.fromImages": lambda images: images,
            "reduce.median": lambda collection: _over(collection, _median),
            "reduce.sum": lambda collection: _over(collection, _sum),
            "ImageCollection.mosaic": lambda collection: _over(collection, _on_top),
            **{
                f"Image.to{k}": _cast(t)
                for k, t in (("Float", "f4"), ("Uint8", "u1"), ("Uint16", "u2"), ("Uint32", "u4"))
            },
        }

    def _collection(self, id: str) -> Iterator[Picture]:
        if id != COLLECTION:
            raise Refused(404, f"ImageCollection.load: ImageCollection asset '{id}' not found.")
        return (Picture({}, scene, index) for index, scene in self.scenes.items())

    def _image(self, id: str) -> Picture:
        index = id.removeprefix(f"{COLLECTION}/")
        scene = self.scenes.get(index)
        if scene is None:
            raise Refused(
                404, f"Image.load: Image asset '{id}' not found (does not exist or caller does not have access)."
            )
        return Picture({}, scene, index)

    def _select(self, image: Picture, selectors: list[Any], names: list[str] | None, grid: GeoBox | None) -> Picture:
        if grid is None:
            raise Refused(400, "pixels are needed where no grid was given")
        own = list(image.bands)
        wanted = [own[s] if isinstance(s, int) else s for s in selectors]
        found = [image.bands[n] if image.scene is None else self._read(image.scene, n, grid) for n in wanted]
        return Picture(dict(zip(names or wanted, found, strict=True)))

    def _read(self, scene: Scene, name: str, grid: GeoBox) -> Band:
        """Return a band of a scene on the grid by nearest neighbour, like the service without resample()."""
        if name not in scene.files:
            raise Refused(
                400, f"Image.select: Band pattern '{name}' did not match any bands. Available: {list(scene.files)}"
            )
        file = scene.files[name]
        read = read_onto(file.path, file.index, grid)
        if name == "SCL":
            return Band(read.values[0].astype(np.float64), (read.valid & (read.values[0] > 0)).astype(np.float64))
        rule = scene.radiometry(name, read.scale, read.offset)  # the collection is harmonised
        return Band(harmonise([read.values], [rule])[0].astype(np.float64), read.valid * self.partly)

    # --- answers

    def compute_value(self, body: dict[str, Any]) -> dict[str, Any]:
        found = self.evaluate(body["expression"], None)
        if not isinstance(found, list):
            raise Refused(400, f"this loopback Earth Engine answers with collections, not {type(found).__name__}")
        if len(found) > self.max_elements:
            raise Refused(400, f"Collection query aborted after accumulating over {self.max_elements} elements.")
        features = [
            {"type": "Feature", "id": f.id, "geometry": mapping(f.geometry), "properties": f.properties} for f in found
        ]
        return {"result": {"type": "FeatureCollection", "columns": {}, "features": features}}

    def compute_pixels(self, body: dict[str, Any]) -> bytes:
        if body.get("fileFormat") != "NPY":
            raise Refused(400, f"this loopback Earth Engine writes NPY, not {body.get('fileFormat')}")
        grid = body["grid"]
        width, height = grid["dimensions"]["width"], grid["dimensions"]["height"]
        if max(width, height) > MAX_SIDE:
            raise Refused(400, f"Pixel grid dimensions ({width}x{height}) must be less than or equal to {MAX_SIDE}.")
        a = grid["affineTransform"]
        affine = Affine(
            a["scaleX"], a.get("shearX", 0), a["translateX"], a.get("shearY", 0), a["scaleY"], a["translateY"]
        )
        image = self.evaluate(body["expression"], GeoBox((height, width), affine, grid["crsCode"]))
        size = width * height * sum(band.values.dtype.itemsize for band in image.bands.values())
        if size > self.max_bytes:
            raise Refused(
                400, f"Total request size ({size} bytes) must be less than or equal to {self.max_bytes} bytes."
            )
        dtype = [(name, band.values.dtype) for name, band in image.bands.items()]
        array = np.zeros((height, width), dtype)
        for name, band in image.bands.items():
            array[name] = np.where(band.mask > 0, band.values, 0)
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()


def index_of(scene: Scene, taken: Container[str] = ()) -> str:
    """Return the `system:index` of a scene as in S2_SR_HARMONIZED: sensing time, next free product time, tile."""
    tile = re.search(r"_T(\d\d[A-Z]{3})", " ".join((scene.id, *scene.names)))
    assert tile is not None, scene.id
    times = (scene.acquired + timedelta(seconds=s) for s in count())
    names = (f"{scene.acquired:%Y%m%dT%H%M%S}_{time:%Y%m%dT%H%M%S}_T{tile[1]}" for time in times)
    return next(name for name in names if name not in taken)


def properties(element: Any) -> dict[str, Any]:
    """Return the properties of an image, under the names of the collection."""
    if isinstance(element, Feature):
        return element.properties
    scene = element.scene
    baseline = processing_baseline(scene.properties, (scene.id, *scene.names))
    facts: dict[str, Any] = {"PRODUCT_ID": scene.id, "PROCESSING_BASELINE": baseline}
    if scene.cloud_pct is not None:
        facts["CLOUDY_PIXEL_PERCENTAGE"] = scene.cloud_pct
    return {"system:time_start": int(scene.acquired.timestamp() * 1000), "system:index": element.index, **facts}


def _copied(destination: Feature, source: Any, names: list[str]) -> Feature:
    own = properties(source)
    return Feature(destination.geometry, {**destination.properties, **{n: own[n] for n in names if n in own}})


def _named(made: Feature, source: Any) -> Feature:
    """Give a mapped element the index of its source."""
    return Feature(made.geometry, made.properties, properties(source)["system:index"])


def _outline(element: Any) -> Any:
    scene = element.scene
    return box(*scene.bounds) if scene.footprint is None else scene.footprint


def _milliseconds(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000


def _only(image: Picture) -> Band:
    (band,) = image.bands.values()
    return band


def _each(image: Picture, change: Callable[[Band], Band]) -> Picture:
    return Picture({name: change(band) for name, band in image.bands.items()})


def _both(one: Picture, other: Picture, combine: Callable[[Any, Any], Any]) -> Picture:
    b = _only(other)
    return _each(one, lambda a: Band(combine(a.values, b.values), np.minimum(a.mask, b.mask)))


def _unmasked(band: Band, value: np.ndarray) -> Band:
    return Band(np.where(band.mask > 0, band.values, value), np.ones_like(band.mask))


def _constant(value: float, grid: GeoBox | None) -> Picture:
    assert grid is not None
    return Picture({"constant": Band(np.full(grid.shape, float(value)), np.ones(grid.shape))})


def _remapped(band: Band, **given: Any) -> Band:
    values = np.full(band.values.shape, float(given["defaultValue"]))
    for old, new in zip(given["from"], given["to"], strict=True):
        values[band.values == old] = new
    return Band(values, band.mask)


def _listed(names: Any) -> list[str]:
    return names if isinstance(names, list) else [names]


def _joined(one: dict[str, Band], other: dict[str, Band]) -> dict[str, Band]:
    assert not set(one) & set(other), "the service would rename one of them"
    return {**one, **other}


def least(bands: list[Band]) -> Band:
    return Band(reduce(np.minimum, (b.values for b in bands)), reduce(np.minimum, (b.mask for b in bands)))


least.__name__ = "min"


def _over(images: list[Picture], combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Picture:
    """Band by band over a collection: values and masks (n, y, x) to values; masked where no image has a value."""
    found = {}
    for name in images[0].bands:
        values, masks = (np.stack([getattr(i.bands[name], part) for i in images]) for part in ("values", "mask"))
        found[name] = Band(combine(values, masks > 0), masks.max(axis=0))
    return Picture(found)


def _median(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    filled = np.where(masks, values, np.nan)
    filled[:, ~masks.any(axis=0)] = 0
    return np.nanmedian(filled, axis=0)


def _sum(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return np.where(masks, values, 0).sum(axis=0)


def _on_top(values: np.ndarray, masks: np.ndarray) -> np.ndarray:
    out = np.zeros(values.shape[1:])
    for value, mask in zip(values, masks, strict=True):  # the last one lies on top
        out[mask] = value[mask]
    return out


def _cast(kind: str) -> Callable[..., Picture]:
    return lambda value: _each(value, lambda b: Band(b.values.astype(kind), b.mask))


# --- the server ----------------------------------------------------------------------------------------


@dataclass
class EarthEngine:
    """Running service, with a record of its requests."""

    service: Service
    url: str = ""
    asked: list[str] = field(default_factory=list)
    pixel_sizes: list[tuple[int, int]] = field(default_factory=list)
    most_in_flight: int = 0
    start_fault: int | None = None
    """Status of the response to the first request of a client."""
    faults: list[Any] = field(default_factory=list)
    """Statuses (or "cut", or functions that answer) of the next responses, in this order."""
    delay_s: float = 0.0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, route: str) -> int:
        return sum(route in path for path in self.asked)

    @contextmanager
    def flight(self) -> Iterator[int]:
        with self._lock:
            self._now += 1
            self.most_in_flight = max(self.most_in_flight, self._now)
        try:
            yield self._now
        finally:
            with self._lock:
                self._now -= 1


_MESSAGES = {
    401: "Request had invalid authentication credentials. Expected OAuth 2 access token.",
    403: "Google Earth Engine API has not been used in project 123 before or it is disabled.",
    429: "Quota exceeded for quota metric 'Concurrent requests'. Too many requests.",
    500: "Internal error.",
    503: "The service is currently unavailable.",
}


@contextmanager
def serving(folder: Path) -> Iterator[EarthEngine]:
    """Run a service over a folder of Sentinel-2 products, on a free loopback port."""
    engine = EarthEngine(Service(folder))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            files = resources.files("ee") / "tests"
            if "discovery" in self.path:
                text = (files / "cloud_api_discovery_document.json").read_text().replace("v1alpha", "v1")
                self.reply(200, text.replace("https://earthengine.googleapis.com", engine.url).encode())
            elif self.path.split("?")[0].endswith("/algorithms"):
                engine.asked.append("algorithms")
                if engine.start_fault is not None:
                    self.reply(engine.start_fault, _error(engine.start_fault, _MESSAGES[engine.start_fault]))
                    return
                self.reply(200, (files / "algorithms.json").read_bytes())
            else:
                self.reply(404, _error(404, f"no route {self.path}"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            engine.asked.append(self.path)
            with engine.flight() as now:
                fault = engine.faults.pop(0) if engine.faults else None
                if callable(fault):
                    fault(self)
                    return
                time.sleep(engine.delay_s)
                try:
                    if isinstance(fault, tuple):
                        raise Refused(*fault)
                    if isinstance(fault, int):
                        raise Refused(fault, _MESSAGES[fault])
                    if now > MAX_IN_FLIGHT:
                        raise Refused(429, "Too many concurrent aggregations.")
                    if "value:compute" in self.path:
                        answer = json.dumps(engine.service.compute_value(body)).encode()
                    elif "image:computePixels" in self.path:
                        size = body["grid"]["dimensions"]
                        engine.pixel_sizes.append((size["height"], size["width"]))
                        answer = engine.service.compute_pixels(body)
                    else:
                        raise Refused(404, f"no route {self.path}")
                except Refused as refused:
                    self.reply(refused.status, _error(refused.status, refused.message))
                    return
                except Exception as defect:  # noqa: BLE001  (of this model: said at once, not tried again)
                    self.reply(400, _error(400, f"defect of the loopback Earth Engine: {defect!r}"))
                    return
                self.reply(200, answer, cut=fault == "cut")

        def reply(self, status: int, body: bytes, cut: bool = False) -> None:
            kind = "application/json" if body[:1] == b"{" else "application/octet-stream"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield engine
    finally:
        server.shutdown()
        server.server_close()


def _error(status: int, message: str) -> bytes:
    return json.dumps({"error": {"code": status, "message": message, "status": "ERROR"}}).encode()
