"""Cost of the formats that the fast reader takes, and of those that go through GDAL, over HTTP: equal pixels.

`python -m benchmarks.bench_formats`
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer

from rs_embed import PointBuffer, SensorSpec, TemporalSpec
from rs_embed.grid import place_geobox
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.blocks import PlaceLayers, read_places
from rs_embed.providers.scenes import BandFile, Scene

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from archive_server import FileServer, serve_files

SIDE_PX, PLACES, DELAY_S, TURNS = 4096, 24, 0.03, 3
TRANSFORM = Affine(10, 0, 499_980, 0, -10, 5_300_040)
TILED = {"driver": "GTiff", "tiled": True, "blockxsize": 1024, "blockysize": 1024, "compress": "deflate"}
FORMATS = {
    "COG, 16 bits": TILED | {"predictor": 2},
    "COG, 15 bits": TILED | {"nbits": 15},
    "tiled, LZW": TILED | {"compress": "lzw", "predictor": 2},
    "strips": {"driver": "GTiff", "compress": "deflate", "predictor": 2, "blockysize": 64},
    "JPEG 2000": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": "YES", "blockxsize": 1024, "blockysize": 1024},
}


def report() -> list[str]:
    """One line a format."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(1200, 3000, (SIDE_PX // 16, SIDE_PX // 16)), np.ones((16, 16)))
    values = (ground + rng.normal(0, 40, ground.shape)).astype(np.uint16)  # about as compressible as a real band
    requests = _requests(rng)
    lines: list[str] = []
    first = None
    with tempfile.TemporaryDirectory() as folder, serve_files(FileServer(Path(folder))) as server:
        server.delay_s = DELAY_S
        for name, options in FORMATS.items():
            file = Path(folder) / f"{len(lines)}.{'jp2' if name == 'JPEG 2000' else 'tif'}"
            profile = {"count": 1, "height": SIDE_PX, "width": SIDE_PX, "dtype": "uint16", "nodata": 0}
            with rasterio.open(file, "w", crs="EPSG:32633", transform=TRANSFORM, **profile, **options) as raster:
                raster.write(values, 1)
            turns = [_read(f"{server.url}/{file.name}", requests) for _ in range(TURNS)]
            asked, pixels = len(server.queries) // TURNS, turns[0][2]
            server.queries.clear()
            first = pixels if first is None else first
            assert all(np.array_equal(a, b) for a, b in zip(first, pixels, strict=True))
            wall_s, processor_s = (statistics.median(s) for s in zip(*((a, b) for a, b, _ in turns), strict=True))
            lines.append(f"{name}: {wall_s:.1f} s, {processor_s:.1f} s of the processor, {asked} requests")
            print(lines[-1], flush=True)
    return lines


def _requests(rng: np.random.Generator) -> list[PatchRequest]:
    to_lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    june = TemporalSpec.range("2022-06-01", "2022-07-01")
    places = [to_lonlat.transform(TRANSFORM.c + x, TRANSFORM.f - y) for x, y in rng.uniform(3000, 37_000, (PLACES, 2))]
    return [
        PatchRequest(place_geobox(PointBuffer(*place, 1120), 10), june, SensorSpec(bands=("B4",))) for place in places
    ]


def _read(url: str, requests: list[PatchRequest]) -> tuple[float, float, list[np.ndarray]]:
    bands = {"B4": BandFile(url)}
    scene = Scene(id="scene", acquired=datetime(2022, 6, 3, tzinfo=UTC), bounds=(0, 0, 1, 1), files=bands)
    places = [PlaceLayers(i, request, [scene]) for i, request in enumerate(requests)]
    started, used = time.perf_counter(), time.process_time()
    read = {place.position: place.take_pixels(0)[0].values for place in read_places(places, 8, None, {})}
    return time.perf_counter() - started, time.process_time() - used, [read[i] for i in range(len(requests))]


if __name__ == "__main__":
    report()
