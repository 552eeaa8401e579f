"""Imagery of one place as a provider returns it: DN on a grid, with provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from rs_embed.arrays import AnyArray, BoolArray, FloatArray, observed
from rs_embed.errors import ModelError, ProviderError
from rs_embed.grid import epsg_of, lonlat_bounds, lonlat_text, map_url
from rs_embed.html import Fact, Link, Picture, result_html
from rs_embed.lonlat import middle
from rs_embed.pictures import png_of, preview_of, quicklook
from rs_embed.sentinel2 import RGB_BANDS

REFLECTANCE_MAX = 2.0
"""Highest reflectance of Sentinel-2, with room for glint and snow on slopes: DN of a whole place are never that low."""

_SHOWN_PX = 160

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from PIL import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneRecord:
    """Provenance of one scene in a patch."""

    id: str
    datetime: str
    """Time of sensing, ISO 8601, UTC."""
    cloud_pct: float | None
    """Cloud cover of the whole scene, per cent; None where the source does not say."""
    processing_baseline: str | None
    dn_offset: float | None
    """DN that were added to each band; None when unknown (nothing was added), and where bands differ."""
    dn_offset_reason: str
    """Rule that decided the offset; where bands differ, the offset and the rule of each."""


DropKind = Literal["no_data", "fault", "refused"]
"""Kind of a drop: the scene saw nothing there; it could not be read, and may be later; it is not usable."""


@dataclass(frozen=True, slots=True)
class DroppedScene:
    """Candidate scene that contributed nothing, and the reason."""

    id: str
    reason: str
    kind: DropKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """Composited, harmonised imagery of one place.

    Raises:
        ProviderError: when the arrays do not fit the grid.
    """

    dn: FloatArray
    """(bands, y, x), DN = 10,000 × reflectance, row 0 north; NaN where nothing was observed."""
    geobox: GeoBox
    bands: tuple[str, ...]
    source: str
    """Name of the source, such as a catalog's collection or a folder; never a signed URL."""
    scenes: tuple[SceneRecord, ...]
    dropped: tuple[DroppedScene, ...] = ()
    clear_frac: float | None = None
    """Share of pixels with at least one clear observation; None where no scene has a scene classification."""
    n_clear: float | None = None
    """Median over pixels of the number of clear observations; None likewise."""
    shown_clear_frac: float | None = None
    """Share of the observed pixels that show the ground: the observation on top of a mosaic is clear, or more than half
    of a median's; None likewise."""
    warnings: tuple[str, ...] = ()
    source_gsd_m: float | None = None
    """Side of the source's pixels in ground metres, of the coarsest scene; None where the provider does not say."""

    def __post_init__(self) -> None:
        expected = (len(self.bands), *self.geobox.shape)
        if self.dn.shape != expected or self.dn.dtype != np.float32:
            raise ProviderError(f"a patch must be float32 {expected}, got {self.dn.dtype} {self.dn.shape}")

    @property
    def lost(self) -> tuple[DroppedScene, ...]:
        """Scenes that could not be read: the patch may differ from that of a run without faults."""
        return tuple(scene for scene in self.dropped if scene.kind == "fault")

    @property
    def lost_text(self) -> str:
        """Sentence that names the lost scenes and the reason of the first one."""
        lost, scenes = self.lost, len(self.scenes) + len(self.dropped)
        return f"{len(lost)} of {scenes} scene(s) could not be read ({listed(lost)})"

    def plot(self) -> Image.Image:
        """Draw the first three bands as red, green and blue, stretched; hatched where nothing was observed."""
        return quicklook(self._shown)

    @property
    def _shown(self) -> FloatArray:
        return self.dn[:3] if len(self.dn) >= 3 else self.dn[:1].repeat(3, axis=0)

    @property
    def _pixels_text(self) -> str:
        height, width = self.geobox.shape
        size = f"{width} x {height} px of {self.geobox.resolution.x:g} m"
        return f"{', '.join(self.bands)}, {size}, EPSG:{epsg_of(self.geobox)}"

    def __repr__(self) -> str:
        observed_pct = f"{self.valid.mean():.0%} observed"
        return f"Patch({self._pixels_text}, {len(self.scenes)} scene(s) of {self.source}, {observed_pct})"

    def _repr_html_(self) -> str:
        lon, lat = middle(lonlat_bounds(self.geobox))
        scenes = [f"{scene.datetime[:10]}{_cloud_text(scene.cloud_pct)}" for scene in self.scenes]
        more = f", … {len(scenes) - 5} more" if len(scenes) > 5 else ""
        facts: list[Fact] = [
            ("place", Link(lonlat_text(lon, lat), map_url(lon, lat))),
            ("pixels", self._pixels_text),
            ("source", self.source),
            ("scenes", ", ".join(scenes[:5]) + more),
            ("observed", f"{self.valid.mean():.0%}"),
            ("clear", None if self.shown_clear_frac is None else f"{self.shown_clear_frac:.0%} of what is shown"),
        ]
        picture = Picture(png_of(quicklook(preview_of(self._shown), side_px=_SHOWN_PX)), _SHOWN_PX)
        remarks = [*self.warnings, *([self.lost_text] if self.lost else [])]
        return result_html("Imagery of one place", facts, [picture], remarks)

    @property
    def valid(self) -> BoolArray:
        """Observed pixels (y, x), True where all bands were observed."""
        return observed(self.dn)


