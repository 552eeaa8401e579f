"""The pipeline of a batch: fetch, prepare, embed, collect.

Patches are fetched and prepared in the background while the model runs on those that have arrived. Memory does not grow
with the number of places, and a place that fails does not affect the others.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from rs_embed import settings
from rs_embed.arrays import AnyArray, FloatArray
from rs_embed.background import in_background, map_in_background
from rs_embed.embedders.chips import Chips, Preparation
from rs_embed.embedders.onthefly_remoteclip import Encoded, RemoteClipEmbedder
from rs_embed.embedding import Embedding, EmbeddingFailure, Request, Result, build_embedding, token_grid
from rs_embed.errors import ModelError, RSEmbedError
from rs_embed.inspection import PatchSummary, inspect_array, inspect_patch, save_quicklook
from rs_embed.patch import Patch
from rs_embed.pictures import preview_of
from rs_embed.progress import progress_bar
from rs_embed.providers.base import FetchResult, FetchResults

if TYPE_CHECKING:
    import xarray as xr

K = TypeVar("K", bound=Hashable)
"""Key of a request: its position in a batch, or partition and row in an export."""

_PREVIEWS = 100
"""Largest batch whose results keep the pixels of their quicklooks, 0.2 MB each."""
_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPlace(Generic[K]):
    """Place whose pixels are ready for the model."""

    position: K
    request: Request
    chips: Chips
    patch: Patch | None
    """Provenance; its pixels are dropped. None where pixels were passed."""
    checks: dict[str, Any] | None
    """Report of `check_input`."""
    summary: PatchSummary | None
    preview: AnyArray | None
    """Pixels of the embedding's quicklook, where they were wanted."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[K]):
    """Result of one request, with the by-products that were wanted."""

    position: K
    result: Result
    projected: FloatArray | None = None
    """CLIP projection (d,) of the same forward pass; None for a failure."""
    summary: PatchSummary | None = None
    tokens: xr.DataArray | None = None
    """Token grid beside a vector."""


