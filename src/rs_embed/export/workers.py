"""Partitions to files: imagery of the next ones is fetched while the model runs on the last ones.

A partition is claimed, fetched, embedded and written; its mark, written last, makes it count. Whatever dies on the
way is done again by whoever comes next, and by nobody else meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from rs_embed import settings
from rs_embed.embedders.chips import ChipSize, Preparation
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedding import Embedding, EmbeddingFailure, Request
from rs_embed.errors import NoImageryError, RSEmbedError, SpecError
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.grids import read_grid, write_grids
from rs_embed.export.partitions import OURS, place_of
from rs_embed.export.request import ExportRequest
from rs_embed.export.tables import ExportedRow, tables
from rs_embed.grid import place_geobox
from rs_embed.inspection import summarise_patch
from rs_embed.pipeline import Outcome, PreparedPlace, Summarise, embed_prepared, prepare_all
from rs_embed.providers.base import FetchResults, PatchRequest, Provider, fetch_patches
from rs_embed.specs import OutputSpec, TemporalSpec

_SHIFT = 20
"""Positions of a run are partition << 20 | row."""
_LOOK_AGAIN_S = 1.0
_REPORT_EVERY_S = 1.0

Report = Callable[[Mapping[str, Any]], None]
"""Takes events of a run: `{"event": "progress", "done": …}`."""


@dataclass(slots=True)
class Partition:
    """Rows of one partition, and what became of them."""

    number: int
    table: pa.Table
    ids: list[str]
    """The rows' own ids."""
    patches: dict[int, PatchRequest]
    """By row; a bad row has none."""
    requests: dict[int, Request]
    faults: dict[int, RSEmbedError]
    """Rows that cannot even be asked for."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    lock: FileLock | None = None
    before: pa.Table | None = None
    """Rows with vectors from an earlier run, when failures are tried again."""
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def is_complete(self) -> bool:
        """Whether all its rows are there."""
        return len(self.outcomes) == len(self.patches)


@dataclass(slots=True)
class Progress:
    """Where a run is, and what it spends its time on."""

    total: int
    before: int = 0
    """Places that were finished before this run: they say nothing of its rate."""
    staged: bool = True
    """Whether the stages run in this process, so that their times are known."""
    done: int = 0
    failed: int = 0
    no_imagery: int = 0
    wait_s: float = 0.0
    """Waiting for imagery."""
    write_s: float = 0.0
    started_s: float = field(default_factory=time.perf_counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    """Seconds from the start of its partition to the vector, and the id, of the slowest places."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Ids and reasons of the first ones."""

    @property
    def finished(self) -> int:
        """Places of which it is known what became of them."""
        return self.done + self.failed + self.no_imagery

    def event(self, name: str = "progress") -> dict[str, Any]:
        """For programs."""
        seconds = time.perf_counter() - self.started_s
        finished = self.finished
        rate = (finished - self.before) / seconds if seconds > 0 else 0.0
        embed_s = max(0.0, seconds - self.wait_s - self.write_s)
        stages = {"fetch": self.wait_s, "embed": embed_s, "write": self.write_s}
        event = {
            "event": name,
            "done": self.done,
            "failed": self.failed,
            "no_imagery": self.no_imagery,
            "total": self.total,
            "per_s": round(rate, 3),
            "eta_s": round((self.total - finished) / rate, 1) if rate else None,
            "seconds": round(seconds, 1),
        }
        if not self.staged:
            return event
        waiting = {stage: round(spent, 2) for stage, spent in stages.items()}
        return event | {"waiting_for": waiting, "bottleneck": max(stages, key=lambda stage: stages[stage])}

    def add(self, partition: Partition, row: int, outcome: Outcome) -> None:
        """Count a place."""
        name = partition.ids[row]
        if isinstance(outcome.result, Embedding):
            self.done += 1
            self.slowest = sorted([*self.slowest, (time.perf_counter() - partition.started_s, name)], reverse=True)[:3]
        else:
            self.count_failure(name, outcome.result.error)

    def count_failure(self, name: str, error: RSEmbedError) -> None:
        """Count a place that failed."""
        if isinstance(error, NoImageryError):
            self.no_imagery += 1
        else:
            self.failed += 1
        if len(self.failures) < 20:
            self.failures.append((name, str(error)))


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs partitions of one folder in this process."""

    folder: DatasetFolder
    request: ExportRequest
    embedder: RemoteClipEmbedder
    provider: Provider
    dims: tuple[int, int]

    def run(self, numbers: Sequence[int], progress: Progress, report: Report, *, retry: bool = False) -> None:
        """Run partitions; those that another process holds are waited for, and done here if it dies."""
        left = list(numbers)
        while left:
            busy = self._pass(left, progress, report, retry)
            if not retry:
                done = self.folder.done()
                for number in (n for n in busy if n in done):
                    count_done(progress, done[number])
                busy = [n for n in busy if n not in done]
            left = busy
            if left:
                report({"event": "waiting", "partitions": left, "why": "another process has them"})
                time.sleep(_LOOK_AGAIN_S)

    def _pass(self, numbers: Sequence[int], progress: Progress, report: Report, retry: bool) -> list[int]:
        """Run what is free; returns what another process holds."""
        opened: dict[int, Partition] = {}
        requests: dict[int, Request] = {}
        busy: list[int] = []
        arrivals = self._arrivals(numbers, opened, requests, busy, retry)
        ahead, summarise = settings.batch_size(self.embedder.device.type), summary_of(self.request)
        prepared = prepare_all(self.embedder.preparation, requests, arrivals, summarise=summarise, ahead=ahead)
        try:
            with closing(prepared):
                waited = _timed(prepared, progress)
                outcomes = embed_prepared(self.embedder, requests, waited, with_tokens=self.request.grid)
                last = 0.0
                for outcome in outcomes:
                    partition = opened[outcome.position >> _SHIFT]
                    row = outcome.position & (1 << _SHIFT) - 1
                    partition.outcomes[row] = outcome
                    del requests[outcome.position]
                    progress.add(partition, row, outcome)
                    self._write_complete(opened, progress)
                    if time.perf_counter() - last > _REPORT_EVERY_S:
                        last = time.perf_counter()
                        report(progress.event())
            self._write_complete(opened, progress)
        finally:
            for partition in opened.values():
                if partition.lock is not None:
                    partition.lock.release()
        report(progress.event())
        return busy

    def _arrivals(
        self,
        numbers: Sequence[int],
        opened: dict[int, Partition],
        requests: dict[int, Request],
        busy: list[int],
        retry: bool,
    ) -> FetchResults:
        """Patches of one partition after the other; runs in the background, ahead of the model."""
        for number in numbers:
            lock = self.folder.claim(f"{number:06d}")
            if lock is None or (not retry and self.folder.is_done(number)):
                if lock is not None:
                    lock.release()
                busy.append(number)
                continue
            partition = open_partition(self.folder, self.request, number, retry=retry)
            partition.lock = lock
            rows = list(partition.patches)
            requests |= {number << _SHIFT | row: partition.requests[row] for row in rows}
            opened[number] = partition
            for i, patch in fetch_patches(self.provider, [partition.patches[row] for row in rows]):
                yield number << _SHIFT | rows[i], patch

    def _write_complete(self, opened: dict[int, Partition], progress: Progress) -> None:
        for number in [n for n, partition in list(opened.items()) if partition.is_complete]:
            started = time.perf_counter()
            partition = opened.pop(number)
            write_partition(self.folder, self.request, partition, self.dims, progress)
            if partition.lock is not None:
                partition.lock.release()
            progress.write_s += time.perf_counter() - started


def summary_of(request: ExportRequest) -> Summarise:
    """Return the function that summarises a patch: with a thumbnail, or the mean colour alone."""
    return partial(summarise_patch, thumbnail=request.thumbnails)


def open_partition(folder: DatasetFolder, request: ExportRequest, number: int, *, retry: bool = False) -> Partition:
    """A partition's rows as requests; with `retry` only those that failed, the others as they are."""
    table = folder.rows(number)
    before = None
    if retry and folder.is_done(number):
        before = _read_if_there(folder, "embeddings", number)
        table = table.filter(_failed_mask(folder, table, number, before))
    patches: dict[int, PatchRequest] = {}
    requests: dict[int, Request] = {}
    faults: dict[int, RSEmbedError] = {}
    for row, facts in enumerate(table.select(list(OURS)).to_pylist()):
        try:
            if facts["error"] is not None:
                raise SpecError(facts["error"])
            place, temporal = place_of(facts["place"]), TemporalSpec.range(facts["start"], facts["end"])
            patches[row] = PatchRequest(place_geobox(place, request.sensor.scale_m), temporal, request.sensor)
            requests[row] = request.of(place, temporal)
        except SpecError as error:
            faults[row] = error
    return Partition(number, table, table["id"].to_pylist(), patches, requests, faults, before=before)