def _cloud_text(cloud_pct: float | None) -> str:
    return "" if cloud_pct is None else f" ({cloud_pct:.0f} % cloud)"


def listed(dropped: Sequence[DroppedScene]) -> str:
    """Name the first dropped scenes with their reasons."""
    return "; ".join(f"{scene.id}: {scene.reason}" for scene in dropped[:3])


def check_input_chw(array: object, position: int | None = None) -> AnyArray:
    """Return a user's pixels as an array: raw DN, (3, y, x), any numeric type, NaN where not observed or masked."""
    name = "input_chw" if position is None else f"input_chws[{position}]"
    try:
        array = _plain(array)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} cannot be read as an array of numbers: {error}") from error
    if array.dtype.kind not in "uif":
        raise ModelError(f"{name} must hold numbers (raw DN), got dtype {array.dtype}")
    if array.ndim != 3 or array.shape[0] != 3:
        raise ModelError(f"{name} must be CHW with exactly 3 bands in {RGB_BANDS} order, got shape {array.shape}")
    if array.size == 0:
        raise ModelError(f"{name} has an empty axis: shape {array.shape}")
    if array.dtype.kind == "f":
        _check_floats(array, name)
    return array


def _plain(array: object) -> AnyArray:
    """Return an ndarray; masked elements of a masked array, or of a list of them, become NaN."""
    if not isinstance(array, (np.ma.MaskedArray, list, tuple)):
        return np.asarray(array)
    masked = np.ma.asanyarray(array)
    if not np.ma.is_masked(masked) or masked.dtype.kind not in "uif":
        return np.asarray(masked)
    small = masked.dtype.itemsize < 4 or masked.dtype.kind == "f"  # float32 holds such whole numbers exactly
    kind = np.promote_types(masked.dtype, np.float32 if small else np.float64)
    return np.ma.filled(masked.astype(kind), np.nan)


def _check_floats(array: AnyArray, name: str) -> None:
    """Refuse pixels that would be shown black or white by mistake."""
    low, high = float(np.fmin.reduce(array, axis=None)), float(np.fmax.reduce(array, axis=None))
    if np.isnan(high):
        raise ModelError(f"{name} is all NaN: no pixel was observed")
    if np.isinf(low) or np.isinf(high):
        n = int(np.isinf(array).sum())
        raise ModelError(f"{name} has {n:,} infinite value(s) of {array.size:,}: set them to NaN (not observed)")
    if 0 < high <= REFLECTANCE_MAX and (np.nan_to_num(array) % 1).any():  # whole numbers are DN of a dark place
        raise ModelError(f"{name} holds values up to {high:g}, which is reflectance: multiply it by 10000 for raw DN")
