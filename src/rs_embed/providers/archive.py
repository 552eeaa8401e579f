"""Provider over scenes whose files are at hand: select, read, harmonise, composite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rs_embed import settings
from rs_embed.composite import SceneImage, clear_statistics, median, mosaic
from rs_embed.errors import ProviderError
from rs_embed.patch import DroppedScene, Patch
from rs_embed.providers.base import FetchPlan, PatchRequest, in_threads
from rs_embed.providers.raster import read_onto
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.sentinel2 import Radiometry

NO_VALID_PIXEL = "no valid pixel in the place"
"""Reason for which a scene is dropped that was read without a fault."""


class ArchiveProvider:
    """Provider over a fixed set of scenes, read with GDAL.

    Args:
        name: the backend's name, for metadata and errors.
        source: the imagery's origin in words, for metadata.
        scenes: all scenes.
    """

    def __init__(self, name: str, source: str, scenes: Sequence[Scene]) -> None:
        self.name, self.source, self.scenes = name, source, tuple(scenes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {len(self.scenes)} scenes)"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield patches as they are read, several places at a time."""
        return in_threads(
            requests,
            self._fetch_one,
            settings.fetch_workers(),
            size_of=lambda r: 4 * len(r.sensor.bands) * r.geobox.shape[0] * r.geobox.shape[1],  # float32
        )

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Count scenes and bytes from footprints and dates alone."""
        selections = [select_scenes(self.scenes, request) for request in requests]
        return FetchPlan(
            scenes_of=tuple(len(s.scenes) for s in selections),
            covered=tuple(s.covered for s in selections),
            read_bytes=sum(map(_read_bytes, selections)),
        )

    def _fetch_one(self, request: PatchRequest) -> Patch:
        selection = select_scenes(self.scenes, request)
        selection.check(self.name)
        images, dropped = _read_scenes(selection)
        return build_patch(self.name, self.source, selection, images, dropped)


def build_patch(
    provider: str, source: str, selection: Selection, images: Sequence[SceneImage], dropped: Sequence[DroppedScene]
) -> Patch:
    """Composite the images of a place.

    Args:
        provider: the provider's name, for the error.
        source: the imagery's origin in words, for metadata.
        selection: the scenes that were to be read.
        images: those that have a valid pixel, newest first.
        dropped: the others.

    Raises:
        NoImageryError: when no scene has a valid pixel.
    """
    request, on_top = selection.request, selection.request.sensor.composite == "mosaic"
    images = [mask_clouds(image, request) for image in images]
    dn = (mosaic(images) if on_top else median(images)) if images else None
    if dn is None or np.isnan(dn[0]).all():
        raise selection.no_pixel_error(provider, dropped)
    clear_frac, n_clear = clear_statistics(images, on_top=on_top)
    return Patch(
        dn=dn,
        geobox=request.geobox,
        bands=request.sensor.bands,
        source=source,
        scenes=tuple(image.record for image in images if image.record is not None),
        dropped=tuple(dropped),
        clear_frac=clear_frac,
        n_clear=n_clear,
        warnings=(*selection.warnings, *(text for image in images for text in image.warnings)),
    )


def mask_clouds(image: SceneImage, request: PatchRequest) -> SceneImage:
    """Apply the sensor's `cloud_mask` to an image."""
    return image.masked() if request.sensor.cloud_mask == "scl" else image


def harmonised_image(
    scene: Scene,
    values: npt.NDArray[np.generic],
    valid: npt.NDArray[np.bool_],
    scl: npt.NDArray[np.uint8] | None,
    rule: Radiometry,
    contradiction: str | None = None,
) -> SceneImage:
    """Turn the stored values of a scene into DN, with the scene's provenance and warnings.

    Args:
        scene: the scene.
        values: (bands, y, x), as stored.
        valid: (y, x), True where all bands were observed.
        scl: (y, x) scene classification; None where the scene has none.
        rule: from stored values to DN.
        contradiction: what the pixels say against the rule.
    """
    warnings = [*scene.warnings]
    if contradiction is not None:
        warnings.append(
            f"doubtful DN offset: scene {scene.id}: {contradiction}; let the pixels decide with "
            "backend='<catalog>?offset=pixels', or leave the scene out"
        )
    if rule.offset is None:
        warnings.append(
            f"the DN offset of scene {scene.id} is unknown ({rule.reason}); its pixels are used as they are"
        )
    return SceneImage(harmonise(values, rule), valid, scl, scene.record(rule), tuple(warnings))


def harmonise(values: npt.NDArray[np.generic], rule: Radiometry) -> npt.NDArray[np.float32]:
    """Turn stored values into DN; a valid pixel stays at 1 or more where an offset is subtracted."""
    dn = values.astype(np.float32)
    if rule.gain != 1.0:
        dn *= np.float32(rule.gain)
    if rule.offset:
        dn += np.float32(rule.offset)
        np.maximum(dn, 1.0, out=dn)
    return dn


def _read_scenes(selection: Selection) -> tuple[list[SceneImage], list[DroppedScene]]:
    """Read scenes, newest first; a mosaic needs no more once every pixel is observed."""
    request = selection.request
    images: list[SceneImage] = []
    dropped: list[DroppedScene] = []
    missing = np.ones(request.geobox.shape, dtype=bool)
    for scene in selection.scenes:
        try:
            image = _read_scene(scene, request)
        except ProviderError as error:
            dropped.append(DroppedScene(scene.id, str(error)))
            continue
        if not image.valid.any():
            dropped.append(DroppedScene(scene.id, NO_VALID_PIXEL))
            continue
        images.append(image)
        missing &= ~mask_clouds(image, request).valid
        if request.sensor.composite == "mosaic" and not missing.any():
            break
    return images, dropped


def _read_scene(scene: Scene, request: PatchRequest) -> SceneImage:
    """Read a scene on the request's grid.

    Raises:
        ProviderError: for a band that the scene lacks, or a file that cannot be read.
    """
    bands = request.sensor.bands
    for band in bands:
        if band not in scene.files:
            raise ProviderError(f"scene {scene.id} has no band {band} (it has {', '.join(scene.files)})")
    # The scene classification is read whenever there is one: the metadata state how clear a composite is.
    files = [scene.files[band] for band in (*bands, "SCL") if band in scene.files]
    read = [read_onto(file.path, [file.index], request.geobox) for file in files]
    pixels, classes = read[: len(bands)], read[len(bands) :]
    scl = np.where(classes[0].valid, classes[0].values[0], 0).astype(np.uint8) if classes else None
    return harmonised_image(
        scene,
        np.concatenate([band.values for band in pixels]),
        np.logical_and.reduce([band.valid for band in pixels]),
        scl,
        scene.radiometry(bands[0], pixels[0].scale, pixels[0].offset),
    )


def _read_bytes(selection: Selection) -> int:
    """Return the bytes that a selection reads: two a pixel and band, one for the scene classification."""
    height, width = selection.request.geobox.shape
    n_bands = len(selection.request.sensor.bands)
    return height * width * sum(2 * n_bands + ("SCL" in scene.files) for scene in selection.scenes)
