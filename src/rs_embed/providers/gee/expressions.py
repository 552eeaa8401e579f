"""What is asked of Earth Engine, as expressions of its client: which images there are, and their composite.

The images of a composite are named one by one, so that what was listed is what is composited, and provenance is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from shapely.geometry import shape

from rs_embed.composite import shown
from rs_embed.grid import epsg_of
from rs_embed.providers.archive import Scene
from rs_embed.providers.duplicates import unique
from rs_embed.providers.gee.session import TooMuch, ask
from rs_embed.sentinel2 import CLEAR_SCL, HARMONIZED_COLLECTION
from rs_embed.specs import SensorSpec

REQUEST_BYTES = 48_000_000
"""Earth Engine's limit is 50,331,648 bytes, uncompressed."""
MAX_SIDE_PX = 32_768
_PROPERTIES = ("system:time_start", "CLOUDY_PIXEL_PERCENTAGE", "PROCESSING_BASELINE", "PRODUCT_ID")
_SMALLEST_PX = 64 * 64
"""What is refused for its size is asked for in halves, down to this."""
_BITS = 24
"""Images whose sight one band can tell: whole numbers up to 2^24 are exact, whatever number type is summed in."""

Bounds = tuple[float, float, float, float]


def list_scenes(ee: ModuleType, bounds: Bounds, start: str, end: str) -> list[Scene]:
    """Scenes that meet a box from `start` to before `end`, whatever their clouds; one request.

    A time range with more than Earth Engine lists at once is asked for in halves.
    """

    def listed() -> dict[str, Any]:
        area = ee.Geometry.BBox(*bounds)
        images = ee.ImageCollection(HARMONIZED_COLLECTION).filterBounds(area).filterDate(start, end)
        rows = images.map(lambda image: ee.Feature(image.geometry(), None).copyProperties(image, list(_PROPERTIES)))
        answer: dict[str, Any] = ee.FeatureCollection(rows).getInfo()
        return answer

    try:
        found = ask(listed)
    except TooMuch:
        first, last = date.fromisoformat(start), date.fromisoformat(end)
        if last - first < timedelta(days=2):
            raise
        middle = (first + (last - first) / 2).isoformat()
        return [*list_scenes(ee, bounds, start, middle), *list_scenes(ee, bounds, middle, end)]
    told = (f for f in found["features"] if f["properties"].get("system:time_start") is not None)
    return unique(map(_scene, told), (HARMONIZED_COLLECTION,))


def _scene(feature: dict[str, Any]) -> Scene:
    facts = feature["properties"]
    outline = shape(feature["geometry"]) if feature.get("geometry") else None
    return Scene(
        id=feature["id"],
        acquired=datetime.fromtimestamp(facts["system:time_start"] / 1000, UTC),
        bounds=(-180.0, -90.0, 180.0, 90.0) if outline is None else outline.bounds,
        files={},
        footprint=outline,
        cloud_pct=facts.get("CLOUDY_PIXEL_PERCENTAGE"),
        collection=HARMONIZED_COLLECTION,
        properties={"s2:processing_baseline": facts.get("PROCESSING_BASELINE")},
        names=(facts.get("PRODUCT_ID") or "",),
    )


def composite(ee: ModuleType, scene_ids: Sequence[str], sensor: SensorSpec) -> Any:
    """The composite of some scenes, newest first, as an `ee.Image` whose bands `read_answer` knows.

    A pixel of a scene counts where all bands are observed (and with a cloud mask, where it is clear), as everywhere.
    Above 10 m the service reads copies whose masks are means: whatever it saw a part of was observed.
    """
    pixels, clear, seen = [], [], []
    for number, scene_id in enumerate(scene_ids):
        image = ee.Image(f"{HARMONIZED_COLLECTION}/{scene_id}")
        raw = image.select(list(sensor.bands))
        observed = raw.mask().reduce(ee.Reducer.min()).gt(0)
        classes = image.select("SCL")
        is_clear = classes.remap(list(CLEAR_SCL), [1] * len(CLEAR_SCL), 0).unmask(0).And(observed)
        kept = is_clear if sensor.cloud_mask == "scl" else observed
        pixels.append(raw.updateMask(kept))
        clear.append(is_clear.multiply(1 << number % _BITS))
        seen.append((kept if sensor.composite == "mosaic" else observed).multiply(1 << number % _BITS))
    stack = ee.ImageCollection.fromImages(pixels[::-1])  # a mosaic has its last image on top
    made = stack.mosaic() if sensor.composite == "mosaic" else stack.median()
    return ee.Image.cat(
        made.select(list(range(len(sensor.bands))), _band_names(sensor)).unmask(0).toFloat(),
        made.select(0).mask().gt(0).rename("valid").toUint8(),
        *_bits(ee, "clear", clear),
        *_bits(ee, "seen", seen),
    )


