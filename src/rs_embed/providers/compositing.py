"""Composite of one place from scenes: which are used, how stored values become DN, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rs_embed.arrays import AnyArray, BoolArray, FloatArray
from rs_embed.composite import SceneImage, clear_statistics, median, mosaic, shown_clear_frac
from rs_embed.errors import FetchError, ProviderError, UnusableImageryError
from rs_embed.patch import DropKind, DroppedScene, Patch
from rs_embed.providers.raster import RasterPixels
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import Selection
from rs_embed.sentinel2 import LARGEST_DN, Radiometry

NO_VALID_PIXEL = "no valid pixel in the place"  # why a scene is dropped that was read without a fault


@dataclass(slots=True)
class CompositeBuilder:
    """Composite of one place, built scene by scene, newest first."""

    provider: str
    source: str  # origin of the imagery in words, for metadata
    selection: Selection
    check_offset: Callable[[Scene, Radiometry], tuple[Radiometry, str | None]] = lambda scene, stated: (stated, None)
    """Function from the rule that a scene states to the rule to use, and the evidence against it if there is any."""
    notes: tuple[str, ...] = ()
    """Doubts about the source, for the metadata."""
    images: list[SceneImage] = field(default_factory=list)
    dropped: list[DroppedScene] = field(default_factory=list)
    gsd_m: float = 0.0  # of the coarsest scene so far

    @property
    def is_full(self) -> bool:
        """True when no older scene can be seen: every pixel of a mosaic is observed."""
        is_mosaic = self.selection.request.sensor.composite == "mosaic"
        return is_mosaic and bool(np.logical_or.reduce([image.valid for image in self.images]).all())

    def drop(self, scene: Scene, reason: str, kind: DropKind) -> None:
        """Record why a scene contributes nothing."""
        self.dropped.append(DroppedScene(scene.id, reason, kind))

    def drop_unread(self, scene: Scene, error: FetchError) -> None:
        """Record the error that a scene's files gave."""
        self.drop(scene, str(error), "refused" if isinstance(error, UnusableImageryError) else "fault")

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
        self.gsd_m = max(self.gsd_m, *(band.gsd_m for band in bands))
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
                unknown[reason] = f"unknown DN offset: scene {scene.id} ({reason}); its pixels are used as they are"
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
            warnings=(*self.selection.warnings, *(text for i in images for text in i.warnings), *self.notes),
            source_gsd_m=self.gsd_m,
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
