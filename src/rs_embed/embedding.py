"""Results: the vector or grid of a place with the facts of how it was made. Metadata is built here and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rs_embed.errors import RSEmbedError, missing_core
from rs_embed.grid import epsg_of
from rs_embed.patch import Patch
from rs_embed.specs import InputPrep, OutputSpec, Place, SensorSpec, TemporalSpec

if TYPE_CHECKING:
    import xarray as xr

FEW_SCENES = 3
LOW_CLEAR_FRAC = 0.5
LOW_VALID_FRAC = 0.8
MUCH_CROPPED = 0.1

GRID_NOTE = "ViT tokens, not georeferenced pixels: a token mixes in what lies around its footprint"


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What one place looks like."""

    data: npt.NDArray[np.float32] | xr.DataArray
    """`(d,)` float32 for a pooled output, a `(d, y, x)` DataArray for a token grid."""
    meta: dict[str, Any]
    """How it was made, JSON-ready."""

    def __repr__(self) -> str:
        keys = ("model", "pooling", "start", "end", "backend", "n_scenes", "valid_frac")
        facts = ", ".join(f"{k}={self.meta[k]}" for k in keys if self.meta.get(k) is not None)
        warned = f", {len(self.meta['warnings'])} warning(s)" if self.meta.get("warnings") else ""
        return f"Embedding({'x'.join(map(str, self.data.shape))} {self.data.dtype}, {facts}{warned})"


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingFailure:
    """A place that gave no embedding, and why."""

    place: Place | None
    """None where pixels were passed without a place."""
    error: RSEmbedError

    def __repr__(self) -> str:
        return f"EmbeddingFailure({self.place}, {type(self.error).__name__}: {self.error})"


