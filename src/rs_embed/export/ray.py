"""The same partitions on a Ray cluster: CPU tasks fetch and prepare, a pool of actors holds the model and writes.

Ray Data schedules, streams, holds back and repeats what dies; a partition's files are written by one atomic step each,
so that a repeated one replaces itself. The folder must be one that all machines see.
"""

from __future__ import annotations

import io
import logging
import pickle
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed.embedders.cards import find_card
from rs_embed.embedders.chips import Preparation
from rs_embed.embedders.loading import load_embedder
from rs_embed.errors import RSEmbedError, missing_package
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.export.workers import Progress, Report, open_partition, summary_of, write_partition
from rs_embed.pipeline import Outcome, PreparedPlace, embed_prepared, prepare_all
from rs_embed.providers.base import Provider, fetch_patches
from rs_embed.providers.registry import resolve

_QUIET_S = 60.0
"""A run that moves nothing for so long says what it waits for."""
_CORES_AN_ACTOR = 4

Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Number of a partition to what the model needs of it; a task, which needs no weights."""

    folder: DatasetFolder
    request: ExportRequest
    backend: str | Provider
    """A name is opened where the task runs: files at hand do not travel."""
    preparation: Preparation

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """One partition."""
        [number] = batch["number"].tolist()
        partition = open_partition(self.folder, self.request, number)
        rows = list(partition.patches)
        patches = fetch_patches(resolve(self.backend), [partition.patches[row] for row in rows])
        arrivals = ((rows[i], patch) for i, patch in patches)
        prepared = list(prepare_all(self.preparation, partition.requests, arrivals, summarise=summary_of(self.request)))
        return {"number": [number], "prepared": [dump(prepared)]}


class Embed:
    """What was prepared of a partition to its files; an actor, which holds the model."""

    def __init__(self, folder: DatasetFolder, request: ExportRequest, dims: tuple[int, int], device: str) -> None:
        card = find_card(request.model)
        self.folder, self.request, self.dims = folder, request, dims
        self.embedder = load_embedder(card, checkpoint=request.checkpoint, device=device, precision=request.precision)
        if self.embedder.weights_sha256 != request.weights_sha256:
            raise RSEmbedError(f"this machine's weights of {request.model} are not those that the run began with")

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """One partition."""
        [number] = batch["number"].tolist()
        with self.folder.lock(f"{number:06d}"):
            partition = open_partition(self.folder, self.request, number)
            progress = Progress(total=len(partition.patches))
            prepared = load(batch["prepared"][0])
            found = embed_prepared(self.embedder, partition.requests, prepared, with_tokens=self.request.grid)
            for outcome in found:
                partition.outcomes[outcome.position] = outcome
                progress.add(partition, outcome.position, outcome)
            write_partition(self.folder, self.request, partition, self.dims, progress)
        return {"number": [number], "progress": [pickle.dumps(progress)]}


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs partitions of one folder on a cluster."""

    folder: DatasetFolder
    request: ExportRequest
    backend: str | Provider
    preparation: Preparation
    dims: tuple[int, int]
    address: str | None
    """Of the cluster; one is started on this machine when None."""

    def run(self, numbers: Sequence[int], progress: Progress, report: Report) -> None:
        """Run partitions.

        Raises:
            RSEmbedError: without Ray, or when the cluster gives up.
        """
        if not numbers:
            return
        ray = _import_ray()
        progress.staged = False
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        folder = DatasetFolder(self.folder.path.absolute())
        fetch = Fetch(folder, self.request, self.backend, self.preparation)
        try:
            for row in _rows(ray, _pipeline(ray, fetch, self.dims, numbers), report):
                _add(progress, pickle.loads(row["progress"]))  # our own bytes, from our own actor
                report(progress.event())
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RSEmbedError(f"the Ray run stopped ({reason}): run the same again to go on") from error
        finally:
            if started_here:
                ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise RSEmbedError(missing_package("ray", extra="ray")) from None
    return ray


def _pipeline(ray: Any, fetch: Fetch, dims: tuple[int, int], numbers: Sequence[int]) -> Any:
    """Partitions through tasks and actors; half of the processors for each, so that neither starves the other."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    actors = gpus or max(min(2, int(cpus)), int(cpus) // _CORES_AN_ACTOR)
    # 0.98: with equal shares Ray would run a fetch and its embedding in one actor, one after the other
    share = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.98 * cpus / 2 / actors}
    made = ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
    return made.map_batches(fetch, batch_size=1, num_cpus=min(1.0, cpus / 4)).map_batches(
        Embed,
        fn_constructor_args=(fetch.folder, fetch.request, dims, "cuda" if gpus else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **share,
    )


def _rows(ray: Any, dataset: Any, report: Report) -> Iterator[Mapping[str, Any]]:
    """Rows as they come; a long silence is reported with what the cluster has free."""
    found: queue.Queue[Mapping[str, Any] | BaseException | None] = queue.Queue()

    def run() -> None:
        last: BaseException | None = None
        try:
            for row in dataset.iter_rows():
                found.put(row)
        except BaseException as error:  # noqa: BLE001  (handed to the consumer, which raises it)
            last = error
        found.put(last)

    threading.Thread(target=run, name="rs-embed-ray", daemon=True).start()
    while True:
        try:
            item = found.get(timeout=_QUIET_S)
        except queue.Empty:
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
            why = f"no partition was finished for {_QUIET_S:g} s; the cluster has free: {free or 'nothing'}"
            report({"event": "waiting", "partitions": [], "why": why})
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield item


def _add(progress: Progress, other: Progress) -> None:
    progress.done += other.done
    progress.failed += other.failed
    progress.no_imagery += other.no_imagery
    progress.failures = [*progress.failures, *other.failures][:20]
    progress.slowest = sorted([*progress.slowest, *other.slowest], reverse=True)[:3]


class _Pickler(pickle.Pickler):
    """Writes an array that repeats one value as that value: a patch without its pixels takes no room."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.ndarray) and value.size and not any(value.strides):
            return np.broadcast_to, (value.flat[0], value.shape)
        return NotImplemented


def dump(items: Sequence[PreparedPlace | Outcome]) -> bytes:
    """Prepared places as bytes, for a process of the same run."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(list(items))
    return stream.getvalue()


def load(data: bytes) -> list[PreparedPlace | Outcome]:
    """The inverse of `dump`; only for what this run's own tasks made."""
    items: list[PreparedPlace | Outcome] = pickle.loads(data)
    return items
