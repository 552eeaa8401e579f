"""Plans of a dataset: files of rows to embed, one row group a partition, and the keys of their rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rs_embed.export.checks import RESTORE, check_counts, reading
from rs_embed.files import FileMemo, read_json

PLAN_PARTITIONS = 4096
"""Partitions of one plan, at most: each reader of one of them reads a footer that lists all."""
_PLAN = re.compile(r"plan-[0-9]{3,9}\.parquet")
_KEY_BYTES = 16
Keys = npt.NDArray[np.bytes_]
"""Keys of rows: as texts, ten million `unique_id` would fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """Rows that were planned together; invalid values are a ValueError."""

    name: str
    first: int  # number of its first partition
    partitions: int
    places: int

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and _PLAN.fullmatch(self.name)):
            raise ValueError(f"{self.name!r:.60} is no name of a plan")
        check_counts(asdict(self), "first", "partitions", "places")


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    """Number of rows of a finished partition by their status; invalid values are a ValueError."""

    ok: int
    partial: int
    failed: int
    no_imagery: int
    lost: int = 0  # rows with a vector that lack scenes which could not be read
    warnings: Mapping[str, int] = field(default_factory=dict, compare=False)  # rows with a warning, by its kind

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.ok + self.partial + self.failed + self.no_imagery

    def __post_init__(self) -> None:
        check_counts(asdict(self), "ok", "partial", "failed", "no_imagery", "lost")
        check_counts(self.warnings)


def regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of so many rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting = [joined.slice(rows)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def keys_of(unique_ids: pa.ChunkedArray) -> Keys:
    """Return the first 128 of the 256 bits of each `unique_id`; a ValueError refuses texts that are none."""
    texts = "".join(pc.utf8_slice_codeunits(unique_ids, 0, 2 * _KEY_BYTES).to_pylist())
    if len(texts) != 2 * _KEY_BYTES * len(unique_ids):
        raise ValueError("it holds a unique_id that is no digest")
    return np.frombuffer(bytes.fromhex(texts), f"S{_KEY_BYTES}")


_plans: FileMemo[tuple[int, tuple[PlanFile, ...]]] = FileMemo(keep=8)
_footers: FileMemo[pq.FileMetaData] = FileMemo(keep=64)


def read_plans(manifest: Path) -> tuple[int, tuple[PlanFile, ...]]:
    """Return the first number and the plans of a manifest, parsed once a state: a run asks for every partition."""
    return _plans.get(manifest, lambda: _parse_plans(manifest))


def read_partition(plan: Path, group: int) -> pa.Table:
    """Read the rows of one partition, a row group of a plan."""
    with reading(plan, RESTORE):
        return pq.ParquetFile(plan, metadata=_footer(plan)).read_row_group(group)


def count_rows(plan: Path, group: int) -> int:
    """Return the number of rows of one partition."""
    with reading(plan, RESTORE):
        return int(_footer(plan).row_group(group).num_rows)


def _footer(plan: Path) -> pq.FileMetaData:
    """Return the footer of a plan, read once a state of the file: its size grows with the number of partitions."""
    return _footers.get(plan, lambda: pq.read_metadata(plan))


def _parse_plans(manifest: Path) -> tuple[int, tuple[PlanFile, ...]]:
    with reading(manifest, RESTORE):
        values = read_json(manifest)
        plans = tuple(PlanFile(**plan) for plan in values["plans"])
        first = values.get("first_partition", 0)
        check_counts({"first_partition": first})
        before = list(accumulate((plan.partitions for plan in plans), initial=first))
        if [plan.first for plan in plans] != before[:-1]:
            raise ValueError("its plans do not follow each other")
        return first, plans
