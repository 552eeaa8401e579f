"""A folder of real GeoTIFFs that `local:` reads: three dates over a few kilometres, with scene classification."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from fakes import write_raster
from rs_embed import LocalProvider, ProviderError, SensorSpec, TemporalSpec
from rs_embed.grid import transformer
from rs_embed.patch import Patch
from rs_embed.providers.base import PatchRequest
from rs_embed.providers.blocks import PlaceLayers, read_places
from rs_embed.providers.raster import RasterPixels
from rs_embed.providers.scenes import BandFile, Scene

LEFT, TOP, SIDE_PX = 500_000, 5_320_000, 600
DAYS = ("03", "13", "23")


def write_archive(root: Path) -> Path:
    """Products of baseline 04.00 in zone 33N, 6 km a side."""
    transform = Affine(10, 0, LEFT, 0, -10, TOP)
    for seed, day in enumerate(DAYS):
        product = f"S2A_MSIL2A_202206{day}T101031_N0400_R022_T33UVP_202206{day}T140000"
        rng = np.random.default_rng(seed)
        granule = root / f"{product}.SAFE" / "GRANULE" / "L2A_T33UVP" / "IMG_DATA"
        for name in ("B04", "B03", "B02"):
            values = rng.integers(1001, 4000, (1, SIDE_PX, SIDE_PX)).astype(np.uint16)
            write_raster(granule / "R10m" / f"T33UVP_{name}_10m.tif", values, transform=transform, nodata=0)
        scl = np.full((1, SIDE_PX // 2, SIDE_PX // 2), 4, np.uint8)
        write_raster(granule / "R20m" / "T33UVP_SCL_20m.tif", scl, transform=transform * Affine.scale(2), nodata=0)
    return root


def write_places(path: Path, n: int, *, seed: int = 0) -> Path:
    """A CSV of `n` places inside of the archive, with a label each."""
    rng = np.random.default_rng(seed)
    x, y = LEFT + rng.uniform(400, 5600, n), TOP - rng.uniform(400, 5600, n)
    lon, lat = transformer(32633, 4326).transform(x, y)
    lines = [f"p{seed}-{i},{a:.7f},{b:.7f},{i % 3}" for i, (a, b) in enumerate(zip(lon, lat, strict=True))]
    path.write_text("\n".join(["id,lon,lat,label", *lines]) + "\n")
    return path


def read_onto(path: Path | str, index: int, geobox: GeoBox) -> RasterPixels:
    """The pixels of one band of a file on a grid, as a sweep reads them; an error is raised."""
    files = {"B4": BandFile(str(path), index)}
    scene = Scene(id="scene", acquired=datetime(2022, 6, 3, tzinfo=UTC), bounds=(-180, -90, 180, 90), files=files)
    june = TemporalSpec.range("2022-06-01", "2022-07-01")
    [place] = read_places([PlaceLayers(0, PatchRequest(geobox, june, SensorSpec(bands=("B4",))), [scene])], 4, None, {})
    if place.faults:
        raise ProviderError(place.faults[0])
    return place.take_pixels(0)[0]


def fetch_local(path: Path, request: PatchRequest) -> Patch:
    """The patch of one place from files; an error is raised."""
    [(position, result)] = LocalProvider(path).fetch([request])
    assert position == 0
    if isinstance(result, ProviderError):
        raise result
    return result
