"""Requests to Earth Engine; the scenes of a composite are named one by one, so that its provenance cannot differ."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from odc.geo.geobox import GeoBox
from shapely.geometry import shape

from rs_embed.arrays import BoolArray, FloatArray
from rs_embed.composite import shown_clear_share, visible_on_top
from rs_embed.grid import epsg_of
from rs_embed.lonlat import WORLD, Box
from rs_embed.outlines import box_of, split
from rs_embed.providers.gee.session import RequestTooLargeError, send, to_provider_error
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import drop_duplicates
from rs_embed.providers.stac.items import ODD_ITEM
from rs_embed.sentinel2 import CLEAR_SCL, HARMONIZED_COLLECTION
from rs_embed.specs import SensorSpec

REQUEST_BYTES = 48_000_000  # largest uncompressed response to request; Earth Engine's limit is 50,331,648 bytes
MAX_SIDE_PX = 32_768
_PROPERTIES = ("system:time_start", "CLOUDY_PIXEL_PERCENTAGE", "PROCESSING_BASELINE", "PRODUCT_ID")
_SMALLEST_PX = 64 * 64  # smallest grid that is halved after a refusal for its size
_SCENES_PER_BAND = 24  # scenes as bits of a band: all number types on the way hold whole numbers up to 2^24 exactly

CompositePixels = npt.NDArray[np.void]  # (y, x), one field per band


def list_scenes(ee: ModuleType, bounds: Box, start: str, end: str) -> list[Scene]:
    """Return the scenes of a box from `start` to before `end`; a time range with too many for one request is halved."""

    def request() -> dict[str, Any]:
        area = ee.Geometry.BBox(*bounds)
        images = ee.ImageCollection(HARMONIZED_COLLECTION).filterBounds(area).filterDate(start, end)
        rows = images.map(lambda image: ee.Feature(image.geometry(), None).copyProperties(image, list(_PROPERTIES)))
        response: dict[str, Any] = ee.FeatureCollection(rows).getInfo()
        return response

    try:
        response = send(request)
    except RequestTooLargeError:
        first, last = date.fromisoformat(start), date.fromisoformat(end)
        if last - first < timedelta(days=2):
            raise
        middle = (first + (last - first) / 2).isoformat()
        return [*list_scenes(ee, bounds, start, middle), *list_scenes(ee, bounds, middle, end)]
    try:
        dated = (f for f in response["features"] if f["properties"].get("system:time_start") is not None)
        return drop_duplicates(map(_to_scene, dated), (HARMONIZED_COLLECTION,))
    except ODD_ITEM as error:
        raise to_provider_error(TypeError(f"no list of scenes: {error!r}")) from error


def _to_scene(feature: dict[str, Any]) -> Scene:
    properties = feature["properties"]
    footprint = split(shape(feature["geometry"])) if feature.get("geometry") else None
    return Scene(
        id=feature["id"],
        acquired=datetime.fromtimestamp(properties["system:time_start"] / 1000, UTC),
        bounds=WORLD if footprint is None else box_of(footprint),
        files={},
        footprint=footprint,
        cloud_pct=properties.get("CLOUDY_PIXEL_PERCENTAGE"),
        collection=HARMONIZED_COLLECTION,
        properties={"s2:processing_baseline": properties.get("PROCESSING_BASELINE")},
        names=(properties.get("PRODUCT_ID") or "",),
    )


def composite(ee: ModuleType, scene_ids: Sequence[str], sensor: SensorSpec) -> Any:
    """Return the composite of scenes, newest first, as an `ee.Image` for `decode_pixels`.

    A pixel of a scene counts if all bands are observed (and clear, with a cloud mask), as on every backend. Above 10 m
    the service reads overviews with averaged masks: any mask above 0 counts as observed.
    """
    pixels, clear, seen = [], [], []
    for number, scene_id in enumerate(scene_ids):
        image = ee.Image(f"{HARMONIZED_COLLECTION}/{scene_id}")
        raw = image.select(list(sensor.bands))
        observed = raw.mask().reduce(ee.Reducer.min()).gt(0)
        classes = image.select("SCL")
        is_clear = classes.remap(list(CLEAR_SCL), [1] * len(CLEAR_SCL), 0).unmask(0).And(observed)
        kept = is_clear if sensor.cloud_mask == "scl" else observed
        bit = 1 << number % _SCENES_PER_BAND
        pixels.append(raw.updateMask(kept))
        clear.append(is_clear.multiply(bit))
        seen.append((kept if sensor.composite == "mosaic" else observed).multiply(bit))
    stack = ee.ImageCollection.fromImages(pixels[::-1])  # a mosaic shows its last image on top
    merged = stack.mosaic() if sensor.composite == "mosaic" else stack.median()
    return ee.Image.cat(
        merged.select(list(range(len(sensor.bands))), _band_names(sensor)).unmask(0).toFloat(),
        merged.select(0).mask().gt(0).rename("valid").toUint8(),
        *_bit_bands(ee, "clear", clear),
        *_bit_bands(ee, "seen", seen),
    )


def _bit_bands(ee: ModuleType, name: str, images: Sequence[Any]) -> Iterator[Any]:
    """Yield bands with one bit per scene."""
    for i in range(0, len(images), _SCENES_PER_BAND):
        group = ee.ImageCollection.fromImages([image.rename("n") for image in images[i : i + _SCENES_PER_BAND]])
        yield group.sum().unmask(0).rename(f"{name}_{i}").toUint32()


def _band_names(sensor: SensorSpec) -> list[str]:
    return [f"band_{i}" for i in range(len(sensor.bands))]


def bytes_per_pixel(n_scenes: int, sensor: SensorSpec) -> int:
    """Return the bytes of one pixel in a response: float32 bands, `valid`, and the bits of `clear` and `seen`."""
    return 4 * len(sensor.bands) + 1 + 2 * 4 * -(-n_scenes // _SCENES_PER_BAND)


def count_requests(height: int, width: int, pixel_bytes: int) -> int:
    """Return the smallest number of requests that `read_pixels` sends for a grid."""
    if not _exceeds_limits(height, width, pixel_bytes):
        return 1
    longer, shorter = max(height, width), min(height, width)
    return sum(count_requests(part, shorter, pixel_bytes) for part in (longer // 2, longer - longer // 2))


def _exceeds_limits(height: int, width: int, pixel_bytes: int) -> bool:
    return height * width * pixel_bytes > REQUEST_BYTES or max(height, width) > MAX_SIDE_PX


def read_pixels(ee: ModuleType, image: Callable[[], Any], geobox: GeoBox, pixel_bytes: int) -> CompositePixels:
    """Return the pixels of an image on a grid; a grid that exceeds the service's limits is requested in halves."""
    height, width = geobox.shape
    if _exceeds_limits(height, width, pixel_bytes):
        return _read_halves(ee, image, geobox, pixel_bytes)
    terms = zip(("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY"), geobox.transform[:6], strict=True)
    grid = {
        "dimensions": {"width": width, "height": height},
        "affineTransform": dict(terms),
        "crsCode": f"EPSG:{epsg_of(geobox)}",
    }

    def request() -> CompositePixels:
        # The image is built here, so that errors of the client get their remedy.
        return _decode_npy(
            ee.data.computePixels({"expression": image(), "fileFormat": "NPY", "grid": grid}), (height, width)
        )

    try:
        return send(request)
    except RequestTooLargeError:
        if height * width < _SMALLEST_PX:
            raise
        return _read_halves(ee, image, geobox, pixel_bytes)


