"""One partition in memory: its planned rows are opened as requests, and its results are written to the folder."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rs_embed.cautions import kinds_of
from rs_embed.embedding import Embedding, EmbeddingFailure, Request, has_fault
from rs_embed.errors import SpecError
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.grids import read_grid, restore_grids, write_grids
from rs_embed.export.inputs import InputPlaces
from rs_embed.export.partitions import PLAN_COLUMNS, parse_place
from rs_embed.export.plans import PartitionCounts
from rs_embed.export.progress import Progress
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.tables import ExportedRow, partition_tables
from rs_embed.grid import place_geobox
from rs_embed.pipeline import Outcome
from rs_embed.providers.base import FetchResult, PatchRequest, Provider, fetch_patches
from rs_embed.specs import OnLostScene, TemporalSpec


@dataclass(slots=True, kw_only=True)
class Partition:
    """Rows of one partition, their requests, and the results so far; dictionaries are keyed by row."""

    number: int
    table: pa.Table
    ids: list[str]
    earlier: pa.Table | None = None  # rows with vectors from an earlier run, when failures are tried again
    had_vector: frozenset[int] = frozenset()  # rows that are tried again although they have a vector
    patches: dict[int, PatchRequest] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    outcomes: dict[int, Outcome[Any]] = field(default_factory=dict)
    """Results; rows that are not places have theirs from the beginning, and no request."""
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def is_complete(self) -> bool:
        """True once every request has its result."""
        return len(self.outcomes) == len(self.ids)

    def fetch(self, provider: Provider, on_lost_scene: OnLostScene) -> Iterator[tuple[int, FetchResult]]:
        """Yield the imagery of each row that is a place, in any order."""
        rows = list(self.patches)
        for i, result in fetch_patches(provider, list(self.patches.values()), on_lost_scene):
            yield rows[i], result

    def add(self, row: int, outcome: Outcome[Any], progress: Progress) -> None:
        """Keep the result of a row, and count it."""
        self.outcomes[row] = outcome
        if isinstance(outcome.result, Embedding):
            seconds = time.perf_counter() - self.started_s
            progress.count_vector(self.ids[row], seconds, lost=outcome.result.lacks_scenes)
        else:
            progress.count_failure(self.ids[row], outcome.result.error, had_vector=row in self.had_vector)


def open_partition(folder: DatasetFolder, request: ExportRequest, number: int, *, retry: bool = False) -> Partition:
    """Read the rows of a partition and make their requests; with `retry`, only of the rows that failed."""
    table = folder.rows(number)
    earlier = None
    if retry and folder.is_done(number):
        earlier = _read_if_there(folder, "embeddings", number)
        table = _failed_rows(folder, table, number, earlier)
    known = set() if earlier is None else set(earlier["unique_id"].to_pylist())
    partition = Partition(
        number=number,
        table=table,
        ids=table["id"].to_pylist(),
        earlier=earlier,
        had_vector=frozenset(i for i, name in enumerate(table["unique_id"].to_pylist()) if name in known),
    )
    for row, planned in enumerate(table.select(PLAN_COLUMNS).to_pylist()):
        place = parse_place(planned["place"])
        try:
            temporal = TemporalSpec.range(planned["start"], planned["end"])
            geobox = place_geobox(place, request.sensor.scale_m)
            partition.patches[row] = PatchRequest(geobox, temporal, request.sensor)
            partition.requests[row] = request.for_place(place, temporal)
        except SpecError as error:
            partition.outcomes[row] = Outcome(row, EmbeddingFailure(place, error))
    return partition


def _read_if_there(folder: DatasetFolder, kind: str, number: int) -> pa.Table | None:
    path = folder.part(kind, number)
    return pq.read_table(path) if path.is_file() else None


def _failed_rows(folder: DatasetFolder, table: pa.Table, number: int, earlier: pa.Table | None) -> pa.Table:
    """Return the rows that failed, and those that lack scenes which could not be read; not those without imagery."""
    failures, wanted = _read_if_there(folder, "failures", number), set()
    if failures is not None:
        wanted |= set(failures.filter(pc.field("status") == "failed")["unique_id"].to_pylist())
    if earlier is not None:
        wanted -= set(earlier["unique_id"].to_pylist())
        wanted |= _with_lost_scenes(earlier)
    return table.filter(pc.field("unique_id").isin(pa.array(sorted(wanted), pa.string())))


def _with_lost_scenes(table: pa.Table) -> set[str]:
    """Return the `unique_id` of the rows that lack scenes which could not be read."""
    if "dropped_scenes" not in table.column_names:  # written before the column was
        return set()
    rows = zip(table["unique_id"].to_pylist(), table["dropped_scenes"].to_pylist(), strict=True)
    return {row for row, dropped in rows if has_fault(dropped)}


def _among(table: pa.Table) -> pc.Expression:
    """Return the condition that a row's `unique_id` is one of a table's."""
    return pc.field("unique_id").isin(table["unique_id"].combine_chunks())


def write_partition(
    folder: DatasetFolder, request: ExportRequest, partition: Partition, lengths: VectorLengths, progress: Progress
) -> None:
    """Write the results of a complete partition, and count its bad rows; a vector is never replaced by a failure."""
    rows: dict[int, ExportedRow] = {}
    for i, planned in enumerate(partition.table.select(PLAN_COLUMNS).to_pylist()):
        patch, outcome = partition.patches.get(i), partition.outcomes[i]
        if isinstance(outcome.result, EmbeddingFailure):
            if patch is None:
                progress.count_failure(planned["id"], outcome.result.error)
            if i in partition.had_vector:
                continue
        rows[i] = ExportedRow(planned, patch.geobox if patch else None, outcome)
    written = partition.table.take(pa.array(rows, pa.int64()))
    tables = partition_tables(list(rows.values()), written.drop_columns(PLAN_COLUMNS), request, lengths)
    if partition.earlier is not None or folder.is_done(partition.number):
        tables = _merge_earlier(folder, partition.number, written, tables)
    if request.grid:
        _write_grids(folder, partition, list(rows.values()))
    replaces_vectors = not partition.had_vector.isdisjoint(rows)
    if replaces_vectors:  # before, since the process may die next, and after, since the index may be built meanwhile
        folder.forget_index()
    folder.finish(partition.number, tables, _count(tables))
    if replaces_vectors:
        folder.forget_index()


def write_bad_rows(
    folder: DatasetFolder,
    request: ExportRequest,
    places: InputPlaces,
    faults: Mapping[int, str],
    lengths: VectorLengths,
) -> None:
    """Write the rows of the input that cannot be asked for; the next command writes its own in their place."""
    rows = []
    for number, fault in sorted(faults.items()):
        name = places.ids[number].as_py()
        planned = dict.fromkeys(PLAN_COLUMNS) | {"input_row": number, "id": name}
        planned["unique_id"] = hashlib.sha256(f"bad\n{name}\n{number}".encode()).hexdigest()
        failure = EmbeddingFailure(None, SpecError(f"{places.where(number)}: {fault}"))
        rows.append(ExportedRow(planned, None, Outcome(number, failure)))
    user = places.columns.take(pa.array([row.planned["input_row"] for row in rows], pa.int64()))
    user = user.rename_columns([f"user_{name}" for name in user.column_names])
    folder.write_table(folder.bad_rows, partition_tables(rows, user, request, lengths)["failures"])


def _write_grids(folder: DatasetFolder, partition: Partition, rows: Sequence[ExportedRow]) -> None:
    """Write the token grids of a partition, together with those of an earlier run."""
    path = folder.grids(partition.number)
    restore_grids(path, folder.scratch)
    old_ids = [] if partition.earlier is None else partition.earlier["unique_id"].to_pylist()
    stored = ((unique_id, read_grid(path, unique_id, "tokens")) for unique_id in old_ids)
    new = ((row.planned["unique_id"], row.outcome.tokens) for row in rows)
    grids = {unique_id: grid for unique_id, grid in (*stored, *new) if grid is not None}
    if grids:
        write_grids(path, grids, folder.scratch)


def _merge_earlier(
    folder: DatasetFolder, number: int, written: pa.Table, tables: Mapping[str, pa.Table]
) -> dict[str, pa.Table]:
    """Return the new tables with the stored rows that they do not replace, in the order of the plan."""
    order = folder.rows(number)["unique_id"].combine_chunks()
    merged: dict[str, pa.Table] = {}
    for kind, table in tables.items():
        stored = _read_if_there(folder, kind, number)
        if stored is not None:
            if kind == "failures":  # a process that died had written the vectors of some, and not this file yet
                stored = stored.filter(~_among(merged["embeddings"]))
            kept = stored.filter(~_among(written))
            table = pa.concat_tables([kept, table], promote_options="default").select(table.column_names)
            table = table.take(pc.sort_indices(pc.index_in(table["unique_id"], value_set=order)))
        merged[kind] = table
    return merged


def _count(tables: Mapping[str, pa.Table]) -> PartitionCounts:
    statuses = [s for kind in ("embeddings", "failures") for s in tables[kind]["status"].to_pylist()]
    ok, partial, failed, no_imagery = map(statuses.count, ("ok", "partial", "failed", "no_imagery"))
    lost, texts = len(_with_lost_scenes(tables["embeddings"])), tables["embeddings"]["warnings"].to_pylist()
    kinds = Counter(kind for warnings in texts for kind in kinds_of(warnings or ()))
    return PartitionCounts(ok, partial, failed, no_imagery, lost=lost, warnings=dict(kinds))
