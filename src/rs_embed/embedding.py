"""Embeddings, failures and requests, and all of an embedding's metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rs_embed.arrays import AnyArray, FloatArray
from rs_embed.cautions import warnings_of
from rs_embed.errors import RSEmbedError, SpecError, missing_core
from rs_embed.geotiff import write_geotiff
from rs_embed.grid import epsg_of, lonlat_text, map_url
from rs_embed.html import Fact, Link, Picture, result_html
from rs_embed.patch import Patch
from rs_embed.pictures import png_of, quicklook, side_by_side, token_colours
from rs_embed.specs import BBox, InputPrep, OutputSpec, Place, PointBuffer, SensorSpec, TemporalSpec
from rs_embed.versions import versions

if TYPE_CHECKING:
    import xarray as xr
    from PIL import Image

    from rs_embed.embedders.chips import Chips
    from rs_embed.embedders.onthefly_remoteclip import Encoded, RemoteClipEmbedder

_SHOWN_PX = 160
CLIP_PREPROCESS = "clip: resize shorter side (bicubic), centre crop, normalise"
GRID_NOTE = "ViT tokens, not georeferenced pixels: a token mixes in what lies around its footprint"


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Vector or token grid of one place, with its metadata.

    Examples:
        >>> import numpy as np
        >>> from rs_embed import get_embedding
        >>> pixels = np.random.default_rng(0).integers(0, 3000, (3, 64, 64))
        >>> vector = get_embedding("clip_eurosat_s2rgb", input_chw=pixels)
        >>> vector.data.shape, vector.meta["pooling"]
        ((192,), 'token_mean')
    """

    data: FloatArray | xr.DataArray
    """`(d,)` float32 for a pooled output, a `(d, y, x)` DataArray for a token grid."""
    meta: dict[str, Any]
    """Request, provenance and warnings, JSON-ready."""
    preview: AnyArray | None = None
    """Pixels (3, y, x) of the quicklook, at most 128 a side; None in batches of more than 100 places."""

    @property
    def lacks_scenes(self) -> bool:
        """True where scenes could not be read, so that a run without faults may give another vector."""
        return has_fault(self.meta["dropped_scenes"])

    def to_geotiff(self, path: str | Path) -> Path:
        """Write a token grid as a float32 GeoTIFF with one band for each of its d numbers, atomically.

        Args:
            path: file to write; its folder exists.

        Raises:
            SpecError: for a pooled vector, and for a grid of pixels that were passed without a place.
        """
        if self.data.ndim != 3:
            raise SpecError(f"{self!r} is a vector, which has no place for each number: ask for OutputSpec.grid()")
        attrs = self.data.attrs  # type: ignore[union-attr]
        if attrs["crs"] is None:
            raise SpecError("a grid of passed pixels has no coordinates: embed a place (spatial=) for a GeoTIFF")
        from affine import Affine

        return write_geotiff(
            path,
            np.asarray(self.data, np.float32),
            crs=attrs["crs"],
            transform=Affine(*attrs["transform"]),
            names=[f"d{i}" for i in range(len(self.data))],
            tags={"model": str(self.meta["model"]), "request_id": str(self.meta["request_id"]), "note": GRID_NOTE},
        )

    def plot(self) -> Image.Image:
        """Draw the quicklook, and beside it a token grid, coloured by its first three principal components.

        Raises:
            SpecError: for a vector of a batch of more than 100 places, which keeps no quicklook.
        """
        if not (images := self._pictures(512)):
            raise SpecError("a vector of a batch of over 100 places has no quicklook: fetch_patch(place, …).plot()")
        return side_by_side(*images)

    def _pictures(self, side_px: int) -> list[Image.Image]:
        images = [] if self.preview is None else [quicklook(self.preview, side_px=side_px)]
        if self.data.ndim == 3:
            images.append(token_colours(np.asarray(self.data, np.float32), side_px=side_px))
        return images

    def _repr_html_(self) -> str:
        meta, shape = self.meta, " x ".join(map(str, self.data.shape))
        facts: list[Fact] = [
            ("place", place_fact(meta.get("spatial"))),
            ("time", f"{meta['start']} to {meta['end']}" if meta.get("start") else None),
            ("imagery", _imagery_text(meta)),
            ("numbers", f"{shape} {self.data.dtype}, {meta.get('pooling') or 'patch tokens, row 0 north'}"),
            ("model", f"{meta.get('model')}, {meta.get('precision')} on {meta.get('device')}"),
            ("request", str(meta.get("request_id") or "")[:12]),
        ]
        title = "Vector of one place" if self.data.ndim == 1 else "Token grid of one place"
        pictures = [Picture(png_of(image), _SHOWN_PX) for image in self._pictures(_SHOWN_PX)]
        return result_html(title, facts, pictures, meta.get("warnings") or ())

    def __repr__(self) -> str:
        keys = ("model", "pooling", "start", "end", "backend", "n_scenes", "valid_frac")
        facts = ", ".join(f"{k}={self.meta[k]}" for k in keys if self.meta.get(k) is not None)
        warned = f", {len(self.meta['warnings'])} warning(s)" if self.meta.get("warnings") else ""
        return f"Embedding({'x'.join(map(str, self.data.shape))} {self.data.dtype}, {facts}{warned})"


