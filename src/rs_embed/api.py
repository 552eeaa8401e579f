"""The public functions for single places and batches: they check a request, and hand it to the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from rs_embed.arguments import check_sensor
from rs_embed.batch import expand, listed
from rs_embed.embedding import Embedding, Request, Result
from rs_embed.errors import SpecError, naming_missing
from rs_embed.inspection import check_range, inspect_patch, save_quicklook
from rs_embed.models import check_model, load_model
from rs_embed.patch import Patch, check_input_chw
from rs_embed.providers.base import Provider, fetch_patches
from rs_embed.providers.registry import resolve
from rs_embed.specs import (
    DEFAULT_OUTPUT,
    InputPrep,
    OnLostScene,
    OutputSpec,
    Place,
    SensorSpec,
    TemporalSpec,
    check_choice,
)


def get_embedding(
    model: str,
    *,
    spatial: Place | None = None,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = DEFAULT_OUTPUT,
    backend: str | Provider = "auto",
    device: str = "auto",
    input_prep: InputPrep = "resize",
    input_chw: object | None = None,
    checkpoint: object | None = None,
    precision: str = "fp32",
    on_lost_scene: OnLostScene = "keep",
) -> Embedding:
    """Embed one place, as a batch of one.

    Args:
        model: a name of `list_models()`.
        spatial: the place.
        temporal: the time range.
        sensor: the imagery to fetch; the model's defaults when None.
        output: a pooled vector or a token grid.
        backend: "sample", "local:FOLDER", …, "auto", or an object that is a `Provider`.
        device: "auto", "cpu", "cuda", …
        input_prep: "resize" shows the model the whole place at once; "tile" cuts it at native resolution.
        input_chw: pixels instead of a fetch: raw DN, (3, y, x), bands B4, B3, B2; see `get_embeddings_batch`.
        checkpoint: hub repo, path, or a ready object that encodes images.
        precision: "fp32"; "bf16", "int8" on a CPU; "fp16", "bf16" on CUDA.
        on_lost_scene: "keep" embeds a place without the scenes that could not be read, "fail" refuses it.

    Returns:
        `data` (768,) float32 for ViT-B/32, or a (768, 7, 7) DataArray for `OutputSpec.grid()`; `meta` its provenance.

    Raises:
        SpecError, ModelError, ProviderError: as `get_embeddings_batch`.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, get_embedding, list_samples
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
        >>> vector = get_embedding("clip_eurosat_s2rgb", spatial=place, temporal=month, backend="sample")
        >>> vector.data.shape, vector.meta["n_scenes"]
        ((192,), 1)
    """
    [result] = get_embeddings_batch(
        model,
        spatials=None if spatial is None else [spatial],
        temporal=temporal,
        sensor=sensor,
        output=output,
        backend=backend,
        device=device,
        input_prep=input_prep,
        input_chws=None if input_chw is None else [input_chw],
        checkpoint=checkpoint,
        precision=precision,
        on_lost_scene=on_lost_scene,
    )
    assert isinstance(result, Embedding)  # on_error="raise" lets nothing else through
    return result


@naming_missing()
def get_embeddings_batch(
    model: str,
    *,
    spatials: Sequence[Place] | None = None,
    temporal: TemporalSpec | Sequence[TemporalSpec] | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = DEFAULT_OUTPUT,
    backend: str | Provider = "auto",
    device: str = "auto",
    input_prep: InputPrep = "resize",
    input_chws: Sequence[object] | None = None,
    checkpoint: object | None = None,
    precision: str = "fp32",
    on_error: Literal["raise", "return"] = "raise",
    on_lost_scene: OnLostScene = "keep",
    progress: bool = False,
) -> list[Result]:
    """Embed many places; results keep their order.

    Args:
        model: a name of `list_models()`.
        spatials: the places.
        temporal: one time range for all, or one for each.
        sensor: the imagery to fetch; the model's defaults when None.
        output: a pooled vector or a token grid.
        backend: "sample", "local:FOLDER", …, "auto", or an object that is a `Provider`.
        device: "auto", "cpu", "cuda", …
        input_prep: "resize" shows the model the whole place at once; "tile" cuts it at native resolution.
        input_chws: pixels instead of fetches: raw DN, (3, y, x) each, NaN or masked (`numpy.ma`) where not observed;
            infinite values and reflectance of 0 to 1 are refused. No backend is used; places and times are then
            optional and only described in the metadata.
        checkpoint: hub repo, path, or a ready object that encodes images.
        precision: "fp32"; "bf16" or "int8" trade a little of the cosine for speed on a CPU, "fp16" or "bf16" on CUDA.
        on_error: "raise" ends the run at a failure and carries the finished places in `error.results`; "return" puts
            an `EmbeddingFailure` in the place's slot.
        on_lost_scene: "keep" embeds a place without the scenes that could not be read, with a warning that names them;
            "fail" makes it a failure. A place without any scene that was read is always one.
        progress: show a bar on stderr.

    Raises:
        SpecError: for a missing or oversized place, or an argument out of its choices.
        ModelError: for a request that the model cannot serve: no time range, other bands, a grid without tokens.
        ProviderError: for an unknown backend, or imagery that cannot be fetched.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, get_embeddings_batch, list_samples
        >>> samples = list_samples()
        >>> found = get_embeddings_batch(
        ...     "clip_eurosat_s2rgb",
        ...     spatials=[PointBuffer(s.lon, s.lat, 600) for s in samples],
        ...     temporal=[TemporalSpec.range(s.start, s.end) for s in samples],
        ...     backend="sample",
        ... )
        >>> len(found), found[0].data.shape
        (6, (192,))
    """
    card, sensor = check_model(model, sensor)
    spatials, input_chws = listed("spatials", spatials), listed("input_chws", input_chws)
    places, times, patches = expand(card.name, spatials, temporal, sensor, input_chws)
    check_choice("on_error", on_error, ("raise", "return"))
    check_choice("on_lost_scene", on_lost_scene, ("keep", "fail"))
    check_choice("input_prep", input_prep, ("resize", "tile"))
    if not isinstance(output, OutputSpec):
        raise SpecError(f"output must be an OutputSpec such as OutputSpec.pooled(), got {output!r}")
    provider = resolve(backend) if input_chws is None else None
    alone = input_chws is not None and len(input_chws) == 1
    pixels = [check_input_chw(array, None if alone else i) for i, array in enumerate(input_chws or ())]
    embedder = load_model(
        card,
        sensor,
        output,
        checkpoint=checkpoint,
        device=device,
        precision=precision,
        provider=provider,
        patches=patches,
    )
    requests = [
        Request(
            place=place,
            temporal=time,
            sensor=sensor,
            output=output,
            input_prep=input_prep,
            backend=provider.name if provider else None,
            model=card.name,
            precision=precision,
            weights_sha256=embedder.digest,
        )
        for place, time in zip(places, times, strict=True)
    ]
    from rs_embed.pipeline import embed_all

    arrivals = fetch_patches(provider, patches, on_lost_scene) if provider else enumerate(pixels)
    return embed_all(embedder, requests, arrivals, stop_on_error=on_error == "raise", progress=progress)


@naming_missing()
def fetch_patch(
    spatial: Place,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    backend: str | Provider = "auto",
    on_lost_scene: OnLostScene = "keep",
) -> Patch:
    """Fetch the imagery of one place, without a model.

    Args:
        spatial: the place.
        temporal: the time range; required.
        sensor: the imagery to fetch; Sentinel-2 RGB at 10 m a pixel when None.
        backend: as for `get_embeddings_batch`.
        on_lost_scene: as for `get_embeddings_batch`.

    Returns:
        `dn` (bands, y, x) float32, DN = 10,000 × reflectance, row 0 north, NaN where nothing was observed; `geobox`
        its grid in UTM metres; `scenes` its provenance.

    Raises:
        SpecError: for a place that is too large to fetch at once.
        ModelError: without a time range.
        NoImageryError: for a place and time without a valid pixel.
        ProviderError: for an unknown backend, or a source that cannot be read.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, fetch_patch, list_samples
        >>> sample = list_samples()[0]
        >>> place = PointBuffer(sample.lon, sample.lat, buffer_m=600)
        >>> patch = fetch_patch(place, TemporalSpec.range(sample.start, sample.end), backend="sample")
        >>> patch.dn.shape, str(patch.dn.dtype), patch.bands
        ((3, 120, 120), 'float32', ('B4', 'B3', 'B2'))
        >>> patch.geobox.resolution.x, len(patch.scenes)
        (10.0, 1)
    """
    sensor = check_sensor(sensor)
    check_choice("on_lost_scene", on_lost_scene, ("keep", "fail"))
    _, _, patches = expand("fetching imagery", [spatial], temporal, sensor, None)
    [(_, result)] = fetch_patches(resolve(backend), patches, on_lost_scene)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, Patch)
    return result


def inspect_provider_patch(
    *,
    spatial: Place,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    backend: str | Provider = "auto",
    name: str = "provider_patch",
    value_range: tuple[float, float] | None = None,
    return_array: bool = False,
) -> dict[str, Any]:
    """Fetch one place and report on its pixels, without a model.

    Args:
        spatial: the place.
        temporal: a time range.
        sensor: the imagery to fetch; `check_save_dir` also writes a quicklook PNG.
        backend: as for `get_embeddings_batch`.
        name: name of the report and of the picture.
        value_range: DN that are expected, such as (0, 10000); more than 0.1 % outside fails.
        return_array: also return the pixels as `array_chw`, float32 (bands, y, x), NaN where not observed.

    Returns:
        JSON-ready `{ok, report, sensor, temporal, backend, artifacts}`.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, inspect_provider_patch, list_samples
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
        >>> found = inspect_provider_patch(spatial=place, temporal=month, backend="sample", value_range=(0, 10000))
        >>> found["ok"], found["report"]["shape"], found["report"]["valid_frac"]
        (True, [3, 120, 120], 1.0)
    """
    sensor = check_sensor(sensor)
    check_range(value_range)
    provider = resolve(backend)
    patch = fetch_patch(spatial, temporal, sensor, provider)
    report = inspect_patch(patch, sensor, name=name, value_range=value_range)
    folder, dn = sensor.check_save_dir, patch.dn[:3]
    artifacts = {} if folder is None else {"quicklook": str(save_quicklook(dn, folder, name, report["issues"]))}
    result = {
        "ok": report["ok"],
        "report": report,
        "sensor": asdict(sensor),
        "temporal": None if temporal is None else asdict(temporal),
        "backend": provider.name,
        "artifacts": artifacts,
    }
    return result | {"array_chw": patch.dn} if return_array else result


def inspect_gee_patch(
    *,
    spatial: Place,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    backend: str | Provider = "gee",
    name: str = "gee_patch",
    value_range: tuple[float, float] | None = None,
    return_array: bool = False,
) -> dict[str, Any]:
    """Call `inspect_provider_patch` with Earth Engine as the default backend.

    Args:
        spatial: the place.
        temporal: a time range.
        sensor: the imagery to fetch; `check_save_dir` also writes a quicklook PNG.
        backend: "gee", or another as for `get_embeddings_batch`.
        name: name of the report and of the picture.
        value_range: DN that are expected, such as (0, 10000); more than 0.1 % outside fails.
        return_array: also return the pixels as `array_chw`, float32 (bands, y, x), NaN where not observed.

    Returns:
        JSON-ready `{ok, report, sensor, temporal, backend, artifacts}`.

    Examples:
        `backend="sample"` stands for Earth Engine here, which needs an account.

        >>> from rs_embed import PointBuffer, TemporalSpec, inspect_gee_patch, list_samples
        >>> sample = list_samples()[0]
        >>> place, month = PointBuffer(sample.lon, sample.lat, 600), TemporalSpec.range(sample.start, sample.end)
        >>> inspect_gee_patch(spatial=place, temporal=month, backend="sample")["report"]["name"]
        'gee_patch'
    """
    return inspect_provider_patch(
        spatial=spatial,
        temporal=temporal,
        sensor=sensor,
        backend=backend,
        name=name,
        value_range=value_range,
        return_array=return_array,
    )
