"""A dataset's folder: what it was asked for, which partitions there are, which are done. All files appear whole.

```
DATASET/embeddings/part-000012.parquet    rows with vectors, nothing else
        failures/part-000012.parquet      rows without, and why
        thumbnails/part-000012.parquet    quicklooks
        .rs-embed/manifest.json           the request and its plans
        .rs-embed/plan-000.parquet        rows to embed, one row group a partition
        .rs-embed/done/000012.json        written last: this partition counts
```
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from rs_embed.errors import RSEmbedError
from rs_embed.export.request import ExportRequest, differences
from rs_embed.files import atomic_write

FORMAT = 1


@dataclass(frozen=True, slots=True)
class PlanFile:
    """One list of rows that were planned together."""

    name: str
    first: int
    """Number of its first partition."""
    partitions: int
    places: int


@dataclass(frozen=True)
class DatasetFolder:
    """A folder on disk; every method reads what is there now."""

    path: Path

    @property
    def _state(self) -> Path:
        return self.path / ".rs-embed"

    @property
    def exists(self) -> bool:
        """Whether a dataset is there."""
        return (self._state / "manifest.json").is_file()

    # --- request and plans

    def manifest(self) -> dict[str, Any]:
        """What the folder was asked for.

        Raises:
            RSEmbedError: when it is no dataset of ours, or of a later version.
        """
        try:
            found: dict[str, Any] = json.loads((self._state / "manifest.json").read_text())
        except FileNotFoundError:
            raise RSEmbedError(f"{self.path} is no dataset: it has no .rs-embed/manifest.json") from None
        except ValueError as error:
            raise RSEmbedError(f"{self._state / 'manifest.json'} is damaged: {error}") from error
        if found.get("format") != FORMAT:
            raise RSEmbedError(f"{self.path} has format {found.get('format')}, this version reads {FORMAT}")
        return found

    @cached_property
    def request(self) -> ExportRequest:
        """The request that all rows were made with."""
        return ExportRequest.parse(self.manifest()["request"])

    def plans(self) -> list[PlanFile]:
        """Its plans, in the order in which they were added."""
        if not self.exists:
            return []
        manifest = self._state / "manifest.json"
        return list(_plans(manifest, manifest.stat().st_mtime_ns))

    def partitions(self) -> range:
        """Numbers of all partitions."""
        plans = self.plans()
        return range(plans[-1].first + plans[-1].partitions if plans else 0)

    def check_request(self, request: ExportRequest) -> None:
        """Refuse another request than the folder's.

        Raises:
            RSEmbedError: with each difference.
        """
        if not self.exists:
            return
        found = list(differences(self.manifest()["request"], request.facts()))
        if found:
            raise RSEmbedError(
                f"{self.path} holds a dataset of another request ({'; '.join(found)}): only places and time ranges can "
                "be added; take another --out"
            )

    def add_plan(self, request: ExportRequest, rows: pa.Table, size: int, versions: Mapping[str, str]) -> None:
        """Append rows as new partitions of a size; the manifest, written last, makes them count."""
        plans = self.plans()
        name, first = f"plan-{len(plans):03d}.parquet", len(self.partitions())
        self.write(self._state / name, lambda part: _write_groups(part, rows, size))
        added = PlanFile(name, first, -(-rows.num_rows // size), rows.num_rows)
        manifest = {
            "format": FORMAT,
            "request": request.facts(),
            "request_sha256": request.sha256(),
            "versions": dict(versions),
            "plans": [asdict(plan) for plan in (*plans, added)],
        }
        self.write_text(self._state / "manifest.json", json.dumps(manifest, indent=1))

    def rows(self, number: int) -> pa.Table:
        """The planned rows of one partition."""
        path, group = self._group(number)
        return pq.ParquetFile(path, metadata=_metadata(path)).read_row_group(group)

    def rows_in(self, number: int) -> int:
        """How many rows a partition has."""
        path, group = self._group(number)
        return int(_metadata(path).row_group(group).num_rows)

    def _group(self, number: int) -> tuple[Path, int]:
        plan = next(p for p in self.plans() if p.first <= number < p.first + p.partitions)
        return self._state / plan.name, number - plan.first

    def time_range(self) -> tuple[str, str]:
        """First day and the day after the last of all planned rows."""
        tables = [pq.read_table(self._state / p.name, columns=["start", "end"]) for p in self.plans()]
        days = [[d for t in tables for d in t[name].to_pylist() if d] for name in ("start", "end")]
        return min(days[0], default="1970-01-01"), max(days[1], default="1970-01-02")

    def planned_ids(self) -> set[str]:
        """`unique_id` of every planned row."""
        tables = (pq.read_table(self._state / p.name, columns=["unique_id"]) for p in self.plans())
        return {value for table in tables for value in table["unique_id"].to_pylist()}

    # --- partitions

    def part(self, kind: str, number: int) -> Path:
        """A partition's file of one kind."""
        return self.path / kind / f"part-{number:06d}.parquet"

    def grids(self, number: int | None = None) -> Path:
        """The group of all token grids, or that of one partition."""
        root = self.path / "grids.zarr"
        return root if number is None else root / f"part-{number:06d}"

    @property
    def scratch(self) -> Path:
        """Where things are built before they appear."""
        return self._state / "parts"

    def done(self) -> dict[int, dict[str, Any]]:
        """Finished partitions with their counts."""
        marks = (self._state / "done").glob("*.json")
        return {int(mark.stem): json.loads(mark.read_text()) for mark in sorted(marks)}

    def is_done(self, number: int) -> bool:
        """Whether a partition is finished."""
        return self._mark(number).is_file()

    def _mark(self, number: int) -> Path:
        return self._state / "done" / f"{number:06d}.json"

    def finish(self, number: int, tables: Mapping[str, pa.Table], counts: Mapping[str, Any]) -> None:
        """Write a partition's files, then its mark. An empty table leaves no file."""
        for kind in ("thumbnails", "failures", "embeddings"):
            table = tables.get(kind)
            if table is not None and table.num_rows:
                self.write(self.part(kind, number), partial(_write_table, table))
            else:
                self.part(kind, number).unlink(missing_ok=True)
        self.write_text(self._mark(number), json.dumps(dict(counts)))

    @contextmanager
    def lock(self, name: str, *, wait_s: float = -1) -> Iterator[bool]:
        """Hold a lock of the folder, which the system releases when the process dies; False when another has it."""
        lock = self.claim(name, wait_s=wait_s)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    def claim(self, name: str, *, wait_s: float = 0) -> FileLock | None:
        """The lock itself, to be released; None when another process has it."""
        folder = self._state / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            return None
        return lock

    # --- files

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file, whole or not at all."""

        def fill(part: Path) -> None:
            part.write_text(text, encoding="utf-8")

        self.write(path, fill)

    def write(self, path: Path, fill: Callable[[Path], None]) -> None:
        """Write a file so that it is there whole or not at all, also after a power cut."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, scratch=self.scratch, durable=True) as part:
            fill(part)


@lru_cache(maxsize=8)
def _plans(manifest: Path, changed_ns: int) -> tuple[PlanFile, ...]:
    """The plans of a manifest, parsed again when it changes: a run asks for each partition."""
    return tuple(PlanFile(**plan) for plan in json.loads(manifest.read_text())["plans"])


@lru_cache(maxsize=64)
def _metadata(path: Path) -> pq.FileMetaData:
    """Of a plan, which never changes; parsed once, for it grows with the number of partitions."""
    return pq.read_metadata(path)


def _write_groups(path: Path, rows: pa.Table, size: int) -> None:
    pq.write_table(rows, path, row_group_size=size, compression="zstd")


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", use_dictionary=_dictionary_columns(table.schema))


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Texts repeat; vectors and pictures do not."""
    return [field.name for field in schema if pa.types.is_string(field.type) and not field.name.endswith("_id")]