def _read_if_there(folder: DatasetFolder, kind: str, number: int) -> pa.Table | None:
    path = folder.part(kind, number)
    return pq.read_table(path) if path.is_file() else None


def _failed_mask(folder: DatasetFolder, table: pa.Table, number: int, before: pa.Table | None) -> pa.Array:
    """True for rows to try again: failed, neither without imagery nor done since."""
    failures = _read_if_there(folder, "failures", number)
    status = (
        {} if failures is None else dict(zip(*(failures[c].to_pylist() for c in ("unique_id", "status")), strict=True))
    )
    done = set() if before is None else set(before["unique_id"].to_pylist())
    return pa.array([status.get(u) == "failed" and u not in done for u in table["unique_id"].to_pylist()])


def write_partition(
    folder: DatasetFolder, request: ExportRequest, partition: Partition, dims: tuple[int, int], progress: Progress
) -> None:
    """Write what became of a partition; its bad rows are counted now, the others were as they came."""
    for row, error in partition.faults.items():
        progress.count_failure(partition.ids[row], error)
    rows = [_exported(partition, i, facts) for i, facts in enumerate(partition.table.select(list(OURS)).to_pylist())]
    user = partition.table.drop_columns(list(OURS))
    found = tables(rows, user, request, dims)
    if partition.before is not None or folder.is_done(partition.number):
        found = _merged(folder, partition, found)
    if request.grid:
        _write_grids(folder, partition, rows)
    folder.finish(partition.number, found, _counts(found))


