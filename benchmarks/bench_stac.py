"""Patches of many places from COGs over HTTP against odc-stac and stackstac: 6 dates of a tile, 30 ms a request.

The archive is made here (1024 px deflate blocks, like the real ones) and served by a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from benchmarks.timing import Comparison, compare
from rs_embed.grid import place_geobox
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.stac.catalogs import StacCatalog
from rs_embed.providers.stac.provider import StacProvider
from rs_embed.specs import PointBuffer, SensorSpec, TemporalSpec

FOLDER = Path(__file__).parent / "data" / "archive"
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
SIDE_PX, DATES, DELAY_S = 5120, 6, 0.030
PEERS = Path(__file__).parent / "data" / "peers" / "bin" / "python"
Item = dict[str, Any]
_SERVER = """
import sys; sys.path.insert(0, "tests")
import time
from pathlib import Path
from archive_server import FileServer, serve_files
faults = dict(zip(("error_share", "reset_share", "corrupt_share"), map(float, sys.argv[3:])))
with serve_files(FileServer(Path(sys.argv[1]), delay_s=float(sys.argv[2]), **faults)) as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


def run() -> list[Comparison]:
    sys.path.insert(0, "tests")
    from archive_server import Tile, serve_stac, write_items

    tile = Tile("33UVP", 32633, 499_980, 5_300_040, SIDE_PX)
    with server(FOLDER, DELAY_S) as url:
        items = [json.loads(p.read_text().replace("http://files", url)) for p in _archive(tile)]
        rgb = [_without_classes(item) for item in items]
        catalogs = (("rgb", rgb), ("whole", items))
        with ExitStack() as stack:
            apis = {n: stack.enter_context(serve_stac(write_items(FOLDER / f"{n}.json", i))) for n, i in catalogs}
            return list(_cases(apis, rgb))


def _cases(apis: Mapping[str, str], rgb: Sequence[Item]) -> Iterator[Comparison]:
    """Ours searches, and looks at overviews, each time; the peers are given their items."""

    def ours(n: int, api: str = "rgb") -> None:
        list(_provider(apis[api]).fetch(_requests(n)))

    mine = dict(_provider(apis["rgb"]).fetch(_requests(24)))
    for i, theirs in enumerate(_odc(rgb, _requests(3))):
        _check_same(mine[i], theirs)
    what = f"random 410 px patch(es), {DATES} dates, RGB"
    yield compare(f"1 {what}: odc-stac", lambda: ours(1), lambda: list(_odc(rgb, _requests(1))), 9)
    yield compare(f"24 {what}: odc-stac", lambda: ours(24), lambda: list(_odc(rgb, _requests(24))), 3)
    if PEERS.exists():
        with _stackstac(FOLDER / "rgb.json", _requests(24)) as stackstac:
            _check_same(mine[0], stackstac())
            yield compare(f"24 {what}: stackstac", lambda: ours(24), stackstac, 3)
    yield compare(f"240 {what}: odc-stac", lambda: ours(240), lambda: list(_odc(rgb, _requests(240))), 1, warm=False)
    yield compare(f"24 {what}: the same with scene classification", lambda: ours(24), lambda: ours(24, "whole"), 3)


def _check_same(mine: object, theirs: np.ndarray) -> None:
    assert isinstance(mine, Patch)
    np.testing.assert_array_equal(mine.dn, np.maximum(theirs - 1000.0, 1))


def _provider(api: str) -> StacProvider:
    return StacProvider(StacCatalog(name="bench", url=api, collections=("sentinel-2-l2a",)))


def _without_classes(item: Item) -> Item:
    assets = {key: asset for key, asset in item["assets"].items() if key != "scl"}
    return item | {"assets": assets}


def _odc(items: Sequence[Item], requests: Sequence[PatchRequest]) -> Iterator[np.ndarray]:
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


_STACKSTAC = """
import json, sys, warnings
import dask, numpy as np, stackstac
warnings.simplefilter("ignore")
dask.config.set(scheduler="threads", num_workers=8)
items, bounds = json.load(open(sys.argv[1]))["features"], json.loads(sys.argv[2])
for _ in sys.stdin:
    for i, box in enumerate(bounds):
        stack = stackstac.stack(items, assets=["red", "green", "blue"], bounds=box, epsg=32633, resolution=10,
                                dtype="uint16", fill_value=np.uint16(0), rescale=False).values
        if i == 0:
            np.save(sys.argv[3], np.median(stack, axis=0).astype(np.float32))
    print("done", flush=True)
"""


@contextmanager
def _stackstac(items: Path, requests: Sequence[PatchRequest]) -> Iterator[Callable[[], np.ndarray]]:
    """One stack a place, with as many threads; in an environment of its own, since it wants another pandas."""
    boxes = [list(request.geobox.boundingbox.bbox) for request in requests]
    result = FOLDER / "stackstac.npy"
    command = [str(PEERS), "-c", _STACKSTAC, str(items), json.dumps(boxes), str(result)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run() -> np.ndarray:
            stdin.write("\n")
            stdin.flush()
            assert stdout.readline() == "done\n"
            return np.load(result)

        try:
            yield run
        finally:
            process.terminate()


def _requests(n: int) -> list[PatchRequest]:
    from pyproj import Transformer

    to_lonlat = Transformer.from_crs(32633, 4326, always_xy=True)
    rng = np.random.default_rng(0)
    reach = SIDE_PX * 10 - 2200
    points = rng.uniform(2200, reach, (n, 2))
    places = [PointBuffer(*to_lonlat.transform(499_980 + x, 5_300_040 - y), 2050) for x, y in points]
    return [PatchRequest(place_geobox(p, 10), JUNE, SensorSpec()) for p in places]


@contextmanager
def server(folder: Path, delay_s: float, faults: Sequence[float] = ()) -> Iterator[str]:
    """A file server in a process of its own; `faults` are shares of 500s, of resets and of corrupt blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _SERVER, str(folder), str(delay_s), *map(str, faults)]
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
