"""The path of a request: checked at the door, then fetched, prepared and embedded as a batch, also when it is one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rs_embed.clip.reference import local_file
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import ModelCard, find_card, shipped_folder
from rs_embed.embedders.checks import check_bands, check_input_chw
from rs_embed.embedding import Embedding, EmbeddingFailure, Request, Result
from rs_embed.errors import (
    CheckpointError,
    ModelError,
    NoImageryError,
    ProviderError,
    RSEmbedError,
    SpecError,
    missing_core,
)
from rs_embed.grid import place_geobox
from rs_embed.inspection import inspect_array, save_quicklook
from rs_embed.providers.base import Arrivals, PatchRequest, Pixels, Provider, from_provider
from rs_embed.providers.registry import resolve
from rs_embed.specs import BBox, InputPrep, OutputSpec, Place, PointBuffer, SensorSpec, TemporalSpec

if TYPE_CHECKING:
    from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
    from rs_embed.pipeline import Outcome

_POOLED = OutputSpec.pooled()


def get_embedding(
    model: str,
    *,
    spatial: Place | None = None,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = _POOLED,
    backend: str | Provider = "auto",
    device: str = "auto",
    input_prep: InputPrep = "resize",
    input_chw: object | None = None,
    checkpoint: object | None = None,
    precision: str = "fp32",
) -> Embedding:
    """Embed one place: a batch of one, see `get_embeddings_batch` for the arguments and errors.

    Args:
        input_chw: the place's own pixels instead of a fetch: raw DN, (3, y, x), bands B4, B3, B2.

    Returns:
        `data` (768,) float32 for ViT-B/32, or a (768, 7, 7) DataArray for `OutputSpec.grid()`; `meta` the facts.
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
    )
    assert isinstance(result, Embedding)  # on_error="raise" lets nothing else through
    return result


