"""GeoTIFF files of numbers on a grid, written atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rs_embed.arrays import FloatArray
from rs_embed.files import atomic_write

if TYPE_CHECKING:
    from affine import Affine


def write_geotiff(
    path: str | Path,
    bands: FloatArray,
    *,
    crs: str,
    transform: Affine,
    names: Sequence[str],
    tags: Mapping[str, str],
) -> Path:
    """Write (bands, y, x) as float32 with nodata NaN, and return the path."""
    import rasterio

    path, (count, height, width) = Path(path), bands.shape
    layout = {"count": count, "height": height, "width": width, "dtype": "float32", "nodata": float("nan")}
    with (
        atomic_write(path) as part,
        rasterio.open(
            part,
            "w",
            "GTiff",
            **layout,
            crs=crs,
            transform=transform,
            compress="deflate",
            predictor=3,
            interleave="band",
        ) as file,
    ):
        file.write(bands)
        file.descriptions = tuple(names)
        file.update_tags(**tags)
    return path
