"""The runner on a Ray cluster: CPU tasks fetch and prepare partitions, a pool of actors holds the model and writes.

Ray Data repeats partitions whose worker died; they replace themselves. All machines must see the folder.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rs_embed import settings
from rs_embed.background import Channel
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.chips import Preparation
from rs_embed.embedders.loading import load_embedder
from rs_embed.errors import RSEmbedError, import_extra
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.partition_io import open_partition, write_partition
from rs_embed.export.progress import FaultLimit, Progress, ProgressListener
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.workers import Runner, summary_of
from rs_embed.pipeline import Outcome, PreparedPlace, embed_prepared, prepare_all
from rs_embed.providers.base import Provider
from rs_embed.providers.registry import resolve
from rs_embed.specs import OnLostScene

_QUIET_S = 60.0  # silence after which a run reports the resources that the cluster has free
_CORES_AN_ACTOR = 4
_ROWS_WAITING = 64

Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Task that fetches and prepares a partition; it needs no weights."""

    folder: DatasetFolder
    request: ExportRequest
    backend: str | Provider  # a name is opened where the task runs, because open files cannot be sent
    preparation: Preparation
    on_lost_scene: OnLostScene

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Fetch and prepare the one partition of a batch."""
        [number] = batch["number"].tolist()
        partition = open_partition(self.folder, self.request, number)
        arrivals = partition.fetch(resolve(self.backend), self.on_lost_scene)
        prepared = list(prepare_all(self.preparation, partition.requests, arrivals, summarise=summary_of(self.request)))
        return {"number": [number], "prepared": [_dump(prepared)]}


class Embed:
    """Actor that holds the model, embeds a prepared partition and writes its files."""

    def __init__(self, folder: DatasetFolder, request: ExportRequest, lengths: VectorLengths, device: str) -> None:
        card = find_card(request.model)
        self.folder, self.request, self.lengths = folder, request, lengths
        self.embedder = load_embedder(card, checkpoint=request.checkpoint, device=device, precision=request.precision)
        if self.embedder.weights_sha256 != request.weights_sha256:
            raise RSEmbedError(f"this machine's weights of {request.model} are not those that the run began with")

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """Embed and write the one partition of a batch."""
        [number] = batch["number"].tolist()
        with self.folder.lock(f"{number:06d}"):
            partition = open_partition(self.folder, self.request, number)
            progress = Progress(total=len(partition.patches))
            prepared = pickle.loads(batch["prepared"][0])  # bytes from our own task
            step = settings.batch_size(self.embedder.device.type, len(prepared))
            outcomes = embed_prepared(self.embedder, prepared, step=step, with_tokens=self.request.grid)
            for outcome in outcomes:
                partition.add(outcome.position, outcome, progress)
            write_partition(self.folder, self.request, partition, self.lengths, progress)
        return {"number": [number], "progress": [pickle.dumps(progress)]}


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs partitions of one folder on a cluster."""

    local: Runner  # of the same export
    backend: str | Provider

    def run(self, numbers: Sequence[int], progress: Progress, listener: ProgressListener) -> None:
        """Run partitions on the cluster."""
        if not numbers:
            return
        ray = import_extra("ray", extra="ray")
        import_extra("ray.data", extra="ray")
        progress.staged = False
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        folder, preparation = DatasetFolder(self.local.folder.path.absolute()), self.local.embedder.preparation
        if preparation.stage == "dn":  # chips are a seventh of the bytes that a patch has
            preparation = replace(preparation, stage="chips")
        fetch = Fetch(folder, self.local.request, self.backend, preparation, self.local.on_lost_scene)
        limit = FaultLimit()
        try:
            for row in _rows(ray, _pipeline(ray, fetch, self.local.lengths, numbers), listener):
                found: Progress = pickle.loads(row["progress"])  # bytes from our own actor
                progress.merge(found)
                listener(progress.event())
                example = "; ".join(error for _, error in found.failures[-1:])
                limit.count(found.faults, found.finished - found.faults, example)
        except ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RSEmbedError(f"the Ray run stopped ({reason}): run the same again to go on") from error
        finally:
            if started_here:
                ray.shutdown()


def _pipeline(ray: Any, fetch: Fetch, lengths: VectorLengths, numbers: Sequence[int]) -> Any:
    """Return the dataset of finished partitions; tasks and actors get half of the processors each."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
    actors = gpus or max(min(2, int(cpus)), int(cpus) // _CORES_AN_ACTOR)
    # 0.98: with equal shares Ray would run a fetch and its embedding in one actor, one after the other
    share = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.98 * cpus / 2 / actors}
    items = ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
    return items.map_batches(fetch, batch_size=1, num_cpus=min(1.0, cpus / 4)).map_batches(
        Embed,
        fn_constructor_args=(fetch.folder, fetch.request, lengths, "cuda" if gpus else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **share,
    )


def _rows(ray: Any, dataset: Any, listener: ProgressListener) -> Iterator[Mapping[str, Any]]:
    """Yield rows as they come; report a long silence with the resources that the cluster has free."""
    channel: Channel[Mapping[str, Any]] = Channel(_ROWS_WAITING)

    def read() -> None:
        for row in dataset.iter_rows():
            channel.offer(row, wait=True)

    def report_silence() -> None:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
        why = f"no partition was finished for {_QUIET_S:g} s; the cluster has free: {free or 'nothing'}"
        listener({"event": "waiting", "partitions": [], "why": why})

    return channel.consume([read], quiet_s=_QUIET_S, on_quiet=report_silence)


class _Pickler(pickle.Pickler):
    """Pickler that writes an array of one repeated value, such as a patch without its pixels, as that value."""

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.ndarray) and value.size and not any(value.strides):
            return np.broadcast_to, (value.flat[0], value.shape)
        return NotImplemented


def _dump(items: Sequence[PreparedPlace[int] | Outcome[int]]) -> bytes:
    """Return prepared places as bytes for another process of the same run."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(list(items))
    return stream.getvalue()