def get_embeddings_batch(
    model: str,
    *,
    spatials: Sequence[Place] | None = None,
    temporal: TemporalSpec | Sequence[TemporalSpec] | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = _POOLED,
    backend: str | Provider = "auto",
    device: str = "auto",
    input_prep: InputPrep = "resize",
    input_chws: Sequence[object] | None = None,
    checkpoint: object | None = None,
    precision: str = "fp32",
    on_error: Literal["raise", "return"] = "raise",
    progress: bool = False,
) -> list[Result]:
    """Embed many places; results keep their order.

    Args:
        model: a name of `list_models()`.
        spatials: the places.
        temporal: one time range for all, or one for each.
        sensor: what to fetch; the model's defaults when None.
        output: a pooled vector or a token grid.
        backend: "sample", "local:<folder>", …, "auto", or an object that is a `Provider`.
        device: "auto", "cpu", "cuda", …
        input_prep: "resize" shows the model the whole place at once; "tile" cuts it at native resolution.
        input_chws: pixels instead of fetches: raw DN, (3, y, x) each, NaN where not observed. No backend is touched;
            places and times are then optional and only described.
        checkpoint: hub repo, path, or a ready object that encodes images.
        precision: "fp32"; "bf16" or "int8" trade a little of the cosine for speed on a CPU, "fp16" or "bf16" on CUDA.
        on_error: "raise" ends the run at a failure and carries the finished places in `error.results`; "return" puts
            an `EmbeddingFailure` in the place's slot.
        progress: show a bar on stderr.

    Raises:
        SpecError: for a place that cannot be asked for.
        ModelError: for what the model cannot do: another time than a range, other bands, a grid without tokens.
        ProviderError: for a backend that is none, or imagery that cannot be had.
    """
    card = find_card(model)
    sensor = SensorSpec() if sensor is None else sensor
    places, times = _places_and_times(card.name, spatials, temporal, input_chws)
    check_bands(sensor.bands, card.name)
    _check_choice("on_error", on_error, ("raise", "return"))
    _check_choice("input_prep", input_prep, ("resize", "tile"))
    if not isinstance(output, OutputSpec):
        raise SpecError(f"output must be an OutputSpec such as OutputSpec.pooled(), got {output!r}")
    pixels = None if input_chws is None else _check_pixels(input_chws)
    provider = None if pixels is not None else resolve(backend)
    patches = [] if pixels is not None else _patch_requests(places, times, sensor)
    try:
        embedder = _load(card, _checkpoint(checkpoint, sensor), device, precision)
    except CheckpointError:
        if provider is not None:
            refuse_without_imagery(provider, patches)
        raise
    embedder.pooling(output)  # refuses a grid without tokens before anything is fetched
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
            pixels_sha256=None if pixels is None else _digest(pixels[i]),
        )
        for i, (place, time) in enumerate(zip(places, times, strict=True))
    ]
    arrivals = from_provider(provider, patches) if provider else enumerate(pixels or [])
    return _run(embedder, requests, arrivals, stop_on_error=on_error == "raise", progress=progress)


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
        sensor: what to fetch; `check_save_dir` also writes a quicklook PNG.
        backend: where from.
        name: what the report and the picture are called.
        value_range: DN that are expected, such as (0, 10000); more than 0.1 % outside fails.
        return_array: also return the pixels as `array_chw`, float32 (bands, y, x), NaN where not observed.

    Returns:
        JSON-ready `{ok, report, sensor, temporal, backend, artifacts}`.
    """
    from dataclasses import asdict

    sensor = SensorSpec() if sensor is None else sensor
    places, times = _places_and_times("inspection", [spatial], temporal, None)
    provider = resolve(backend)
    [(_, patch)] = from_provider(provider, _patch_requests(places, times, sensor))
    if isinstance(patch, ProviderError):
        raise patch
    assert not isinstance(patch, np.ndarray)
    report = inspect_array(
        patch.dn,
        name=name,
        fill_value=sensor.fill_value,
        value_range=value_range,
        bands=sensor.bands,
        scenes=[asdict(scene) for scene in patch.scenes],
    )
    ok = report.pop("ok")
    folder = sensor.check_save_dir
    artifacts = {} if folder is None else {"quicklook": str(save_quicklook(patch.dn[:3], folder, name))}
    result = {
        "ok": ok,
        "report": {"name": name, "ok": ok, **report, "warnings": [*report["warnings"], *patch.warnings]},
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
    """`inspect_provider_patch` with Earth Engine as the backend."""
    return inspect_provider_patch(
        spatial=spatial,
        temporal=temporal,
        sensor=sensor,
        backend=backend,
        name=name,
        value_range=value_range,
        return_array=return_array,
    )


def _places_and_times(
    model: str,
    spatials: Sequence[Place] | None,
    temporal: TemporalSpec | Sequence[TemporalSpec] | None,
    input_chws: Sequence[object] | None,
) -> tuple[list[Place | None], list[TemporalSpec | None]]:
    """One place and one time a request, checked."""
    if spatials is None and input_chws is None:
        raise SpecError("a place is needed: spatial=PointBuffer(lon, lat, buffer_m) or BBox(…), or pixels as input_chw")
    n = len(spatials if input_chws is None or spatials is not None else input_chws)  # type: ignore[arg-type]
    if input_chws is not None and len(input_chws) != n:
        raise SpecError(f"{len(input_chws)} input_chws for {n} places: give one for each place")
    places: list[Place | None] = [None] * n if spatials is None else list(spatials)
    for place in places:
        if place is not None and not isinstance(place, (BBox, PointBuffer)):
            raise SpecError(f"a place must be a BBox or a PointBuffer, got {place!r}")
    single = temporal is None or isinstance(temporal, TemporalSpec)
    times: list[TemporalSpec | None] = [temporal] * n if single else list(temporal)  # type: ignore[arg-type, list-item]
    if len(times) != n:
        raise SpecError(f"{len(times)} time ranges for {n} places: give one for all, or one for each")
    if input_chws is None:
        for time in times:
            _check_range(time, model)
    return places, times


def _check_range(time: object, model: str) -> None:
    if not isinstance(time, TemporalSpec) or time.mode != "range":
        got = "no temporal" if time is None else repr(time)
        raise ModelError(f"{model} needs temporal=TemporalSpec.range('YYYY-MM-DD', 'YYYY-MM-DD'), got {got}")


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SpecError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def _check_pixels(input_chws: Sequence[object]) -> list[Pixels]:
    alone = len(input_chws) == 1
    return [check_input_chw(array, None if alone else i) for i, array in enumerate(input_chws)]


def _patch_requests(
    places: Sequence[Place | None], times: Sequence[TemporalSpec | None], sensor: SensorSpec
) -> list[PatchRequest]:
    return [
        PatchRequest(place_geobox(place, sensor.scale_m), time, sensor)
        for place, time in zip(places, times, strict=True)
        if place is not None and time is not None
    ]


def refuse_without_imagery(provider: Provider, patches: Sequence[PatchRequest]) -> None:
    """Weights are missing; where no place has a scene either, say that first, since no weights would help."""
    try:
        plan = provider.plan(patches)
        if patches and len(plan.places_without_scene) == len(patches):
            [(_, result)] = provider.fetch(patches[:1])
            if isinstance(result, NoImageryError):
                raise result
    except NoImageryError:
        raise
    except ProviderError:
        return  # the missing weights are the clearer fault


def _checkpoint(checkpoint: object | None, sensor: SensorSpec) -> object | None:
    """`checkpoint=` before the seed's `sensor.collection="hf:…"`."""
    if isinstance(checkpoint, Path):
        return str(checkpoint)
    return sensor.checkpoint if checkpoint is None else checkpoint


def _load(card: ModelCard, checkpoint: object | None, device: str, precision: str) -> RemoteClipEmbedder:
    """The network; torch is imported here, after what can be refused without it, and beside the weights' digest."""
    if isinstance(checkpoint, str) and not shipped_folder(checkpoint):
        with suppress(CheckpointError, OSError):  # whatever is wrong with it is told when it is loaded
            if file := local_file(checkpoint):
                digest_of(file)
    try:
        from rs_embed.embedders.loading import load_embedder
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
    return load_embedder(card, checkpoint=checkpoint, device=device, precision=precision)


def _digest(array: Pixels) -> str:
    found = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _run(
    embedder: RemoteClipEmbedder,
    requests: Sequence[Request],
    arrivals: Arrivals,
    *,
    stop_on_error: bool,
    progress: bool,
) -> list[Result]:
    """All results in the order of the requests."""
    from rs_embed.pipeline import embed_all, log_warnings

    results: list[Result | None] = [None] * len(requests)
    at_hand = all(request.backend is None for request in requests)
    embedded = embed_all(embedder, dict(enumerate(requests)), arrivals, stop_on_error=stop_on_error, at_hand=at_hand)
    for outcome in _with_bar(embedded, len(requests)) if progress else embedded:
        results[outcome.position] = outcome.result
    log_warnings(results)
    failures = [r for r in results if isinstance(r, EmbeddingFailure)]
    if failures and stop_on_error:
        error: RSEmbedError = failures[0].error
        error.results = results
        raise error
    return [r for r in results if r is not None]


def _with_bar(results: Iterator[Outcome], total: int) -> Iterator[Outcome]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embedding", total=total)
        for item in results:
            bar.advance(task)
            yield item
