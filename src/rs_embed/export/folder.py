"""The folder of a dataset: its request, its partitions, and which of them are done. Each file is written atomically.

```
DATASET/embeddings/part-000012.parquet    rows with vectors, nothing else
        failures/part-000012.parquet      rows without, and their errors
        failures/input.parquet            rows of the last command's input that are not places
        thumbnails/part-000012.parquet    quicklooks
        .rs-embed/manifest.json           the request and its plans
        .rs-embed/plan-000.parquet        rows to embed, one row group a partition
        .rs-embed/done/000012.json        written last: this partition counts
```
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from rs_embed.errors import RSEmbedError
from rs_embed.export.checks import RESTORE, inside, reading, regular_file
from rs_embed.export.plans import (
    PLAN_PARTITIONS,
    Keys,
    PartitionCounts,
    PlanFile,
    count_rows,
    keys_of,
    read_partition,
    read_plans,
    regroup,
)
from rs_embed.export.request import BESIDE_WEIGHTS, ExportRequest, differences
from rs_embed.files import atomic_write, cannot_write, make_folder, read_json, remove

FORMAT = 1
_MARK = re.compile(r"[0-9]{6,9}\.json")
_FOLDERS = ("embeddings", "failures", "thumbnails", "grids.zarr", "concepts")
_LEFTOVER_S = 86_400.0
_STATE_FOLDERS = ("index", "done", "locks", "parts")
_log = logging.getLogger("rs_embed")


@dataclass(frozen=True)
class DatasetFolder:
    """A folder on disk; every method reads its present state."""

    path: Path

    @property
    def _state(self) -> Path:
        return self.path / ".rs-embed"

    @property
    def _manifest(self) -> Path:
        return self._state / "manifest.json"

    @property
    def exists(self) -> bool:
        """True if the folder holds a dataset."""
        return self._manifest.is_file()

    def manifest(self) -> dict[str, Any]:
        """Return the manifest: the request, the plans, and the versions of the packages."""
        for folder in (self._state, *(self._state / n for n in _STATE_FOLDERS), *(self.path / n for n in _FOLDERS)):
            inside(self.path, folder)  # what is written to it would go elsewhere
        try:
            with reading(self._manifest, RESTORE):
                return _checked(read_json(self._manifest), self.path)
        except RSEmbedError as error:
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                raise RSEmbedError(f"{self.path} is no dataset: it has no .rs-embed/manifest.json") from None
            raise

    @cached_property
    def request(self) -> ExportRequest:
        """Request that all rows were made with."""
        values = self.manifest()["request"]
        with reading(self._manifest, RESTORE):
            return ExportRequest.from_dict(values)

    def part_files(self, kind: str) -> list[Path]:
        """Return the files of all partitions by their kind: "embeddings", "failures" or "thumbnails".

        Raises:
            RSEmbedError: for a link that leads out of the folder, or what is no regular file.
        """
        return [regular_file(self.path, file) for file in sorted((self.path / kind).glob("*.parquet"))]

    def plans(self) -> list[PlanFile]:
        """Return the plans in the order in which they were added."""
        if not self.exists:
            return []
        return list(read_plans(self._manifest)[1])

    def partitions(self) -> range:
        """Return the numbers of all partitions."""
        if not self.exists:
            return range(0)
        first, plans = read_plans(self._manifest)
        return range(first, first + sum(plan.partitions for plan in plans))

    def differing(self, request: ExportRequest) -> list[str]:
        """Return a text for each value of a request that is not that of the folder."""
        if not self.exists:
            return []
        old, new = self.manifest()["request"], request.to_dict()
        unknown = {key: None for key in BESIDE_WEIGHTS if None in (old.get(key), new.get(key))}
        return list(differences(old | unknown, new | unknown))

    def check_request(self, request: ExportRequest) -> None:
        """Check that a request is that of the folder."""
        if differing := self.differing(request):
            beside = any(text.startswith(BESIDE_WEIGHTS) for text in differing)
            restore = "put back the config and tokenizer that were beside the weights, or " if beside else ""
            raise RSEmbedError(
                f"{self.path} holds a dataset of another request ({'; '.join(differing)}): only places and time ranges "
                f"can be added; {restore}take another --out"
            )

    @property
    def is_blank(self) -> bool:
        """True for a dataset without a vector that no process works on: a mistaken command leaves one."""
        if not self.exists or self.part_files("embeddings"):
            return False
        for file in (self._state / "locks").glob("[0-9]*.lock"):
            try:
                with self.lock(file.stem).acquire(blocking=False):
                    continue
            except Timeout:
                return False
        return True

    def start_over(self, request: ExportRequest, versions: Mapping[str, str]) -> None:
        """Forget all rows; new partitions get new numbers, so that no process mistakes them for those that it knew."""
        plans, number = self.plans(), self.partitions().stop
        for name in (*(self.path / n for n in ("failures", "thumbnails", "grids.zarr")), self._state / "done"):
            shutil.rmtree(name, ignore_errors=True)
        self._write_manifest(request, [], versions, number)
        for plan in plans:
            (self._state / plan.name).unlink(missing_ok=True)

    def add_plan(
        self, request: ExportRequest, tables: Iterable[pa.Table], size: int, versions: Mapping[str, str]
    ) -> int:
        """Append rows as new partitions of `size` rows, and return their number.

        The manifest, written last, makes them count. A plan has a limited number of partitions: each reader of one
        partition reads the footer of all.
        """
        plans, rows, number = self.plans(), 0, self.partitions().stop
        for table in regroup(tables, size * PLAN_PARTITIONS):
            added = PlanFile(
                name=f"plan-{number:03d}.parquet",
                first=number,
                partitions=-(-table.num_rows // size),
                places=table.num_rows,
            )
            with self.writing(self._state / added.name) as part:
                pq.write_table(table, part, row_group_size=size, compression="zstd")
            plans, rows, number = [*plans, added], rows + table.num_rows, number + added.partitions
        if rows:
            self._write_manifest(request, plans, versions, plans[0].first)
        return rows

    def _write_manifest(
        self, request: ExportRequest, plans: Sequence[PlanFile], versions: Mapping[str, str], first: int
    ) -> None:
        known = self.manifest() if plans and self.exists else {}
        manifest = {
            "format": FORMAT,
            "request": known.get("request", request.to_dict()),
            "request_sha256": known.get("request_sha256", request.sha256()),
            "versions": dict(versions),
            "first_partition": first,
            "plans": [asdict(plan) for plan in plans],
        }
        self.write_text(self._manifest, json.dumps(manifest, indent=1))

    def rows(self, number: int) -> pa.Table:
        """Read the planned rows of one partition."""
        return read_partition(*self._group(number))

    def rows_in(self, number: int) -> int:
        """Return the number of rows of a partition."""
        return count_rows(*self._group(number))

    def _group(self, number: int) -> tuple[Path, int]:
        plan = next((p for p in self.plans() if p.first <= number < p.first + p.partitions), None)
        if plan is None:
            raise RSEmbedError(f"{self.path} was started over by another command meanwhile: run this one again")
        return regular_file(self.path, self._state / plan.name), number - plan.first

    def time_range(self) -> tuple[str, str]:
        """Return the first day of all planned rows, and the day after the last."""
        days = [[pc.min_max(column).as_py() for column in self._planned(name)] for name in ("start", "end")]
        starts, ends = ([day[extreme] for day in found] for found, extreme in zip(days, ("min", "max"), strict=True))
        return min(filter(None, starts), default="1970-01-01"), max(filter(None, ends), default="1970-01-02")

    def planned_keys(self) -> Keys:
        """Return the keys of every planned row, sorted."""
        found = [keys_of(column) for column in self._planned("unique_id")]
        return np.sort(np.concatenate(found)) if found else keys_of(pa.chunked_array([], pa.string()))

    def _planned(self, column: str) -> Iterator[pa.ChunkedArray]:
        """Yield a column of each plan."""
        for plan in self.plans():
            file = regular_file(self.path, self._state / plan.name)
            with reading(file, RESTORE):
                yield pq.read_table(file, columns=[column])[column]

    def part(self, kind: str, number: int) -> Path:
        """Return the path of a partition's file: its "embeddings", "failures" or "thumbnails"."""
        return self.path / kind / f"part-{number:06d}.parquet"

    @property
    def bad_rows(self) -> Path:
        """File of the rows that the last command's input has and that cannot be asked for."""
        return self.path / "failures" / "input.parquet"

    def grids(self, number: int | None = None) -> Path:
        """Return the path of the Zarr group of all token grids, or of one partition."""
        root = self.path / "grids.zarr"
        return root if number is None else root / f"part-{number:06d}"

    @property
    def scratch(self) -> Path:
        """Folder for files that are not complete yet."""
        return self._state / "parts"

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed: those older than a day, by the clock of the disk."""
        now = self._touch_lock("plan").stat().st_mtime
        for path in self.scratch.glob(".*.part.*"):
            with suppress(OSError):  # another run removes it too, or another user wrote it
                if now - path.stat().st_mtime < _LEFTOVER_S:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()

    def done(self) -> dict[int, PartitionCounts]:
        """Return the finished partitions with their counts."""
        marks = sorted((self._state / "done").glob("*.json"))
        found = {int(m.stem): self._counts(int(m.stem)) for m in marks if _MARK.fullmatch(m.name)}
        return {number: counts for number, counts in found.items() if counts is not None}

    def is_done(self, number: int) -> bool:
        """Return True if a partition is finished."""
        return self._counts(number) is not None

    def _counts(self, number: int) -> PartitionCounts | None:
        """Return the counts of a partition; None where it must be run: no mark, a damaged one, or its file is gone."""
        mark = self._mark(number)
        try:
            with reading(mark, "the partition is run again"):
                counts = PartitionCounts(**read_json(mark))
        except RSEmbedError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                _log.warning("%s", error)
            return None
        return None if counts.ok + counts.partial and not self.part("embeddings", number).is_file() else counts

    def _mark(self, number: int) -> Path:
        return self._state / "done" / f"{number:06d}.json"

    def finish(self, number: int, tables: Mapping[str, pa.Table], counts: PartitionCounts) -> None:
        """Write a partition's tables by kind, then its mark. An empty table leaves no file.

        Failures come after embeddings: a row that moves to these is never in neither, whenever the process dies.
        """
        for kind in ("thumbnails", "embeddings", "failures"):
            self.write_table(self.part(kind, number), tables.get(kind))
        self.write_text(self._mark(number), json.dumps(asdict(counts)))

    @property
    def failures(self) -> int:
        """Number of rows without a vector."""
        with reading(self.path / "failures"):
            return sum(pq.read_metadata(file).num_rows for file in self.part_files("failures"))

    @property
    def why_empty(self) -> str:
        """Sentence about a dataset without a vector."""
        failed = f"no vector: its {self.failures:,} row(s) failed, see open_dataset(…).failures()"
        return f"this dataset has {failed if self.failures else 'no rows yet'}"

    def write_table(self, path: Path, table: pa.Table | None) -> None:
        """Write a table atomically; an empty one leaves no file."""
        if table is not None and table.num_rows:
            with self.writing(path) as part:
                pq.write_table(table, part, compression="zstd", use_dictionary=_dictionary_columns(table.schema))
        else:
            remove(path)

    def forget_index(self) -> None:
        """Make the next search build its index anew: it would keep vectors that were replaced."""
        with self.lock("index"):
            remove(self._state / "index" / "index.json")

    def lock(self, name: str) -> FileLock:
        """Return a lock of the folder, not acquired yet. The system releases it on a crash."""
        return FileLock(self._touch_lock(name), thread_local=False)

    def _touch_lock(self, name: str) -> Path:
        file = inside(self.path, make_folder(self._state / "locks") / f"{name}.lock")
        try:
            file.touch()
        except OSError as error:  # the lock itself would raise it as it is
            raise cannot_write(file, error) from error
        return regular_file(self.path, file)

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file atomically."""
        with self.writing(path) as part:
            part.write_text(text, encoding="utf-8")

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path for `atomic_write`; the file survives a power cut once the block has ended."""
        make_folder(path.parent)
        with atomic_write(path, scratch=make_folder(self.scratch), durable=True) as part:
            yield part


def _checked(manifest: object, path: Path) -> dict[str, Any]:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("request"), dict):
        raise ValueError("it holds no request")
    if manifest.get("format") != FORMAT:
        raise RSEmbedError(f"{path} has format {manifest.get('format')!r:.40}, this version reads {FORMAT}")
    return manifest


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Return the columns whose texts repeat; vectors, pictures and ids do not."""
    return [field.name for field in schema if pa.types.is_string(field.type) and not field.name.endswith("_id")]
