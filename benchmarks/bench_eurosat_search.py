"""Text search over EuroSAT from end to end: a scene on disk, an export, the HTTP API; P@10 of the ten classes.

`python -m benchmarks.bench_eurosat_search [n]`. The chips lie side by side in one synthetic Sentinel-2 product, on the
grid that divides a region into chips, so that each row of the dataset is one chip of a known class. 2,400 of the
default 5,041 chips were held out of training; with n up to 2,400, all were.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from fastapi.testclient import TestClient
from shapely.geometry import Polygon

from evaluation.eurosat import CLASSES, DATA, HAZE_OUT, Chips, open_eurosat
from rs_embed import SensorSpec, TemporalSpec, export_embeddings
from rs_embed.grid import transformer
from rs_embed.web.server import create_app

CHIP_PX, LEFT, TOP, EPSG = 64, 640 * 780, 640 * 8313, 32633
NAMES = (
    *("annual crop", "forest", "herbaceous vegetation", "highway", "industrial buildings"),
    *("pasture", "permanent crop", "residential buildings", "river", "sea or lake"),
)
"""Query texts, in the order of `CLASSES`."""


def write_scene(root: Path, chips: Chips, chosen: np.ndarray) -> int:
    """Write a product of baseline 03.00 with the chips in rows, and return the number of chips per row."""
    side = int(len(chosen) ** 0.5)
    name = "S2A_MSIL2A_20200615T101031_N0300_R022_T33UVP_20200615T140000"
    folder = root / f"{name}.SAFE" / "GRANULE" / "L2A_T33UVP" / "IMG_DATA"
    pixels = np.zeros((3, side * CHIP_PX, side * CHIP_PX), np.uint16)
    for i, chip in enumerate(chosen[: side * side]):
        y, x = (CHIP_PX * v for v in divmod(i, side))
        dn = np.rint(chips.dn(int(chip), HAZE_OUT))
        pixels[:, y : y + CHIP_PX, x : x + CHIP_PX] = np.maximum(dn, 1)  # 0 means not observed
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    for band, values in zip(("B04", "B03", "B02"), pixels, strict=True):
        _write(folder / "R10m" / f"T33UVP_{band}_10m.tif", values, transform)
    scl = np.full((side * CHIP_PX // 2,) * 2, 4, np.uint8)
    _write(folder / "R20m" / "T33UVP_SCL_20m.tif", scl, transform * Affine.scale(2))
    return side


def _write(path: Path, values: np.ndarray, transform: Affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {"height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": values.dtype.name}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(path, "w", "GTiff", **size, **tiles, crs=EPSG, transform=transform, nodata=0) as file:
        file.write(values, 1)


def precision_at_10(folder: Path, n: int, held_out_only: bool = False) -> tuple[dict[str, float], int, float]:
    """Return P@10 by class, the dataset's rows, and the seconds of the export."""
    chips = open_eurosat()
    rng = np.random.default_rng(0)
    first = rng.permutation(chips.held_out)
    order = first if held_out_only else np.concatenate([first, rng.permutation(chips.train)])
    chosen = rng.permutation(order[:n])
    side = write_scene(folder / "scene", chips, chosen)
    labels = chips.labels[chosen]
    far = side * CHIP_PX * 10
    corners = [(LEFT, TOP), (LEFT + far, TOP), (LEFT + far, TOP - far), (LEFT, TOP - far)]
    area = Polygon([transformer(EPSG, 4326).transform(x, y) for x, y in corners])
    started = time.perf_counter()
    export_embeddings(
        "clip_eurosat_s2rgb",
        area,
        folder / "dataset",
        temporal=TemporalSpec.range("2020-06-01", "2020-07-01"),
        sensor=SensorSpec(cloudy_pct=100),
        backend=f"local:{folder / 'scene'}",
        chip_m=CHIP_PX * 10,
    )
    seconds = time.perf_counter() - started
    found = {}
    with TestClient(create_app(folder / "dataset"), base_url="http://127.0.0.1") as client:
        rows = client.get("/api/dataset").json()["rows"]
        for c, name in enumerate(NAMES):
            hits = client.get("/api/search", params={"text": name, "k": 10}).json()["results"]
            right = 0
            for hit in hits:
                x, y = transformer(4326, EPSG).transform(hit["lon"], hit["lat"])
                column, row = int((x - LEFT) // (CHIP_PX * 10)), int((TOP - y) // (CHIP_PX * 10))
                inside = 0 <= column < side and 0 <= row < side
                right += bool(inside and labels[row * side + column] == c)
            found[CLASSES[c]] = right / len(hits)
    return found, rows, seconds


def report(n: int = 5041) -> list[str]:
    """Print the result as one line."""
    if not DATA.exists():
        print(f"{DATA.name} is not at hand: nothing was measured", flush=True)
        return []
    with tempfile.TemporaryDirectory() as root:
        found, rows, seconds = precision_at_10(Path(root), n)
    worst = min(found, key=found.__getitem__)
    line = (
        f"EuroSAT, {rows:,} chips as a dataset (exported in {seconds:.0f} s), bundled model, by words through the HTTP "
        f"API: P@10 {np.mean(list(found.values())):.3f} over ten classes (least: {worst} {found[worst]:.1f})"
    )
    print(line, flush=True)
    return [line]


if __name__ == "__main__":
    report(*(int(a) for a in sys.argv[1:]))
