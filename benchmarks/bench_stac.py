"""Patches of many places from COGs over HTTP against odc-stac: 6 dates of one tile, 30 ms added to each request.

The archive is made here (1024 px deflate blocks, like the real ones) and served by a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from affine import Affine

from benchmarks.timing import Comparison, compare
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.stac import StacProvider
from rs_embed.providers.stac_search import StacCatalog
from rs_embed.specs import PointBuffer, SensorSpec, TemporalSpec

FOLDER = Path(__file__).parent / "data" / "archive"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
SIDE_PX, DATES, DELAY_S = 5120, 6, 0.030
SIZES = (1, 24, 96)
_SERVER = """
import sys; sys.path.insert(0, "tests")
import time
from pathlib import Path
from archive_server import FileServer, serve_files
with serve_files(FileServer(Path(sys.argv[1]), delay_s=float(sys.argv[2]))) as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


def run() -> list[Comparison]:
    sys.path.insert(0, "tests")
    from archive_server import Tile, serve_stac, write_items

    tile = Tile("33UVP", 32633, 499_980, 5_300_040, SIDE_PX)
    with server(FOLDER, DELAY_S) as url:
        items = [json.loads(p.read_text().replace("http://files", url)) for p in _archive(tile)]
        with serve_stac(write_items(FOLDER / "items.json", items)) as api:
            provider = StacProvider(StacCatalog(name="bench", url=api, collections=("sentinel-2-l2a",)))
            return [_case(n, provider, items) for n in SIZES]


def _case(n: int, provider: StacProvider, items: list[dict[str, object]]) -> Comparison:
    """Ours searches too; odc-stac is given its items. Neither reads a scene classification: the archive has none."""
    requests = _requests(n)
    mine = dict(provider.fetch(requests[:3]))
    for i, theirs in enumerate(_odc(items, requests[:3])):
        patch = mine[i]
        assert isinstance(patch, Patch)
        np.testing.assert_array_equal(patch.dn, np.maximum(theirs - 1000.0, 1))
    name = f"{n} random 410 px patch(es), {DATES} dates, RGB: odc-stac"
    return compare(name, lambda: list(provider.fetch(requests)), lambda: list(_odc(items, requests)), 3)


def _odc(items: list[dict[str, object]], requests: list[PatchRequest]) -> Iterator[np.ndarray]:
    """One load a place, as its users write it, then the median."""
    import odc.stac
    import pystac

    found = [pystac.Item.from_dict(i) for i in items]
    config = {"sentinel-2-l2a": {"assets": {"*": {"data_type": "uint16", "nodata": 0}}}}
    for request in requests:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = odc.stac.load(
                found, bands=["red", "green", "blue"], geobox=request.geobox, stac_cfg=config, pool=8, chunks=None
            )
        stack = np.stack([data[b].values for b in ("red", "green", "blue")], axis=1)
        yield np.median(stack, axis=0).astype(np.float32)


def _requests(n: int) -> list[PatchRequest]:
    from pyproj import Transformer

    to_lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    rng = np.random.default_rng(0)
    reach = SIDE_PX * 10 - 2200
    points = rng.uniform(2200, reach, (n, 2))
    places = [PointBuffer(*to_lonlat.transform(499_980 + x, 5_300_040 - y), 2050) for x, y in points]
    return [PatchRequest(place_geobox(p, 10), JUNE, SensorSpec()) for p in places]


@contextmanager
def server(folder: Path, delay_s: float) -> Iterator[str]:
    """A file server in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _SERVER, str(folder), str(delay_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _archive(tile: object) -> list[Path]:
    """Items of the archive; its files are made once (a minute)."""
    from archive_server import BANDS, write_cog

    paths = []
    for date in range(DATES):
        identifier = f"S2A_T33UVP_202206{3 + 4 * date:02d}"
        item = FOLDER / f"{identifier}.json"
        paths.append(item)
        if item.exists():
            continue
        started = time.perf_counter()
        assets = {}
        for number, (key, band) in enumerate((*BANDS.items(), ("scl", "SCL"))):
            values, scale = _pixels(key, np.random.default_rng(10 * date + number))
            transform = tile.transform * Affine.scale(scale)
            write_cog(FOLDER / identifier / f"{band}.tif", values, transform, tile.epsg, 1024, overviews="AUTO")
            assets[key] = {
                "href": f"http://files/{identifier}/{band}.tif",
                "proj:shape": list(values.shape),
                "proj:transform": list(transform)[:6],
            }
        document = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
            "id": identifier,
            "collection": "sentinel-2-l2a",
            "bbox": [14.9, 47.0, 16.0, 48.0],
            "geometry": {"type": "Polygon", "coordinates": [[[14.9, 47], [16, 47], [16, 48], [14.9, 48], [14.9, 47]]]},
            "properties": {
                "datetime": f"2022-06-{3 + 4 * date:02d}T10:10:31Z",
                "s2:processing_baseline": "05.09",
                "grid:code": "MGRS-33UVP",
                "eo:cloud_cover": 1.0,
                "proj:epsg": 32633,
            },
            "assets": assets,
            "links": [],
        }
        item.write_text(json.dumps(document))
        print(f"made {identifier} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return paths


def _pixels(key: str, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Something that compresses about as real pixels do, and how many pixels of 10 m one of its own is wide."""
    if key == "scl":
        return np.kron(rng.integers(4, 7, (SIDE_PX // 32, SIDE_PX // 32)), np.ones((16, 16), int)).astype(np.uint8), 2
    coarse = rng.integers(1100, 3200, (SIDE_PX // 16, SIDE_PX // 16))
    values = np.kron(coarse, np.ones((16, 16), int)) + rng.integers(0, 120, (SIDE_PX, SIDE_PX))
    return values.astype(np.uint16), 1
