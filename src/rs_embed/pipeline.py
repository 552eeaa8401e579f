"""Many places at once: patches are fetched and prepared in the background while the model runs on those that came.

The order of the requests is kept, memory does not grow with their number, and one place's failure is its own.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from rs_embed import settings
from rs_embed.arrays import AnyArray
from rs_embed.background import in_background, map_in_background
from rs_embed.embedders.chips import Chips, Preparation
from rs_embed.embedders.onthefly_remoteclip import Encoded, RemoteClipEmbedder
from rs_embed.embedding import (
    Embedding,
    EmbeddingFailure,
    ModelFacts,
    ModelInput,
    Request,
    Result,
    build_meta,
    token_grid,
)
from rs_embed.errors import ModelError, RSEmbedError
from rs_embed.grid import epsg_of
from rs_embed.inspection import PatchLook, inspect_array, save_quicklook
from rs_embed.patch import Patch
from rs_embed.providers.base import FetchResult, FetchResults

if TYPE_CHECKING:
    import xarray as xr

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True)
class Ready:
    """A place whose pixels are as the model wants them; everything else that is needed of them is here too."""

    position: int
    chips: Chips
    patch: Patch | None
    checks: dict[str, Any] | None
    look: PatchLook | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a place."""

    position: int
    result: Result
    projected: npt.NDArray[np.float32] | None = None
    """The CLIP projection, of the same forward pass; None for a failure."""
    look: PatchLook | None = None
    """Where it was asked for, and there were pixels."""
    tokens: xr.DataArray | None = None
    """The token grid beside a vector, where it was asked for."""


def embed_all(
    embedder: RemoteClipEmbedder,
    requests: Sequence[Request],
    arrivals: FetchResults,
    *,
    stop_on_error: bool = False,
    progress: bool = False,
) -> list[Result]:
    """Prepare and embed patches as they arrive, and return the results in the order of the requests.

    Pixels that were passed need no waiting: all processors prepare them, and then all multiply. Side by side the two
    would be slower, because a product waits for its slowest thread.

    Raises:
        RSEmbedError: with `stop_on_error`, the first failure; `error.results` holds the finished places.
    """
    at_hand = all(request.backend is None for request in requests)
    ahead = None if at_hand else settings.batch_size(embedder.device.type)
    by_position = dict(enumerate(requests))
    results: list[Result | None] = [None] * len(requests)
    with closing(prepare_all(embedder.preparation, by_position, arrivals, ahead=ahead, at_hand=at_hand)) as prepared:
        outcomes = embed_ready(embedder, by_position, prepared, stop_on_error=stop_on_error)
        for outcome in _with_bar(outcomes, len(requests)) if progress else outcomes:
            results[outcome.position] = outcome.result
    _log_warnings(results)
    failures = [r for r in results if isinstance(r, EmbeddingFailure)]
    if failures and stop_on_error:
        error: RSEmbedError = failures[0].error
        error.results = results
        raise error
    return [r for r in results if r is not None]