def has_fault(dropped_scenes: Sequence[Mapping[str, Any]] | None) -> bool:
    """Tell if any of the `dropped_scenes` of metadata, or of a dataset's row, could not be read."""
    return any(scene["kind"] == "fault" for scene in dropped_scenes or ())


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingFailure:
    """Place without an embedding, and the error.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, get_embeddings_batch
        >>> june, nowhere = TemporalSpec.range("2017-06-01", "2017-07-01"), PointBuffer(0, 0, 600)
        >>> [failure] = get_embeddings_batch(
        ...     "clip_eurosat_s2rgb", spatials=[nowhere], temporal=june, backend="sample", on_error="return"
        ... )
        >>> type(failure.error).__name__, failure.place.lon
        ('NoImageryError', 0.0)
    """

    place: Place | None
    """None where pixels were passed without a place."""
    error: RSEmbedError

    def __repr__(self) -> str:
        return f"EmbeddingFailure({self.place}, {type(self.error).__name__}: {self.error})"

    def _repr_html_(self) -> str:
        return result_html("No embedding", [("place", place_fact(as_dict(self.place)))], remarks=[str(self.error)])


Result = Embedding | EmbeddingFailure


def place_fact(spatial: Mapping[str, Any] | None) -> Link | None:
    """Return a place of metadata as a text with a link to the map."""
    if spatial is None:
        return None
    values = {name: value for name, value in spatial.items() if name != "type"}
    place: Place = PointBuffer(**values) if spatial["type"] == "PointBuffer" else BBox(**values)
    size = f"{2 * place.buffer_m:,.0f} m a side" if isinstance(place, PointBuffer) else "a box"
    return Link(f"{lonlat_text(*place.centre)}, {size}", map_url(*place.centre))