def _decode_npy(data: bytes, shape: tuple[int, int]) -> CompositePixels:
    """Return the array of an NPY file; a ValueError refuses one of another shape before memory is taken for it."""
    stream = io.BytesIO(data)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
    found, is_fortran, dtype = read_header(stream)
    if found != shape or is_fortran or dtype.names is None or dtype.hasobject:
        raise ValueError(f"got {dtype.names or dtype} of {found} pixels instead of bands of {shape}")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)


def _read_halves(ee: ModuleType, image: Callable[[], Any], geobox: GeoBox, pixel_bytes: int) -> CompositePixels:
    height, width = geobox.shape
    axis = 0 if height >= width else 1
    cut = max(height, width) // 2
    parts = (geobox[:cut], geobox[cut:]) if axis == 0 else (geobox[:, :cut], geobox[:, cut:])
    return np.concatenate([read_pixels(ee, image, part, pixel_bytes) for part in parts], axis=axis)


def decode_pixels(
    pixels: CompositePixels, n_scenes: int, sensor: SensorSpec
) -> tuple[FloatArray, npt.NDArray[np.uint16], float, list[bool]]:
    """Return DN (bands, y, x), NaN where unobserved; clear observations (y, x); the share of the pixels shown that are
    clear; one flag per scene, newest first.

    In a median, all scenes that observed the place count and are flagged; in a mosaic, those that lie on top.
    """
    bits = [f"{name}_{i}" for name in ("seen", "clear") for i in range(0, n_scenes, _SCENES_PER_BAND)]
    if missing := {"valid", *_band_names(sensor), *bits}.difference(pixels.dtype.names or ()):
        raise to_provider_error(KeyError(f"no band {', '.join(sorted(missing))}"))
    valid = pixels["valid"] > 0
    dn = np.stack([pixels[name] for name in _band_names(sensor)]).astype(np.float32)
    dn[:, ~valid] = np.nan
    seen, clear = (_scene_masks(pixels, name, n_scenes) for name in ("seen", "clear"))
    used = clear if sensor.cloud_mask == "scl" else seen  # pixels that the median is made of
    shown_clear = shown_clear_share(clear, used, on_top=sensor.composite == "mosaic")
    if sensor.composite == "mosaic":
        seen, clear = (list(visible_on_top(masks, seen)) for masks in (seen, clear))
    return dn, np.stack(clear).sum(axis=0, dtype=np.uint16), shown_clear, [bool(mask.any()) for mask in seen]


def _scene_masks(pixels: CompositePixels, name: str, n_scenes: int) -> list[BoolArray]:
    """Return one mask per scene, (y, x), from the bits of bands."""
    bands = [pixels[f"{name}_{i}"].astype(np.uint32) for i in range(0, n_scenes, _SCENES_PER_BAND)]
    places = (divmod(i, _SCENES_PER_BAND) for i in range(n_scenes))
    return [(bands[band] >> np.uint32(bit) & np.uint32(1)).astype(bool) for band, bit in places]
