"""The local runner: imagery of the next partitions is fetched while the model runs on the last ones.

A lock claims a partition, its mark makes it count. The system releases a dead process's locks: another one repeats it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from filelock import FileLock, Timeout

from rs_embed import settings
from rs_embed.embedders.chips import ChipSize, Preparation
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedding import Request
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.partition_io import Partition, open_partition, write_partition
from rs_embed.export.progress import FaultLimit, Progress, ProgressListener, is_fault
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.inspection import summarise_patch
from rs_embed.pipeline import Summarise, embed_prepared, prepare_all
from rs_embed.providers.base import FetchResult, Provider
from rs_embed.specs import OnLostScene, OutputSpec

_RETRY_LOCKS_AFTER_S = 1.0
REPORT_EVERY_S = 1.0

RowKey = tuple[int, int]  # numbers of a partition and of a row in it


@dataclass(slots=True)
class _Pass:
    """State of one pass over partitions, shared by the fetching thread and the model's."""

    partitions: dict[int, tuple[Partition, FileLock]] = field(default_factory=dict)  # claimed, until they are written
    requests: dict[RowKey, Request] = field(default_factory=dict)  # without a result yet
    limit: FaultLimit = field(default_factory=FaultLimit)
    taken: list[int] = field(default_factory=list)  # partitions that another process holds or has finished


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs partitions of one folder in this process."""

    folder: DatasetFolder
    request: ExportRequest
    embedder: RemoteClipEmbedder
    provider: Provider
    lengths: VectorLengths
    on_lost_scene: OnLostScene = "keep"

    def run(
        self, numbers: Sequence[int], progress: Progress, listener: ProgressListener, *, retry: bool = False
    ) -> None:
        """Run partitions; wait for those that another process holds, and run them here if it dies."""
        left = list(numbers)
        while left:
            left = self._pass(left, progress, listener, retry)
            if not retry:
                done = self.folder.done()
                for number in (n for n in left if n in done):
                    progress.count_partition(done[number])
                left = [n for n in left if n not in done]
            if left:
                listener({"event": "waiting", "partitions": left, "why": "another process has them"})
                time.sleep(_RETRY_LOCKS_AFTER_S)

    def _pass(self, numbers: Sequence[int], progress: Progress, listener: ProgressListener, retry: bool) -> list[int]:
        """Run the partitions that are free, and return the numbers of the others."""
        state = _Pass()
        step, summarise = settings.batch_size(self.embedder.device.type, progress.total), summary_of(self.request)
        arrivals = self._fetch(numbers, state, retry)
        prepared = prepare_all(self.embedder.preparation, state.requests, arrivals, summarise=summarise, ahead=step)
        last = 0.0
        try:
            with closing(prepared):
                waited = progress.time_waits(prepared)
                for outcome in embed_prepared(self.embedder, waited, step=step, with_tokens=self.request.grid):
                    number, row = outcome.position
                    state.partitions[number][0].add(row, outcome, progress)
                    del state.requests[outcome.position]
                    self._write_complete(state, progress)
                    if time.perf_counter() - last > REPORT_EVERY_S:
                        last = time.perf_counter()
                        listener(progress.event())
            self._write_complete(state, progress)  # partitions of bad rows alone have no outcome
        finally:
            for _, lock in state.partitions.values():
                lock.release()
        listener(progress.event())
        return state.taken

    def _fetch(self, numbers: Sequence[int], state: _Pass, retry: bool) -> Iterator[tuple[RowKey, FetchResult]]:
        """Claim and fetch one partition after the other; runs in the background, ahead of the model."""
        for number in numbers:
            lock = self.folder.lock(f"{number:06d}")
            with suppress(Timeout):
                lock.acquire(blocking=False)
            if not lock.is_locked or (not retry and self.folder.is_done(number)):
                lock.release()
                state.taken.append(number)
                continue
            partition = open_partition(self.folder, self.request, number, retry=retry)
            state.requests |= {(number, row): request for row, request in partition.requests.items()}
            state.partitions[number] = partition, lock
            for row, pixels in partition.fetch(self.provider, self.on_lost_scene):
                state.limit.count(is_fault(pixels), not is_fault(pixels), pixels)
                yield (number, row), pixels

    def _write_complete(self, state: _Pass, progress: Progress) -> None:
        for number in [n for n, (partition, _) in list(state.partitions.items()) if partition.is_complete]:
            started = time.perf_counter()
            partition, lock = state.partitions.pop(number)
            try:
                write_partition(self.folder, self.request, partition, self.lengths, progress)
            finally:
                lock.release()
            progress.write_s += time.perf_counter() - started


def summary_of(request: ExportRequest) -> Summarise:
    """Return the function that summarises a patch: with a thumbnail, or the mean colour alone."""
    return partial(summarise_patch, thumbnail=request.thumbnails)


def vector_lengths(embedder: RemoteClipEmbedder, output: OutputSpec) -> VectorLengths:
    """Return the lengths of a model's vectors, by embedding a black chip."""
    side = embedder.size.image_px
    black = np.zeros((3, side, side), np.uint16)
    preparation = Preparation((0.0, 1.0), ChipSize(side, embedder.size.patch_px))
    [encoded] = embedder.encode([preparation.cut(black, fill_value=0.0, prep="resize")], output)
    return VectorLengths(len(encoded.array), len(encoded.projected))
