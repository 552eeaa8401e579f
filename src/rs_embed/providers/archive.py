"""Provider over scenes whose files are at hand: select, read, harmonise, composite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from odc.geo.geobox import GeoBox

from rs_embed import settings
from rs_embed.arrays import AnyArray, BoolArray, FloatArray
from rs_embed.composite import SceneImage, clear_statistics, median, mosaic, shown_clear_frac
from rs_embed.errors import ProviderError
from rs_embed.patch import DropKind, DroppedScene, Patch
from rs_embed.providers.base import FetchPlan, PatchRequest, in_threads
from rs_embed.providers.raster import RasterPixels, read_onto
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.providers.selection import Selection, select_scenes
from rs_embed.sentinel2 import LARGEST_DN, Radiometry

NO_VALID_PIXEL = "no valid pixel in the place"  # why a scene is dropped that was read without a fault


class ArchiveProvider:
    """Provider over a fixed set of scenes, read with GDAL; `source` is their origin in words, for metadata."""

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

    def _fetch_one(self, request: PatchRequest) -> Patch | ProviderError:
        selection = select_scenes(self.scenes, request)
        selection.check(self.name)
        builder = CompositeBuilder(self.name, self.source, selection)
        for scene in selection.scenes:
            try:
                builder.add(scene, _read_scene(scene, request))
            except ProviderError as error:
                builder.drop(scene, str(error))
            if builder.is_full:
                break
        return builder.build()


@dataclass(slots=True)
class CompositeBuilder:
    """Composite of one place, built scene by scene, newest first."""

    provider: str
    source: str  # origin of the imagery in words, for metadata
    selection: Selection
    check_offset: Callable[[Scene, Radiometry], tuple[Radiometry, str | None]] = lambda scene, stated: (stated, None)
    """Function from the rule that a scene states to the rule to use, and the evidence against it if there is any."""
    images: list[SceneImage] = field(default_factory=list)
    dropped: list[DroppedScene] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """True when no older scene can be seen: every pixel of a mosaic is observed."""
        is_mosaic = self.selection.request.sensor.composite == "mosaic"
        return is_mosaic and bool(np.logical_or.reduce([image.valid for image in self.images]).all())

    def drop(self, scene: Scene, reason: str, kind: DropKind = "fault") -> None:
        """Record why a scene contributes nothing."""
        self.dropped.append(DroppedScene(scene.id, reason, kind))

    def add(self, scene: Scene, pixels: Sequence[RasterPixels]) -> None:
        """Add a scene's bands and, if it has one, its scene classification; drop a scene without a valid pixel."""
        sensor = self.selection.request.sensor
        bands, classes = pixels[: len(sensor.bands)], pixels[len(sensor.bands) :]
        valid: BoolArray = np.logical_and.reduce([band.valid for band in bands])
        if not valid.any():
            self.drop(scene, NO_VALID_PIXEL, "no_data")
            return
        try:
            rules, warnings = self._rules(scene, dict(zip(sensor.bands, bands, strict=True)), valid)
            dn = harmonise([band.values for band in bands], list(rules.values()))
            if not has_real_dn(dn, valid):
                reason = scene.record(rules).dn_offset_reason
                raise ProviderError(
                    f"its DN cannot be real, none is in 2…{LARGEST_DN:,.0f} ({reason}): correct scale and offset"
                )
        except ProviderError as error:
            self.drop(scene, str(error), "refused")
            return
        scl = np.where(classes[0].valid, classes[0].values[0], 0).astype(np.uint8) if classes else None
        image = SceneImage(dn, valid, scl, scene.record(rules), (*scene.warnings, *warnings))
        self.images.append(image.masked() if sensor.cloud_mask == "scl" else image)

    def _rules(
        self, scene: Scene, bands: Mapping[str, RasterPixels], valid: BoolArray
    ) -> tuple[dict[str, Radiometry], list[str]]:
        """Return the rule of each band, with warnings; a band that cannot be reflectance is a ProviderError."""
        in_8_bits = next((name for name, band in bands.items() if band.values.dtype.itemsize == 1), None)
        if in_8_bits is not None:
            raise ProviderError(f"its {in_8_bits} is stored in 8 bits: that is a picture, not reflectance")
        largest = _largest_float(list(bands.values()), valid)
        rules, contradictions, unknown = {}, {}, {}
        for name, band in bands.items():
            is_float = band.values.dtype.kind == "f"
            stated = scene.radiometry(name, band.scale, band.offset, largest if is_float else None)
            rules[name], contradiction = self.check_offset(scene, stated)
            if contradiction is not None:
                contradictions[contradiction] = (
                    f"doubtful DN offset: scene {scene.id}: {contradiction}; let the pixels decide with "
                    "backend='<catalog>?offset=pixels', or leave the scene out"
                )
            if rules[name].offset is None:
                reason = rules[name].reason
                unknown[reason] = (
                    f"the DN offset of scene {scene.id} is unknown ({reason}); its pixels are used as they are"
                )
        return rules, [*contradictions.values(), *unknown.values()]

    def build(self) -> Patch | ProviderError:
        """Return the patch, or the error of a place where no scene has a valid pixel; the images are released."""
        request, on_top = self.selection.request, self.selection.request.sensor.composite == "mosaic"
        images, self.images = self.images, []
        dn = (mosaic(images) if on_top else median(images)) if images else None
        if dn is None or np.isnan(dn[0]).all():
            return self.selection.no_pixel_error(self.provider, (*self.selection.unusable, *self.dropped))
        clear_frac, n_clear = clear_statistics(images, on_top=on_top)
        return Patch(
            dn=dn,
            geobox=request.geobox,
            bands=request.sensor.bands,
            source=self.source,
            scenes=tuple(image.record for image in images if image.record is not None),
            dropped=(*self.selection.unusable, *self.dropped),
            clear_frac=clear_frac,
            n_clear=n_clear,
            shown_clear_frac=shown_clear_frac(images, on_top=on_top),
            warnings=(*self.selection.warnings, *(text for image in images for text in image.warnings)),
        )