def _with_bar(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(outcomes, total=total, description="embedding")


Look = Callable[[AnyArray], PatchLook]


def prepare_all(
    preparation: Preparation,
    requests: Mapping[int, Request],
    arrivals: FetchResults,
    *,
    look: Look | None = None,
    ahead: int | None = None,
    at_hand: bool = False,
) -> Generator[Ready | Outcome, None, None]:
    """Prepare patches for the model in background threads, and yield them in the order of their arrival.

    A GPU takes more images a second than one thread can prepare. No weights are needed.

    Args:
        preparation: the model's way to cut and scale pixels.
        requests: requests by position; they may be added while patches arrive.
        arrivals: patches, or errors instead of them.
        look: called with each place's pixels; its result is kept.
        ahead: places prepared before the consumer takes them; as many as there are threads when None.
        at_hand: arrivals need no waiting, so that all processors prepare.
    """
    workers = min(os.cpu_count() or 1, len(requests)) if at_hand else settings.prepare_workers()
    return map_in_background(
        lambda arrival: _prepare(preparation, requests[arrival[0]], *arrival, look),
        arrivals if at_hand else in_background(arrivals, limit=1),
        workers=workers,
        limit=max(workers, ahead or 0),
        ordered=True,
    )


def embed_ready(
    embedder: RemoteClipEmbedder,
    requests: Mapping[int, Request],
    prepared: Iterable[Ready | Outcome],
    *,
    stop_on_error: bool = False,
    with_tokens: bool = False,
) -> Iterator[Outcome]:
    """Embed what is prepared, in batches.

    With `stop_on_error`, the first failure ends the run once the places in flight are done; with `with_tokens`, token
    grids come beside the vectors.
    """
    in_flight, step = settings.fetch_workers(), settings.batch_size(embedder.device.type)
    ahead = 1 if embedder.device.type == "cuda" else 0  # a CPU has nothing to overlap with
    group: list[Ready] = []
    running: deque[Iterator[Outcome]] = deque()
    failed = False
    for item in prepared:
        if isinstance(item, Ready):
            group.append(item)
        else:
            failed = True
            yield item
        if sum(len(ready.chips.images) for ready in group) >= step:
            running.append(_start_group(embedder, requests, group, with_tokens))
            group = []
        while len(running) > ahead:
            yield from running.popleft()
        in_flight -= failed and stop_on_error
        if in_flight == 0:
            break
    if group:
        running.append(_start_group(embedder, requests, group, with_tokens))
    while running:
        yield from running.popleft()


def _prepare(
    preparation: Preparation, request: Request, position: int, pixels: FetchResult, look: Look | None
) -> Ready | Outcome:
    try:
        if isinstance(pixels, RSEmbedError):
            raise pixels
        patch = pixels if isinstance(pixels, Patch) else None
        dn: AnyArray = pixels.dn if isinstance(pixels, Patch) else pixels
        checks = _check(dn, request) if request.sensor.check_input else None
        chips = preparation.cut(dn, fill_value=request.sensor.fill_value, prep=request.input_prep)
    except RSEmbedError as error:
        return Outcome(position, EmbeddingFailure(request.place, error))
    return Ready(position, chips, _without_pixels(patch), checks, look(dn) if look else None)


def _without_pixels(patch: Patch | None) -> Patch | None:
    """The patch's facts on an array that takes no memory: its pixels are in the chips now."""
    if patch is None:
        return None
    return replace(patch, dn=np.broadcast_to(np.float32(np.nan), patch.dn.shape))


def _check(dn: AnyArray, request: Request) -> dict[str, Any]:
    """The inspection inside a request: `check_raise` makes its issues an error, `check_save_dir` a picture."""
    sensor, name = request.sensor, request.id()[:12]
    report = inspect_array(dn, name=name, fill_value=sensor.fill_value, bands=sensor.bands)
    if sensor.check_save_dir is not None:
        report["quicklook"] = save_quicklook(dn, sensor.check_save_dir, name).name
    if sensor.check_raise and not report["ok"]:
        raise ModelError(
            f"the imagery of {request.place or 'input_chw'} fails inspection: {'; '.join(report['issues'])}"
        )
    return report


def _start_group(
    embedder: RemoteClipEmbedder, requests: Mapping[int, Request], ready: Sequence[Ready], with_tokens: bool
) -> Iterator[Outcome]:
    """Begin to embed a group; its outcomes are waited for when they are asked for."""
    output = requests[ready[0].position].output
    finish = embedder.start([item.chips for item in ready], output, with_tokens=with_tokens)
    return _outcomes(embedder, requests, ready, finish, with_tokens)


def _outcomes(
    embedder: RemoteClipEmbedder,
    requests: Mapping[int, Request],
    ready: Sequence[Ready],
    finish: Callable[[], list[Encoded]],
    with_tokens: bool,
) -> Iterator[Outcome]:
    for item, encoded in zip(ready, finish(), strict=True):
        request = requests[item.position]
        tokens = None if encoded.tokens is None or not with_tokens else _grid(item, request, encoded.tokens, {})
        result = _result(embedder, request, item, encoded.array)
        yield Outcome(item.position, result, encoded.projected, item.look, tokens)


def _result(embedder: RemoteClipEmbedder, request: Request, item: Ready, array: npt.NDArray[np.float32]) -> Embedding:
    chips, patch = item.chips, item.patch
    facts = _output_facts(embedder, request, array)
    meta = build_meta(
        request,
        _model_facts(embedder, request),
        patch,
        _model_input(chips, patch),
        valid_frac=chips.valid_frac,
        input_checks=item.checks,
        output=facts,
    )
    if request.output.mode == "pooled":
        return Embedding(array, meta)
    return Embedding(_grid(item, request, array, facts), meta)


def _grid(item: Ready, request: Request, tokens: npt.NDArray[np.float32], facts: dict[str, Any]) -> xr.DataArray:
    """Tokens on the footprints they have."""
    chips, patch = item.chips, item.patch
    affine: Affine = patch.geobox.affine * chips.token_affine if patch else chips.token_affine
    crs = f"EPSG:{epsg_of(patch.geobox)}" if patch else None
    return token_grid(tokens, affine, crs, request.model, facts)


def _output_facts(embedder: RemoteClipEmbedder, request: Request, array: npt.NDArray[np.float32]) -> dict[str, Any]:
    if request.output.mode == "pooled":
        return {"output": "pooled", "pooling": embedder.pooling(request.output), "dim": array.shape[0]}
    dim, rows, cols = array.shape
    return {
        "output": "grid",
        "grid_type": "vit_tokens",
        "tokens_kind": "patch_tokens_of_the_last_block",
        "token_count": rows * cols,
        "dim": dim,
        "grid_hw": [rows, cols],
        "cls_removed": True,
    }


def _model_facts(embedder: RemoteClipEmbedder, request: Request) -> ModelFacts:
    return ModelFacts(
        name=request.model,
        checkpoint=embedder.checkpoint,
        weights_sha256=embedder.weights_sha256,
        activation=embedder.activation,
        preprocess=embedder.preprocess,
        precision=request.precision,
        device=str(embedder.device),
        image_px=embedder.size.image_px,
        pooling=embedder.pooling(request.output),
    )


def _model_input(chips: Chips, patch: Patch | None) -> ModelInput:
    p02, p50, p98 = _percentiles(chips.images, (0.02, 0.50, 0.98))
    return ModelInput(
        p02=p02,
        p50=p50,
        p98=p98,
        effective_gsd_m=None if patch is None else float(patch.geobox.affine.a) * chips.zoom,
        cropped_frac=chips.cropped_frac,
        chips=len(chips.images),
    )


def _percentiles(images: Sequence[npt.NDArray[np.uint8]], shares: Sequence[float]) -> list[int]:
    """Grey levels that shares of all values do not exceed; by counting, a tenth of the time of sorting."""
    counts = sum(np.bincount(image.ravel(), minlength=256) for image in images)
    cumulative = np.cumsum(counts)
    return [int(np.searchsorted(cumulative, share * cumulative[-1])) for share in shares]


def _log_warnings(results: Iterable[Result | None]) -> None:
    """Log each kind of warning once for a whole run, with the number of places it applies to."""
    texts: dict[str, list[str]] = {}
    for result in results:
        if isinstance(result, Embedding):
            for text in result.meta["warnings"]:
                texts.setdefault(text.split(":")[0], []).append(text)
    for first, *more in texts.values():
        _log.warning("%s%s", first, f" (and {len(more)} more of this kind, see meta['warnings'])" if more else "")
