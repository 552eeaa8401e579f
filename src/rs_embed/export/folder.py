"""The folder of a dataset: its request, its partitions, and which of them are done. Each file is written atomically.

```
DATASET/embeddings/part-000012.parquet    rows with vectors, nothing else
        failures/part-000012.parquet      rows without, and their errors
        thumbnails/part-000012.parquet    quicklooks
        .rs-embed/manifest.json           the request and its plans
        .rs-embed/plan-000.parquet        rows to embed, one row group a partition
        .rs-embed/done/000012.json        written last: this partition counts
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from rs_embed.errors import RSEmbedError
from rs_embed.export.request import ExportRequest, differences
from rs_embed.files import atomic_write

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """Rows that were planned together."""

    name: str
    first: int  # number of its first partition
    partitions: int
    places: int


@dataclass(frozen=True, slots=True)
class PartitionCounts:
    """Number of rows of a finished partition by their status."""

    ok: int
    partial: int
    failed: int
    no_imagery: int
    lost: int = 0  # rows with a vector that lack scenes which could not be read


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
        try:
            manifest: dict[str, Any] = json.loads(self._manifest.read_text())
        except FileNotFoundError:
            raise RSEmbedError(f"{self.path} is no dataset: it has no .rs-embed/manifest.json") from None
        except ValueError as error:
            raise RSEmbedError(f"{self._manifest} is damaged: {error}") from error
        if manifest.get("format") != FORMAT:
            raise RSEmbedError(f"{self.path} has format {manifest.get('format')}, this version reads {FORMAT}")
        return manifest

    @cached_property
    def request(self) -> ExportRequest:
        """Request that all rows were made with."""
        return ExportRequest.from_dict(self.manifest()["request"])

    def plans(self) -> list[PlanFile]:
        """Return the plans in the order in which they were added."""
        if not self.exists:
            return []
        return list(_plans(self._manifest, self._manifest.stat().st_mtime_ns))

    def partitions(self) -> range:
        """Return the numbers of all partitions."""
        plans = self.plans()
        return range(plans[-1].first + plans[-1].partitions if plans else 0)

    def check_request(self, request: ExportRequest) -> None:
        """Check that a request is that of the folder."""
        if not self.exists:
            return
        differing = list(differences(self.manifest()["request"], request.to_dict()))
        if differing:
            raise RSEmbedError(
                f"{self.path} holds a dataset of another request ({'; '.join(differing)}): only places and time ranges "
                "can be added; take another --out"
            )

    def add_plan(self, request: ExportRequest, rows: pa.Table, size: int, versions: Mapping[str, str]) -> None:
        """Append rows as new partitions of `size` rows; the manifest, written last, makes them count."""
        plans = self.plans()
        name, first = f"plan-{len(plans):03d}.parquet", len(self.partitions())
        with self.writing(self._state / name) as part:
            pq.write_table(rows, part, row_group_size=size, compression="zstd")
        added = PlanFile(name=name, first=first, partitions=-(-rows.num_rows // size), places=rows.num_rows)
        manifest = {
            "format": FORMAT,
            "request": request.to_dict(),
            "request_sha256": request.sha256(),
            "versions": dict(versions),
            "plans": [asdict(plan) for plan in (*plans, added)],
        }
        self.write_text(self._manifest, json.dumps(manifest, indent=1))

    def rows(self, number: int) -> pa.Table:
        """Read the planned rows of one partition."""
        path, group = self._group(number)
        return pq.ParquetFile(path, metadata=_metadata(path)).read_row_group(group)

    def rows_in(self, number: int) -> int:
        """Return the number of rows of a partition."""
        path, group = self._group(number)
        return int(_metadata(path).row_group(group).num_rows)

    def _group(self, number: int) -> tuple[Path, int]:
        plan = next(p for p in self.plans() if p.first <= number < p.first + p.partitions)
        return self._state / plan.name, number - plan.first

    def time_range(self) -> tuple[str, str]:
        """Return the first day of all planned rows, and the day after the last."""
        starts, ends = (filter(None, self._planned(column)) for column in ("start", "end"))
        return min(starts, default="1970-01-01"), max(ends, default="1970-01-02")

    def planned_ids(self) -> set[str]:
        """Return the `unique_id` of every planned row."""
        return set(self._planned("unique_id"))

    def _planned(self, column: str) -> Iterator[Any]:
        for plan in self.plans():
            yield from pq.read_table(self._state / plan.name, columns=[column])[column].to_pylist()

    def part(self, kind: str, number: int) -> Path:
        """Return the path of a partition's file: its "embeddings", "failures" or "thumbnails"."""
        return self.path / kind / f"part-{number:06d}.parquet"

    def grids(self, number: int | None = None) -> Path:
        """Return the path of the Zarr group of all token grids, or of one partition."""
        root = self.path / "grids.zarr"
        return root if number is None else root / f"part-{number:06d}"

    @property
    def scratch(self) -> Path:
        """Folder for files that are not complete yet."""
        return self._state / "parts"

    def done(self) -> dict[int, PartitionCounts]:
        """Return the finished partitions with their counts."""
        marks = sorted((self._state / "done").glob("*.json"))
        return {int(mark.stem): PartitionCounts(**json.loads(mark.read_text())) for mark in marks}

    def is_done(self, number: int) -> bool:
        """Return True if a partition is finished."""
        return self._mark(number).is_file()

    def _mark(self, number: int) -> Path:
        return self._state / "done" / f"{number:06d}.json"

    def finish(self, number: int, tables: Mapping[str, pa.Table], counts: PartitionCounts) -> None:
        """Write a partition's tables by kind, then its mark. An empty table leaves no file."""
        for kind in ("thumbnails", "failures", "embeddings"):
            table = tables.get(kind)
            if table is not None and table.num_rows:
                with self.writing(self.part(kind, number)) as part:
                    pq.write_table(table, part, compression="zstd", use_dictionary=_dictionary_columns(table.schema))
            else:
                self.part(kind, number).unlink(missing_ok=True)
        self.write_text(self._mark(number), json.dumps(asdict(counts)))

    def lock(self, name: str) -> FileLock:
        """Return a lock of the folder, not acquired yet. The system releases it on a crash."""
        folder = self._state / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock", thread_local=False)

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file atomically."""
        with self.writing(path) as part:
            part.write_text(text, encoding="utf-8")

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path for `atomic_write`; the file survives a power cut once the block has ended."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, scratch=self.scratch, durable=True) as part:
            yield part


@lru_cache(maxsize=8)
def _plans(manifest: Path, changed_ns: int) -> tuple[PlanFile, ...]:
    """Parse the plans of a manifest, once for each change, because a run asks for every partition."""
    return tuple(PlanFile(**plan) for plan in json.loads(manifest.read_text())["plans"])


@lru_cache(maxsize=64)
def _metadata(path: Path) -> pq.FileMetaData:
    """Read the footer of a plan, which never changes, once: its size grows with the number of partitions."""
    return pq.read_metadata(path)


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Return the columns whose texts repeat; vectors, pictures and ids do not."""
    return [field.name for field in schema if pa.types.is_string(field.type) and not field.name.endswith("_id")]