def harmonise(values: Sequence[AnyArray], rules: Sequence[Radiometry]) -> FloatArray:
    """Turn stored values (1, y, x) of bands into DN (bands, y, x); where it changes them, a pixel stays at 1 or more.

    Values that a scale turns into DN become whole numbers, so that reflectance in floats gives the DN it came from.
    """
    dn = np.concatenate(values).astype(np.float32)
    for plane, rule in zip(dn, rules, strict=True):
        if rule.gain != 1.0:
            np.rint(np.multiply(plane, np.float32(rule.gain), out=plane), out=plane)
        if rule.offset:
            plane += np.float32(rule.offset)
        if rule.offset or rule.gain != 1.0:
            np.maximum(plane, 1.0, out=plane)
    return dn


def has_real_dn(dn: FloatArray, valid: BoolArray) -> bool:
    """Tell if any valid pixel holds a DN that reflectance can have; mostly a few pixels tell."""
    for step in (16, 1):
        part = dn[:, ::step, ::step]
        if bool(((part > 1.0) & (part <= LARGEST_DN) & valid[::step, ::step]).any()):
            return True
    return False


def _largest_float(bands: Sequence[RasterPixels], valid: BoolArray) -> float | None:
    """Return the largest valid value of the bands that are stored in floats."""
    floats = [band.values[0] for band in bands if band.values.dtype.kind == "f"]
    return max((float(np.max(v, where=valid, initial=-np.inf)) for v in floats), default=None)


def _read_scene(scene: Scene, request: PatchRequest) -> list[RasterPixels]:
    """Read a scene's bands, and its scene classification if there is one: metadata state how clear a composite is."""
    files = [scene.files[band] for band in (*request.sensor.bands, "SCL") if band in scene.files]
    return [_read_band(file, request.geobox) for file in files]


def _read_band(file: BandFile, geobox: GeoBox) -> RasterPixels:
    pixels = read_onto(file.path, [file.index], geobox)
    return pixels if file.nodata is None else replace(pixels, valid=pixels.valid & (pixels.values[0] != file.nodata))


def _read_bytes(selection: Selection) -> int:
    """Return the bytes that a selection reads: two a pixel and band, one for the scene classification."""
    height, width = selection.request.geobox.shape
    n_bands = len(selection.request.sensor.bands)
    return height * width * sum(2 * n_bands + ("SCL" in scene.files) for scene in selection.scenes)
