"""One partition in memory: its planned rows are opened as requests, and its results are written to the folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rs_embed.embedding import Embedding, EmbeddingFailure, Request
from rs_embed.errors import SpecError
from rs_embed.export.folder import DatasetFolder, PartitionCounts
from rs_embed.export.grids import read_grid, write_grids
from rs_embed.export.partitions import PLAN_COLUMNS, parse_place
from rs_embed.export.progress import Progress
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.tables import ExportedRow, partition_tables
from rs_embed.grid import place_geobox
from rs_embed.pipeline import Outcome
from rs_embed.providers.base import FetchResult, PatchRequest, Provider, fetch_patches
from rs_embed.specs import TemporalSpec


@dataclass(slots=True, kw_only=True)
class Partition:
    """Rows of one partition, their requests, and the results so far; dictionaries are keyed by row."""

    number: int
    table: pa.Table
    ids: list[str]
    earlier: pa.Table | None = None  # rows with vectors from an earlier run, when failures are tried again
    patches: dict[int, PatchRequest] = field(default_factory=dict)
    requests: dict[int, Request] = field(default_factory=dict)
    outcomes: dict[int, Outcome[Any]] = field(default_factory=dict)
    """Results; rows that are not places have theirs from the beginning, and no request."""
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def is_complete(self) -> bool:
        """True once every request has its result."""
        return len(self.outcomes) == len(self.ids)

    def fetch(self, provider: Provider) -> Iterator[tuple[int, FetchResult]]:
        """Yield the imagery of each row that is a place, in any order."""
        rows = list(self.patches)
        for i, result in fetch_patches(provider, list(self.patches.values())):
            yield rows[i], result

    def add(self, row: int, outcome: Outcome[Any], progress: Progress) -> None:
        """Keep the result of a row, and count it."""
        self.outcomes[row] = outcome
        if isinstance(outcome.result, Embedding):
            progress.count_vector(self.ids[row], time.perf_counter() - self.started_s)
        else:
            progress.count_failure(self.ids[row], outcome.result.error)


def open_partition(folder: DatasetFolder, request: ExportRequest, number: int, *, retry: bool = False) -> Partition:
    """Read the rows of a partition and make their requests; with `retry`, only of the rows that failed."""
    table = folder.rows(number)
    earlier = None
    if retry and folder.is_done(number):
        earlier = _read_if_there(folder, "embeddings", number)
        table = _failed_rows(folder, table, number, earlier)
    partition = Partition(number=number, table=table, ids=table["id"].to_pylist(), earlier=earlier)
    for row, planned in enumerate(table.select(PLAN_COLUMNS).to_pylist()):
        place = parse_place(planned["place"]) if planned["place"] else None
        try:
            if place is None or planned["error"] is not None:
                raise SpecError(planned["error"])
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
    """Return the rows that failed and have no vector; rows without imagery are not tried again."""
    failures = _read_if_there(folder, "failures", number)
    if failures is None:
        return table.slice(length=0)
    failed = table.filter(_among(failures.filter(pc.field("status") == "failed")))
    return failed if earlier is None else failed.filter(~_among(earlier))


def _among(table: pa.Table) -> pc.Expression:
    """Return the condition that a row's `unique_id` is one of a table's."""
    return pc.field("unique_id").isin(table["unique_id"].to_pylist())


def write_partition(
    folder: DatasetFolder, request: ExportRequest, partition: Partition, lengths: VectorLengths, progress: Progress
) -> None:
    """Write the results of a complete partition, and count its bad rows."""
    rows = []
    for i, planned in enumerate(partition.table.select(PLAN_COLUMNS).to_pylist()):
        patch, outcome = partition.patches.get(i), partition.outcomes[i]
        rows.append(ExportedRow(planned, patch.geobox if patch else None, outcome))
        if patch is None and isinstance(outcome.result, EmbeddingFailure):
            progress.count_failure(planned["id"], outcome.result.error)
    tables = partition_tables(rows, partition.table.drop_columns(PLAN_COLUMNS), request, lengths)
    if partition.earlier is not None or folder.is_done(partition.number):
        tables = _merge_earlier(folder, partition, tables)
    if request.grid:
        _write_grids(folder, partition, rows)
    folder.finish(partition.number, tables, _count(tables))


def _write_grids(folder: DatasetFolder, partition: Partition, rows: Sequence[ExportedRow]) -> None:
    """Write the token grids of a partition, together with those of an earlier run."""
    path = folder.grids(partition.number)
    old_ids = [] if partition.earlier is None else partition.earlier["unique_id"].to_pylist()
    stored = ((unique_id, read_grid(path, unique_id, "tokens")) for unique_id in old_ids)
    new = ((row.planned["unique_id"], row.outcome.tokens) for row in rows)
    grids = {unique_id: grid for unique_id, grid in (*stored, *new) if grid is not None}
    if grids:
        write_grids(path, grids, folder.scratch)


def _merge_earlier(folder: DatasetFolder, partition: Partition, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Return the new tables with the stored rows that were not tried again, in the order of the plan."""
    order = folder.rows(partition.number)["unique_id"].combine_chunks()
    merged = {}
    for kind, table in tables.items():
        stored = _read_if_there(folder, kind, partition.number)
        if stored is not None:
            kept = stored.filter(~_among(partition.table))
            table = pa.concat_tables([kept.cast(table.schema), table])
            table = table.take(pc.sort_indices(pc.index_in(table["unique_id"], value_set=order)))
        merged[kind] = table
    return merged


def _count(tables: Mapping[str, pa.Table]) -> PartitionCounts:
    statuses = [s for kind in ("embeddings", "failures") for s in tables[kind]["status"].to_pylist()]
    return PartitionCounts(*map(statuses.count, ("ok", "partial", "failed", "no_imagery")))
