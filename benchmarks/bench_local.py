"""Places of one local tile of 10,980 px (B4, B3, B2 and SCL, COGs in deflate), against another checkout of this code.

`python -m benchmarks.bench_local [--baseline CHECKOUT] [--places N] [--turns N]`; each side runs in its own process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.shutil import copy as copy_raster

FOLDER = Path(__file__).parent / "data" / "local_tile"
PRODUCT = "S2A_MSIL2A_20220603T101031_N0400_R022_T33UVP_20220603T140000"
SIDE_PX = 10_980
TRANSFORM = Affine(10, 0, 399_960, 0, -10, 5_300_040)
CASES = {  # half the side in metres, and the share of --places
    "1 place of 640 m": (320, 0),
    "places of 640 m at random": (320, 1),
    "places of 640 m side by side": (320, 1),
    "places of 4.1 km at random": (2050, 1 / 8),
}


def write_tile(folder: Path = FOLDER) -> Path:
    """Write the tile once (two minutes): about as compressible as a real one."""
    for number, band in enumerate(("B04", "B03", "B02", "SCL")):
        path = folder / f"{PRODUCT}_{band}.tif"
        if path.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        step = 2 if band == "SCL" else 1
        side, rng = SIDE_PX // step, np.random.default_rng(number)
        profile = {"height": side, "width": side, "count": 1, "crs": "EPSG:32633", "nodata": 0}
        profile |= {"transform": TRANSFORM * Affine.scale(step), "dtype": "uint8" if band == "SCL" else "uint16"}
        layout = {"compress": "deflate", "tiled": True, "blockxsize": 1024, "blockysize": 1024}
        plain, part = path.with_suffix(".plain"), path.with_suffix(".part")
        with rasterio.open(plain, "w", driver="GTiff", **profile, **layout) as file:
            file.write(_pixels(band, side, rng), 1)
        copy_raster(plain, part, driver="COG", compress="deflate", blocksize=1024, predictor="YES", overviews="AUTO")
        plain.unlink()
        part.rename(path)
    return folder


def _pixels(band: str, side: int, rng: np.random.Generator) -> np.ndarray:
    if band == "SCL":
        return np.kron(rng.integers(4, 7, (side // 30, side // 30)), np.ones((30, 30), int)).astype(np.uint8)
    coarse = rng.integers(1100, 3200, (side // 15, side // 15), dtype=np.uint16)
    noise = rng.integers(0, 120, (side, side), dtype=np.uint16)
    return np.kron(coarse, np.ones((15, 15), np.uint16)) + noise


def _work(case: str, places: int) -> None:
    """Fetch the places of one case, and print the seconds and a digest of all pixels."""
    from pyproj import Transformer

    from rs_embed import LocalProvider, PointBuffer, SensorSpec, TemporalSpec
    from rs_embed.grid import place_geobox
    from rs_embed.providers.base import PatchRequest

    buffer_m, share = CASES[case]
    n = max(1, round(places * share))
    rng = np.random.default_rng(1)
    reach = SIDE_PX * 10 - 2 * buffer_m
    xy = rng.uniform(2 * buffer_m, reach, (n, 2))
    if "side by side" in case:
        columns = int(reach // 640)
        xy = np.array([(1000 + 640 * (i % columns), 1000 + 640 * (i // columns)) for i in range(n)])
    lon, lat = Transformer.from_crs(32633, 4326, always_xy=True).transform(
        TRANSFORM.c + xy[:, 0], TRANSFORM.f - xy[:, 1]
    )
    june = TemporalSpec.range("2022-06-01", "2022-07-01")
    boxes = [place_geobox(PointBuffer(*at, buffer_m), 10) for at in zip(lon, lat, strict=True)]
    requests = [PatchRequest(box, june, SensorSpec()) for box in boxes]
    provider = LocalProvider(FOLDER)
    list(provider.fetch(requests[:1]))  # what is imported and made once
    seconds = []
    for _ in range(9 if n == 1 else 1):
        started, used = time.perf_counter(), time.process_time()
        digests = {i: sha256(patch.dn.tobytes()).digest() for i, patch in provider.fetch(requests)}
        seconds.append((time.perf_counter() - started, time.process_time() - used))
    wall_s, processor_s = min(seconds)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    digest = sha256(b"".join(digests[i] for i in range(n))).hexdigest()
    print(json.dumps([n, wall_s, processor_s, int(peak.split()[1]) >> 10, digest]))


def _run(source: Path, case: str, places: int) -> tuple[int, float, float, int, str]:
    command = [sys.executable, __file__, "--work", case, "--places", str(places)]
    environment = os.environ | {"PYTHONPATH": str(source / "src")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    n, wall_s, processor_s, peak_mib, digest = json.loads(done.stdout.splitlines()[-1])
    return n, wall_s, processor_s, peak_mib, digest


def main() -> None:
    """Print a line a case: both sides alternate, and the ratio is the median over turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--places", type=int, default=2400)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        _work(options.work, options.places)
        return
    write_tile()
    here = Path(__file__).parents[1]
    for case in options.case or CASES:
        turns = []
        for turn in range(options.turns):
            sides = [s for s in (here, options.baseline) if s is not None]
            found = {side: _run(side, case, options.places) for side in (sides if turn % 2 == 0 else sides[::-1])}
            assert len({result[-1] for result in found.values()}) == 1, "the pixels are not the same"
            turns.append([found[side] for side in sides])
        print(f"{case}: " + "; ".join(_line([turn[i] for turn in turns]) for i in range(len(turns[0]))), end="")
        for column, what in ((1, "the time"), (2, "the processor")) if options.baseline else ():
            ratios = [float(theirs[column]) / float(ours[column]) for ours, theirs in turns]
            print(f"; {what} x{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})", end="")
        print(flush=True)


def _line(turns: list[tuple[int, float, float, int, str]]) -> str:
    n = turns[0][0]
    wall_s, processor_s, peak = (statistics.median(float(t[i]) for t in turns) for i in (1, 2, 3))
    return f"{n / wall_s:,.1f} a second ({wall_s:.3f} s, processor {processor_s:.2f} s, peak {peak:.0f} MiB)"


if __name__ == "__main__":
    main()
