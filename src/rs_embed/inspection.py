"""Inspection of pixels before a model sees them: a report of numbers, and a quicklook picture."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rs_embed.arrays import AnyArray, observed
from rs_embed.errors import SpecError
from rs_embed.files import atomic_write, make_folder
from rs_embed.patch import REFLECTANCE_MAX, Patch
from rs_embed.pictures import png_of, quicklook
from rs_embed.specs import SensorSpec

MIN_FINITE_FRAC = 0.999
MAX_OUTSIDE_FRAC = 0.001
MAX_FILL_FRAC = 0.98
FEW_SCENES = 3
HALF = 0.5
"""Share of pixels, clear or observed, under which a place is mostly something else than its ground."""
LOW_FRAC = 0.8
COARSE = 1.5
"""Pixels of the source in units of the grid's, above which each is shown at least twice on a side somewhere."""
"""Share under which a warning says so."""
THUMBNAIL_PX = 96
_HISTOGRAM_BINS = 32
_NOTE_PX = 13


def inspect_array(
    dn: AnyArray,
    *,
    name: str,
    fill_value: float = 0.0,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[str] = ("B4", "B3", "B2"),
    scenes: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return a JSON-ready report of numbers that tell good imagery from bad: (bands, y, x), NaN where not observed."""
    missing = np.isnan(dn)
    filled = np.where(missing, fill_value, dn) if missing.any() else dn
    seen = [band[np.isfinite(band)] for band in dn]
    report: dict[str, Any] = {
        "name": name,
        "shape": list(dn.shape),
        "dtype": str(dn.dtype),
        "finite_frac": float(np.isfinite(filled).mean()) if dn.size else 0.0,
        "valid_frac": float(observed(dn).mean()) if dn.size else 0.0,
        "band_min": _each(seen, np.min),
        "band_max": _each(seen, np.max),
        "band_mean": _each(seen, np.mean),
        "band_std": _each(seen, np.std),
        "band_quantiles": {f"p{q:02d}": _each(seen, lambda b, q=q: np.percentile(b, q)) for q in (1, 50, 99)},
        "hist": _histogram(seen, value_range),
        "outside_range_frac": None,
        "fill_value": fill_value,
        "fill_frac": float((filled == fill_value).all(axis=0).mean()) if dn.size else 1.0,
        "scenes": list(scenes),
    }
    if value_range is not None:
        values, (low, high) = np.concatenate(seen), value_range
        report["outside_range_frac"] = float(((values < low) | (values > high)).mean()) if values.size else 0.0
    issues = _judge(report, bands, value_range)
    warnings = list(missing_warnings(report["valid_frac"], fill_value))
    highest = max((v for v in report["band_max"] if v is not None), default=0.0)
    if dn.dtype.kind == "f" and 0 < highest <= REFLECTANCE_MAX:
        warnings.append(f"values up to {highest:g} look like reflectance: this library takes DN (reflectance x 10000)")
    return {"ok": not issues, "issues": issues, "warnings": warnings, **report}


def _judge(report: dict[str, Any], bands: Sequence[str], value_range: tuple[float, float] | None) -> list[str]:
    issues = []
    if report["finite_frac"] < MIN_FINITE_FRAC:
        issues.append(f"only {report['finite_frac']:.2%} of the values are finite (at least {MIN_FINITE_FRAC:.1%})")
    if report["shape"][0] != len(bands):
        issues.append(f"{report['shape'][0]} channel(s), expected {len(bands)}: {', '.join(bands)}")
    for index, (low, high) in enumerate(zip(report["band_min"], report["band_max"], strict=True)):
        if low is None or low == high:
            value = "nothing observed" if low is None else f"every value is {low:g}"
            issues.append(f"band {bands[index] if index < len(bands) else index} is constant: {value}")
    if report["outside_range_frac"] is not None and report["outside_range_frac"] > MAX_OUTSIDE_FRAC:
        issues.append(f"{report['outside_range_frac']:.2%} of the values lie outside {value_range}")
    if report["fill_frac"] > MAX_FILL_FRAC:
        issues.append(f"{report['fill_frac']:.1%} of the pixels hold the fill value {report['fill_value']:g}")
    if report["valid_frac"] < HALF:
        issues.append(f"only {report['valid_frac']:.1%} of the pixels were observed (at least {HALF:.0%})")
    return issues


def check_range(value_range: object) -> None:
    """Raise a SpecError unless a range of values is None or two rising numbers."""
    pair = (0, 1) if value_range is None else value_range
    if not (isinstance(pair, Sequence) and len(pair) == 2 and pair[0] < pair[1]):
        raise SpecError(f"value_range must be the lowest and highest DN, such as (0, 10000), got {value_range!r:.80}")


def inspect_patch(
    patch: Patch, sensor: SensorSpec, *, name: str, value_range: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Return the report of `inspect_array`, with how clear the pixels are and all warnings about the imagery."""
    report = inspect_array(
        patch.dn,
        name=name,
        fill_value=sensor.fill_value,
        value_range=value_range,
        bands=sensor.bands,
        scenes=[asdict(scene) for scene in patch.scenes],
    )
    report |= {key: getattr(patch, key) for key in ("clear_frac", "n_clear", "shown_clear_frac")}
    if _is_mostly_unclear(patch):
        report["issues"].append(f"most of the pixels shown are cloud or shadow: {_clearness(patch)}")
    report["warnings"] += imagery_warnings(patch, sensor)
    report["ok"] = not report["issues"]
    return report


def imagery_warnings(patch: Patch, sensor: SensorSpec) -> Iterator[str]:
    """Yield texts of the form `kind: detail; remedy`, so that a cloudy composite never looks like a clean one."""
    yield from patch.warnings
    if patch.lost:
        yield f"lost scenes: {patch.lost_text}; ask again, or refuse such places with on_lost_scene='fail'"
    gsd_m = patch.source_gsd_m
    if gsd_m is not None and gsd_m > COARSE * sensor.scale_m:
        yield (
            f"coarse imagery: pixels of {gsd_m:.3g} m are repeated on a grid of {sensor.scale_m:g} m; use bands of "
            f"{sensor.scale_m:g} m, or a scale_m of {gsd_m:.3g} with larger places"
        )
    mask = "" if sensor.cloud_mask else "set cloud_mask='scl', or "
    shown = patch.shown_clear_frac
    if patch.clear_frac is not None and patch.clear_frac < HALF:
        yield (
            f"mostly not clear: only {patch.clear_frac:.0%} of the pixels were seen without cloud or shadow; "
            f"{mask}widen the time range, or lower cloudy_pct"
        )
    elif _is_mostly_unclear(patch):
        yield f"mostly not clear: {_clearness(patch)}; {mask}take the least cloudy scenes with max_scenes"
    elif shown is not None and shown < LOW_FRAC:
        yield f"partly not clear: {_clearness(patch)}; {mask}take the least cloudy scenes with max_scenes"
    if sensor.composite == "median":
        yield from _few_scenes(patch)


def missing_warnings(valid_frac: float, fill_value: float) -> Iterator[str]:
    """Yield a warning if much of a place was not observed."""
    if valid_frac < LOW_FRAC:
        yield (
            f"missing pixels: only {valid_frac:.0%} of the place was observed, the rest holds fill_value="
            f"{fill_value:g}; widen the time range or move the place"
        )


def _is_mostly_unclear(patch: Patch) -> bool:
    """Tell if most pixels show cloud; where a provider states only `n_clear`, if half of the scenes exceed it."""
    if patch.shown_clear_frac is not None:
        return patch.shown_clear_frac <= HALF
    return patch.n_clear is not None and patch.n_clear < len(patch.scenes) / 2


def _clearness(patch: Patch) -> str:
    seen = f"the median pixel has {patch.n_clear:g} clear observation(s) in {len(patch.scenes)} scene(s)"
    shown = patch.shown_clear_frac
    return seen if shown is None else f"only {shown:.0%} of the pixels shown are clear, {seen}"


def _few_scenes(patch: Patch) -> Iterator[str]:
    """Yield a warning if a median is that of few scenes, or of few clear ones where that is known."""
    n, remedy = len(patch.scenes), "does not remove clouds; widen the time range or raise cloudy_pct"
    if n < FEW_SCENES:
        yield f"few scenes: a median of {n} {remedy}"
    elif patch.n_clear is not None and patch.n_clear < FEW_SCENES:
        yield f"few clear scenes: a median of {n} with {patch.n_clear:g} clear observation(s) a pixel {remedy}"


def _each(bands: Sequence[AnyArray], statistic: Any) -> list[float | None]:
    return [float(statistic(band.astype(np.float64))) if band.size else None for band in bands]


def _histogram(bands: Sequence[AnyArray], value_range: tuple[float, float] | None) -> dict[str, Any]:
    values = [band for band in bands if band.size]
    if not values:
        return {"edges": [], "counts": [[] for _ in bands]}
    low, high = value_range or (float(min(b.min() for b in values)), float(max(b.max() for b in values)))
    edges = np.linspace(low, high if high > low else low + 1, _HISTOGRAM_BINS + 1)
    return {"edges": edges.tolist(), "counts": [np.histogram(band, edges)[0].tolist() for band in bands]}


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """Thumbnail and colour of a patch, kept beside its vector."""

    thumbnail: bytes | None
    """PNG, 96 px on its longer side, in the one stretch of all thumbnails; None where none was wanted."""
    band_means: tuple[float, ...]
    """Mean DN of each band over the observed pixels."""


def summarise_patch(dn: AnyArray, *, thumbnail: bool = True) -> PatchSummary:
    """Return a thumbnail and the mean colour of (bands, y, x) DN."""
    valid = observed(dn)
    values = dn.reshape(len(dn), -1) if valid.all() else dn[:, valid]
    means = tuple(float(v) for v in values.mean(axis=1, dtype=np.float64))
    if not thumbnail:
        return PatchSummary(None, means)
    image = quicklook(dn, side_px=THUMBNAIL_PX, one_stretch=True)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return PatchSummary(png_of(image), means)


def save_quicklook(dn: AnyArray, folder: str | Path, name: str, notes: Sequence[str] = ()) -> Path:
    """Write a quicklook PNG into a folder, and create the folder; the name cannot lead out of it.

    `notes`, such as the issues of a report, are written below the picture.
    """
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "quicklook"
    path = Path(folder) / f"{safe}.png"
    make_folder(path.parent)
    with atomic_write(path) as part:
        _with_notes(quicklook(dn), notes).save(part)
    return path


def _with_notes(image: Image.Image, notes: Sequence[str]) -> Image.Image:
    """Return a picture with a strip of text below it."""
    if not notes:
        return image
    font = ImageFont.load_default(_NOTE_PX)
    lines = [line for note in notes for line in textwrap.wrap(note, max(12, 2 * image.width // _NOTE_PX))]
    sheet = Image.new("RGB", (image.width, image.height + (len(lines) + 1) * (_NOTE_PX + 4)))
    sheet.paste(image)
    ImageDraw.Draw(sheet).multiline_text((6, image.height + 4), "\n".join(lines), "white", font=font, spacing=4)
    return sheet