def _bits(ee: ModuleType, name: str, images: Sequence[Any]) -> list[Any]:
    """Bands whose bits are those of the scenes."""
    groups = {i: [image.rename("n") for image in images[i : i + _BITS]] for i in range(0, len(images), _BITS)}
    collection = ee.ImageCollection.fromImages
    return [collection(group).sum().unmask(0).rename(f"{name}_{i}").toUint32() for i, group in groups.items()]


def _band_names(sensor: SensorSpec) -> list[str]:
    return [f"band_{i}" for i in range(len(sensor.bands))]


def bytes_a_pixel(scenes: int, sensor: SensorSpec) -> int:
    """Of the answer: float32 bands, `valid`, and which scenes were seen, and seen clear."""
    return 4 * len(sensor.bands) + 1 + 2 * 4 * -(-scenes // _BITS)


def count_requests(height: int, width: int, pixel_bytes: int) -> int:
    """How many requests `read_pixels` makes of a grid at least."""
    if not _over_limits(height, width, pixel_bytes):
        return 1
    longer, shorter = max(height, width), min(height, width)
    return sum(count_requests(part, shorter, pixel_bytes) for part in (longer // 2, longer - longer // 2))


def _over_limits(height: int, width: int, pixel_bytes: int) -> bool:
    return height * width * pixel_bytes > REQUEST_BYTES or max(height, width) > MAX_SIDE_PX


def read_pixels(ee: ModuleType, image: Callable[[], Any], geobox: GeoBox, pixel_bytes: int) -> npt.NDArray[np.void]:
    """What `image` makes on a grid, (y, x) of one field a band; a grid over the limits is asked for in halves."""
    height, width = geobox.shape
    if _over_limits(height, width, pixel_bytes):
        return _in_halves(ee, image, geobox, pixel_bytes)
    affine = geobox.transform
    grid = {
        "dimensions": {"width": width, "height": height},
        "affineTransform": {
            "scaleX": affine.a,
            "shearX": affine.b,
            "translateX": affine.c,
            "shearY": affine.d,
            "scaleY": affine.e,
            "translateY": affine.f,
        },
        "crsCode": f"EPSG:{epsg_of(geobox)}",
    }

    def pixels() -> npt.NDArray[np.void]:
        question = {"expression": image(), "fileFormat": "NUMPY_NDARRAY", "grid": grid}
        found: npt.NDArray[np.void] = ee.data.computePixels(question)
        if found.shape != (height, width):
            raise ValueError(f"{found.shape} pixels came, {(height, width)} were asked for")
        return found

    try:
        return ask(pixels)
    except TooMuch:
        if height * width < _SMALLEST_PX:
            raise
        return _in_halves(ee, image, geobox, pixel_bytes)


def _in_halves(ee: ModuleType, image: Callable[[], Any], geobox: GeoBox, pixel_bytes: int) -> npt.NDArray[np.void]:
    height, width = geobox.shape
    axis = 0 if height >= width else 1
    cut = max(height, width) // 2
    parts = (geobox[:cut], geobox[cut:]) if axis == 0 else (geobox[:, :cut], geobox[:, cut:])
    return np.concatenate([read_pixels(ee, image, part, pixel_bytes) for part in parts], axis=axis)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for one place."""

    dn: npt.NDArray[np.float32]
    """(bands, y, x), NaN where nothing was observed."""
    n_clear: npt.NDArray[np.uint16]
    """(y, x), clear observations: of all scenes in a median, of the one on top in a mosaic."""
    entered: list[bool]
    """Of each scene, newest first: whether it saw a pixel of a median's place, or lies on top somewhere in a mosaic."""


def read_answer(answer: npt.NDArray[np.void], scenes: int, sensor: SensorSpec) -> Answer:
    """Take the bands of `composite` apart."""
    valid = answer["valid"] > 0
    dn = np.stack([answer[name] for name in _band_names(sensor)]).astype(np.float32)
    dn[:, ~valid] = np.nan
    seen, clear = (_scenes_of(answer, name, scenes) for name in ("seen", "clear"))
    if sensor.composite == "mosaic":
        seen, clear = (list(shown(marks, seen)) for marks in (seen, clear))
    n_clear: npt.NDArray[np.uint16] = np.stack(clear).sum(axis=0, dtype=np.uint16)
    return Answer(dn, n_clear, [bool(sees.any()) for sees in seen])


def _scenes_of(answer: npt.NDArray[np.void], name: str, scenes: int) -> list[npt.NDArray[np.bool_]]:
    """What the bits of bands say of each scene, (y, x)."""
    bands = [answer[f"{name}_{i}"].astype(np.uint32) for i in range(0, scenes, _BITS)]
    return [(bands[i // _BITS] >> np.uint32(i % _BITS) & np.uint32(1)).astype(bool) for i in range(scenes)]