Result = Embedding | EmbeddingFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What metadata says of the model."""

    name: str
    checkpoint: str
    weights_sha256: str | None
    activation: str | None
    preprocess: str
    precision: str
    device: str
    image_px: int
    pooling: str | None
    """None for a token grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One place of a batch, as it was asked for."""

    place: Place | None
    temporal: TemporalSpec | None
    sensor: SensorSpec
    output: OutputSpec
    input_prep: InputPrep
    backend: str | None
    """The provider's name; None where pixels were passed."""
    model: str
    precision: str
    weights_sha256: str | Future[str] | None
    """Digest of the weights, or the future of one that is being computed."""
    pixels_sha256: str | None = None
    """Digest of pixels that were passed."""

    def id(self) -> str:
        """sha256 of the canonical request: the same in every process and on every machine."""
        temporal, sha256 = self.temporal, self.weights_sha256
        facts = flat(self) | {
            "place": describe_place(self.place),
            "temporal": None if temporal is None else flat(temporal),
            "sensor": {k: v for k, v in flat(self.sensor).items() if not k.startswith("check_")},
            "output": flat(self.output),
            "weights_sha256": sha256.result() if isinstance(sha256, Future) else sha256,
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """What the network saw of a place."""

    p02: int
    p50: int
    p98: int
    """Percentiles of the uint8 grey levels."""
    effective_gsd_m: float | None
    """Ground metres a model pixel; None where pixels were passed without a place."""
    cropped_frac: float
    chips: int


def flat(value: Any) -> dict[str, Any]:
    """A dataclass of plain values as a dict; `asdict` copies deeply, and takes ten times as long."""
    return {name: getattr(value, name) for name in value.__slots__}


def describe_place(place: Place | None) -> dict[str, Any] | None:
    """A place as JSON, with its kind."""
    return None if place is None else {"type": type(place).__name__, **flat(place)}


def build_meta(
    request: Request,
    model: ModelFacts,
    patch: Patch | None,
    model_input: ModelInput,
    *,
    valid_frac: float,
    input_checks: Mapping[str, Any] | None,
    output: Mapping[str, Any],
) -> dict[str, Any]:
    """All that is said of one embedding. Facts of a fetch are None where nothing was fetched."""
    fetched, temporal, sensor = patch is not None, request.temporal, request.sensor
    return {
        "model": model.name,
        "type": "on_the_fly",
        "backend": request.backend,
        "source": patch.source if patch else "input_chw",
        "spatial": describe_place(request.place),
        "temporal": flat(temporal) if temporal else None,
        "start": temporal.start if temporal else None,
        "end": temporal.end if temporal else None,
        "sensor": flat(sensor) if fetched else None,
        "bands": list(sensor.bands),
        "scale_m": sensor.scale_m if fetched else None,
        "cloudy_pct": sensor.cloudy_pct if fetched else None,
        "composite": sensor.composite if fetched else None,
        "image_size": model.image_px,
        "input_prep": request.input_prep,
        "ckpt": model.checkpoint,
        "weights_sha256": model.weights_sha256,
        "activation": model.activation,
        "preprocess": model.preprocess,
        "precision": model.precision,
        "device": model.device,
        **output,
        "request_id": request.id(),
        **_provenance(patch),
        "valid_frac": valid_frac,
        "model_input": flat(model_input),
        "input_checks": input_checks,
        "versions": versions(),
        "warnings": list(_warnings(patch, sensor, model_input, valid_frac)),
    }


def _provenance(patch: Patch | None) -> dict[str, Any]:
    if patch is None:
        keys = ("scenes", "dropped_scenes", "n_scenes", "clear_frac", "n_clear", "crs", "transform", "bounds")
        return dict.fromkeys(keys)
    box = patch.geobox.boundingbox
    return {
        "scenes": [flat(scene) for scene in patch.scenes],
        "dropped_scenes": [flat(scene) for scene in patch.dropped],
        "n_scenes": len(patch.scenes),
        "clear_frac": patch.clear_frac,
        "n_clear": patch.n_clear,
        "crs": f"EPSG:{epsg_of(patch.geobox)}",
        "transform": [float(v) for v in patch.geobox.affine[:6]],
        "bounds": [box.left, box.bottom, box.right, box.top],
    }


def _warnings(patch: Patch | None, sensor: SensorSpec, seen: ModelInput, valid_frac: float) -> Iterator[str]:
    """Texts of the form `what: detail and remedy`; a cloudy composite must never look like a clean one."""
    if patch is not None:
        yield from patch.warnings
        if patch.clear_frac is not None and patch.clear_frac < LOW_CLEAR_FRAC:
            yield (
                f"mostly not clear: only {patch.clear_frac:.0%} of the pixels were seen without cloud or shadow; "
                "widen the time range, or lower cloudy_pct" + ("" if sensor.cloud_mask else ", or set cloud_mask='scl'")
            )
        n = len(patch.scenes)
        if sensor.composite == "median" and n < FEW_SCENES:
            yield f"few scenes: a median of {n} does not remove clouds; widen the time range or raise cloudy_pct"
    if valid_frac < LOW_VALID_FRAC:
        yield (
            f"missing pixels: only {valid_frac:.0%} of the place was observed, the rest holds fill_value="
            f"{sensor.fill_value:g}; widen the time range or move the place"
        )
    if seen.cropped_frac > MUCH_CROPPED:
        yield (
            f"cropped: the model saw the middle of the place only, {seen.cropped_frac:.0%} was cut off; use a square "
            "place, or input_prep='tile'"
        )


def token_grid(
    tokens: npt.NDArray[np.float32], token_affine: Any, crs: str | None, name: str, note: Mapping[str, Any]
) -> xr.DataArray:
    """Tokens (d, rows, cols) with the centres of their footprints as coordinates.

    Args:
        tokens: the grid.
        token_affine: from (column, row) of the grid to metres in `crs`, or to pixels where `crs` is None.
        crs: `"EPSG:32633"`, or None for pixels that have no place.
        name: the model's name.
        note: further attributes.
    """
    try:
        import xarray as xr
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    _, rows, cols = tokens.shape
    x, _ = token_affine * (np.arange(cols) + 0.5, np.zeros(cols))
    _, y = token_affine * (np.zeros(rows), np.arange(rows) + 0.5)
    attributes = {"crs": crs, "transform": [float(v) for v in token_affine[:6]], "note": GRID_NOTE, **note}
    return xr.DataArray(tokens, dims=("d", "y", "x"), coords={"y": y, "x": x}, name=name, attrs=attributes)


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what shapes the numbers."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("rs-embed-remoteclip", "torch", "numpy", "pillow", "rasterio"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a source folder
    return found