Summarise = Callable[[AnyArray], PatchSummary]


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

    With `stop_on_error` the first failure is raised; `error.results` holds the finished places.
    """
    at_hand = all(request.backend is None for request in requests)
    step = settings.batch_size(embedder.device.type, len(requests))
    ahead = 0 if at_hand and embedder.device.type != "cuda" else step
    by_position = dict(enumerate(requests))
    results: list[Result | None] = [None] * len(requests)
    few = len(requests) <= _PREVIEWS
    with closing(
        prepare_all(embedder.preparation, by_position, arrivals, ahead=ahead, at_hand=at_hand, preview=few)
    ) as prepared:
        outcomes = embed_prepared(embedder, prepared, step=step, stop_on_error=stop_on_error)
        for outcome in _with_bar(outcomes, len(requests)) if progress else outcomes:
            results[outcome.position] = outcome.result
    kinds: dict[str, list[str]] = {}
    for result in results:
        for text in result.meta["warnings"] if isinstance(result, Embedding) else ():
            kinds.setdefault(text.split(":")[0], []).append(text)
    for first, *more in kinds.values():  # each kind once, whatever the number of places
        _log.warning("%s%s", first, f" (and {len(more)} more of this kind, see meta['warnings'])" if more else "")
    failures = [r for r in results if isinstance(r, EmbeddingFailure)]
    if failures and stop_on_error:
        error: RSEmbedError = failures[0].error
        error.results = results
        raise error
    return [r for r in results if r is not None]


def _with_bar(outcomes: Iterable[Outcome[int]], total: int) -> Iterator[Outcome[int]]:
    from rich.progress import TimeRemainingColumn

    with progress_bar(TimeRemainingColumn()) as bar:
        yield from bar.track(outcomes, total=total, description="embedding")


def prepare_all(
    preparation: Preparation,
    requests: Mapping[K, Request],
    arrivals: Iterator[tuple[K, FetchResult]],
    *,
    summarise: Summarise | None = None,
    ahead: int = 0,
    at_hand: bool = False,
    preview: bool = False,
) -> Generator[PreparedPlace[K] | Outcome[K], None, None]:
    """Prepare patches for the model in background threads, and yield them in the order of their arrival.

    A GPU takes more images a second than one thread can prepare; a fourth of the processors leaves the others to read,
    decode and multiply. `requests` may be added while patches arrive; `ahead` places are prepared meanwhile.
    """
    workers = min(os.cpu_count() or 1, len(requests)) if at_hand else max(1, (os.cpu_count() or 1) // 4)
    return map_in_background(
        lambda arrival: _prepare(preparation, requests[arrival[0]], *arrival, summarise, preview),
        arrivals if at_hand else in_background(arrivals, limit=1),
        workers=workers,
        limit=max(workers, ahead),
        ordered=True,
    )


def embed_prepared(
    embedder: RemoteClipEmbedder,
    prepared: Iterable[PreparedPlace[K] | Outcome[K]],
    *,
    step: int,
    stop_on_error: bool = False,
    with_tokens: bool = False,
) -> Iterator[Outcome[K]]:
    """Embed prepared places, `step` chips in one forward pass, and yield their outcomes.

    With `stop_on_error` the run ends at the first failure, once the places in flight are done.
    """
    in_flight = settings.fetch_workers()
    ahead = 1 if embedder.device.type == "cuda" else 0  # a CPU has nothing to overlap with
    batch: list[PreparedPlace[K]] = []
    running: deque[tuple[list[PreparedPlace[K]], Callable[[], list[Encoded]]]] = deque()
    failed = is_last = False
    for item in chain(prepared, [None]):  # None marks the end
        if isinstance(item, PreparedPlace):
            batch.append(item)
        elif item is not None:
            failed = True
            yield item
        in_flight -= failed and stop_on_error
        is_last = item is None or in_flight == 0
        if batch and (is_last or sum(len(place.chips.images) for place in batch) >= step):
            inputs, output = [place.chips for place in batch], batch[0].request.output
            running.append((batch, embedder.start(inputs, output, step=step, with_tokens=with_tokens)))
            batch = []
        while len(running) > (0 if is_last else ahead):
            embedded, finish = running.popleft()
            for place, encoded in zip(embedded, finish(), strict=True):
                request, chips, patch, tokens = place.request, place.chips, place.patch, encoded.tokens
                result = build_embedding(embedder, request, chips, patch, encoded, place.checks, place.preview)
                grid = token_grid(request, chips, patch, tokens) if with_tokens and tokens is not None else None
                yield Outcome(place.position, result, encoded.projected, place.summary, grid)
        if is_last:
            break


def _prepare(
    preparation: Preparation,
    request: Request,
    position: K,
    pixels: FetchResult,
    summarise: Summarise | None,
    preview: bool,
) -> PreparedPlace[K] | Outcome[K]:
    try:
        if isinstance(pixels, RSEmbedError):
            raise pixels
        dn: AnyArray = pixels.dn if isinstance(pixels, Patch) else pixels
        if request.backend is None:
            request = replace(request, pixels_sha256=_digest(dn))
        checks = _check(pixels, request) if request.sensor.check_input else None
        chips = preparation.cut(dn, fill_value=request.sensor.fill_value, prep=request.input_prep)
    except RSEmbedError as error:
        return Outcome(position, EmbeddingFailure(request.place, error))
    patch = None
    if isinstance(pixels, Patch):  # its pixels are in the chips now: keep an array that takes no memory
        patch = replace(pixels, dn=np.broadcast_to(np.float32(np.nan), dn.shape))
    return PreparedPlace(
        position=position,
        request=request,
        chips=chips,
        patch=patch,
        checks=checks,
        summary=summarise(dn) if summarise else None,
        preview=preview_of(dn) if preview else None,
    )


def _digest(dn: AnyArray) -> str:
    found = hashlib.sha256(f"{dn.dtype.str}{dn.shape}".encode())
    found.update(np.ascontiguousarray(dn).data)
    return found.hexdigest()


def _check(pixels: Patch | AnyArray, request: Request) -> dict[str, Any]:
    """Inspect a place's pixels; `check_raise` makes issues an error, `check_save_dir` saves a picture."""
    sensor, name = request.sensor, request.id()[:12]
    dn: AnyArray = pixels.dn if isinstance(pixels, Patch) else pixels
    if isinstance(pixels, Patch):
        report = inspect_patch(pixels, sensor, name=name)
    else:
        report = inspect_array(dn, name=name, fill_value=sensor.fill_value, bands=sensor.bands)
    if sensor.check_save_dir is not None:
        report["quicklook"] = save_quicklook(dn, sensor.check_save_dir, name, report["issues"]).name
    if sensor.check_raise and not report["ok"]:
        raise ModelError(
            f"the imagery of {request.place or 'input_chw'} fails inspection: {'; '.join(report['issues'])}"
        )
    return report