def _imagery_text(meta: Mapping[str, Any]) -> str:
    if meta.get("scenes") is None:
        return "pixels that were passed"
    days = sorted(scene["datetime"][:10] for scene in meta["scenes"])
    when = f" ({', '.join(days[:3])}{', …' if len(days) > 3 else ''})" if days else ""
    clear = "" if meta.get("clear_frac") is None else f", {meta['clear_frac']:.0%} clear"
    return f"{meta['backend']}, {len(days)} scene(s){when}, {meta['valid_frac']:.0%} observed{clear}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Request for the embedding of one place."""

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
        """Return the sha256 of the canonical request, the same in every process and on every machine."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Return everything that determines the vector, as JSON with sorted keys."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        for name in ("place", "temporal", "sensor", "output"):
            facts[name] = as_dict(facts[name])
        facts["sensor"] = {k: v for k, v in facts["sensor"].items() if not k.startswith("check_")}
        if isinstance(self.weights_sha256, Future):
            facts["weights_sha256"] = self.weights_sha256.result()
        return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)


def as_dict(value: Any) -> Any:
    """Return a dataclass of plain values as a dict, a place with its type; `asdict` takes ten times as long."""
    if value is None:
        return None
    kind = {"type": type(value).__name__} if isinstance(value, Place) else {}
    return kind | {name: getattr(value, name) for name in value.__slots__}


def build_embedding(
    embedder: RemoteClipEmbedder,
    request: Request,
    chips: Chips,
    patch: Patch | None,
    encoded: Encoded,
    input_checks: Mapping[str, Any] | None,
    preview: AnyArray | None = None,
) -> Embedding:
    """Return the embedding of one place with its metadata; `patch` is None where pixels were passed."""
    temporal, sensor, array = request.temporal, request.sensor, encoded.array
    if request.output.mode == "pooled":
        output = {"output": "pooled", "pooling": embedder.pooling(request.output), "dim": array.shape[0]}
    else:
        output = _grid_facts(array)
    fetched = dict.fromkeys(_FETCHED_KEYS) if patch is None else _fetched_facts(patch, sensor)
    p02, p50, p98 = encoded.levels
    model_input = {
        "p02": p02,
        "p50": p50,
        "p98": p98,
        "effective_gsd_m": None if patch is None else float(patch.geobox.affine.a) * chips.zoom,
        "cropped_frac": chips.cropped_frac,
        "chips": len(chips.images),
    }
    meta = {
        "model": request.model,
        "type": "on_the_fly",
        "backend": request.backend,
        "source": patch.source if patch else "input_chw",
        "spatial": as_dict(request.place),
        "temporal": as_dict(temporal),
        "start": temporal.start if temporal else None,
        "end": temporal.end if temporal else None,
        "bands": list(sensor.bands),
        "image_size": embedder.size.image_px,
        "input_prep": request.input_prep,
        "ckpt": embedder.checkpoint,
        "weights_sha256": embedder.weights_sha256,
        "activation": embedder.activation,
        "preprocess": "model.transform" if embedder.transform else CLIP_PREPROCESS,
        "precision": request.precision,
        "device": str(embedder.device),
        **output,
        "request_id": request.id(),
        **fetched,
        "valid_frac": chips.valid_frac,
        "model_input": model_input,
        "input_checks": input_checks,
        "versions": versions(),
        "warnings": list(warnings_of(patch, sensor, chips)),
    }
    data = array if request.output.mode == "pooled" else token_grid(request, chips, patch, array)
    return Embedding(data, meta, preview)


def token_grid(request: Request, chips: Chips, patch: Patch | None, tokens: FloatArray) -> xr.DataArray:
    """Return tokens (d, rows, cols) with their footprints' centres in metres, or in pixels without a patch."""
    try:
        import xarray as xr
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    affine = patch.geobox.affine * chips.token_affine if patch else chips.token_affine
    _, rows, cols = tokens.shape
    x, _ = affine * (np.arange(cols) + 0.5, np.zeros(cols))
    _, y = affine * (np.zeros(rows), np.arange(rows) + 0.5)
    attributes = {
        "crs": f"EPSG:{epsg_of(patch.geobox)}" if patch else None,
        "transform": [float(v) for v in affine[:6]],
        "note": GRID_NOTE,
    }
    if request.output.mode == "grid":
        attributes |= _grid_facts(tokens)
    return xr.DataArray(tokens, dims=("d", "y", "x"), coords={"y": y, "x": x}, name=request.model, attrs=attributes)


def _grid_facts(tokens: FloatArray) -> dict[str, Any]:
    dim, rows, cols = tokens.shape
    return {
        "output": "grid",
        "grid_type": "vit_tokens",
        "tokens_kind": "patch_tokens_of_the_last_block",
        "token_count": rows * cols,
        "dim": dim,
        "grid_hw": [rows, cols],
        "cls_removed": True,
    }


_FETCHED_KEYS = (
    *("sensor", "scale_m", "cloudy_pct", "composite", "scenes", "dropped_scenes", "n_scenes"),
    *("clear_frac", "n_clear", "shown_clear_frac", "crs", "transform", "bounds"),
)
"""Metadata that are None where pixels were passed."""


def _fetched_facts(patch: Patch, sensor: SensorSpec) -> dict[str, Any]:
    box = patch.geobox.boundingbox
    return {
        "sensor": as_dict(sensor),
        "scale_m": sensor.scale_m,
        "cloudy_pct": sensor.cloudy_pct,
        "composite": sensor.composite,
        "scenes": [as_dict(scene) for scene in patch.scenes],
        "dropped_scenes": [as_dict(scene) for scene in patch.dropped],
        "n_scenes": len(patch.scenes),
        "clear_frac": patch.clear_frac,
        "n_clear": patch.n_clear,
        "shown_clear_frac": patch.shown_clear_frac,
        "crs": f"EPSG:{epsg_of(patch.geobox)}",
        "transform": [float(v) for v in patch.geobox.affine[:6]],
        "bounds": [box.left, box.bottom, box.right, box.top],
    }