def _exported(partition: Partition, row: int, facts: Mapping[str, Any]) -> ExportedRow:
    outcome, patch = partition.outcomes.get(row), partition.patches.get(row)
    place = place_of(facts["place"]) if facts["place"] else None
    failure = EmbeddingFailure(place, partition.faults.get(row) or SpecError("no result"))
    return ExportedRow(
        input_row=facts["input_row"],
        id=facts["id"],
        unique_id=facts["unique_id"],
        request_id=facts["request_id"],
        start=facts["start"],
        end=facts["end"],
        geobox=patch.geobox if patch else None,
        lonlat=place.centre if place else None,
        result=outcome.result if outcome else failure,
        projected=outcome.projected if outcome else None,
        summary=outcome.summary if outcome else None,
    )


def _write_grids(folder: DatasetFolder, partition: Partition, rows: Sequence[ExportedRow]) -> None:
    """Token grids of a partition; when failures are tried again, those of before come along."""
    path = folder.grids(partition.number)
    old = [] if partition.before is None else partition.before["unique_id"].to_pylist()
    kept = ((unique, read_grid(path, unique, "tokens")) for unique in old)
    grids = {unique: grid for unique, grid in kept if grid is not None}
    for i, row in enumerate(rows):
        outcome = partition.outcomes.get(i)
        if outcome is not None and outcome.tokens is not None:
            grids[row.unique_id] = outcome.tokens
    if grids:
        write_grids(path, grids, folder.scratch)


def _merged(folder: DatasetFolder, partition: Partition, new: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """What was there before, less what was tried again, and the new; in the order of the plan."""
    tried = set(partition.table["unique_id"].to_pylist())
    order = {u: i for i, u in enumerate(folder.rows(partition.number)["unique_id"].to_pylist())}
    found = {}
    for kind, table in new.items():
        old = _read_if_there(folder, kind, partition.number)
        if old is not None:
            kept = old.filter(pa.array([u not in tried for u in old["unique_id"].to_pylist()]))
            table = pa.concat_tables([kept.cast(table.schema), table])
            table = table.take(pa.array(np.argsort([order[u] for u in table["unique_id"].to_pylist()])))
        found[kind] = table
    return found


def _counts(found: Mapping[str, pa.Table]) -> dict[str, int]:
    status = found["embeddings"]["status"].to_pylist() + found["failures"]["status"].to_pylist()
    return {name: status.count(name) for name in ("ok", "partial", "failed", "no_imagery")}


def count_done(progress: Progress, counts: Mapping[str, Any]) -> None:
    """Add a partition that is finished already."""
    progress.done += counts["ok"] + counts["partial"]
    progress.failed += counts["failed"]
    progress.no_imagery += counts["no_imagery"]


def _timed(items: Iterable[PreparedPlace | Outcome], progress: Progress) -> Iterator[PreparedPlace | Outcome]:
    """The same, with the time spent waiting for them."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        item = next(iterator, None)
        progress.wait_s += time.perf_counter() - started
        if item is None:
            return
        yield item


def dims_of(embedder: RemoteClipEmbedder, output: OutputSpec) -> tuple[int, int]:
    """Lengths of the vector and of the CLIP projection, by a look at a black chip."""
    side = embedder.size.image_px
    black = np.zeros((3, side, side), np.uint16)
    preparation = Preparation((0.0, 1.0), ChipSize(side, embedder.size.patch_px))
    [encoded] = embedder.encode([preparation.cut(black, fill_value=0.0, prep="resize")], output)
    return len(encoded.array), len(encoded.projected)
