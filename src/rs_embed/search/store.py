"""Index files beside a dataset: built from it, and rebuilt when they are damaged or of an earlier version."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rs_embed.embedders.text import unit
from rs_embed.errors import RSEmbedError
from rs_embed.export.dataset import vectors_of
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.search.rows import DATASET_COLUMNS, STORED_COLUMNS, Rows
from rs_embed.search.vectors import EXACT_UP_TO

IndexProgress = Callable[[int, int], None]
"""Callback for the number of files read and of all files to read."""

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True)
class IndexStore:
    """Reader and writer of one dataset's index."""

    dataset: DatasetFolder
    request: ExportRequest

    @property
    def folder(self) -> Path:
        """Folder of the index's files."""
        return self.dataset.path / ".rs-embed" / "index"

    def open(self, report: IndexProgress | None) -> Rows:
        """Return the rows of the dataset, building the index or adding to it as needed."""
        rows = self.read()
        return self.build(report) if rows is None else self.add(rows, report)

    def read(self) -> Rows | None:
        """Return the rows that the index holds now; None when it must be rebuilt."""
        try:
            rows = Rows.open(self.folder)
        except (ValueError, OSError) as error:  # ValueError: also of JSON and Arrow
            _log.warning("the index of %s is damaged (%s): it is built again", self.dataset.path, error)
            return None
        known = rows.file.header.get("weights_sha256", self.request.weights_sha256)
        if known != self.request.weights_sha256:
            raise RSEmbedError(
                f"the index of {self.dataset.path} is of other weights: rs-embed index {self.dataset.path} --rebuild"
            )
        return None if len(rows) and rows.file.header.get("columns") != STORED_COLUMNS else rows

    def build(self, report: IndexProgress | None) -> Rows:
        """Build the index from scratch."""
        with self._locked():
            shutil.rmtree(self.folder, ignore_errors=True)
            return self._add_files(Rows.open(self.folder), report)

    def add(self, rows: Rows, report: IndexProgress | None) -> Rows:
        """Add the rows that the dataset has and the index lacks."""
        if not self._new_files(rows):
            return rows
        with self._locked():
            latest = self.read()  # another process may have added them meanwhile
            return self._add_files(rows if latest is None else latest, report)

    def fingerprint(self) -> tuple[tuple[str, int], ...]:
        """Return names and modification times of the files, which differ once index or dataset changed on disk."""
        files = [self.folder / "index.json", *(self.dataset.path / "embeddings").glob("*.parquet")]
        return tuple(sorted((f.name, f.stat().st_mtime_ns) for f in files if f.exists()))

    def _locked(self) -> AbstractContextManager[object]:
        try:
            return self.dataset.lock("index").acquire()
        except OSError as error:
            raise RSEmbedError(
                f"the index of {self.dataset.path} must be built, and the folder cannot be written to "
                f"({error.strerror}): run `rs-embed index` where it can, or copy the dataset"
            ) from None

    def _new_files(self, rows: Rows) -> list[Path]:
        """Return the dataset's files that the index lacks, or that have another number of rows now."""
        known, files = rows.file.header.get("parts", {}), (self.dataset.path / "embeddings").glob("*.parquet")
        return [f for f in sorted(files) if _row_count(f) != known.get(f.name)]

    def _add_files(self, rows: Rows, report: IndexProgress | None) -> Rows:
        before, files = len(rows), self._new_files(rows)
        for number, file in enumerate(files):
            rows = self._append_file(rows, file)
            if report is not None:
                report(number + 1, len(files))
        if len(rows) > max(before, EXACT_UP_TO):
            rows = Rows(rows.file.annotate({"recall": round(rows.file.recall(), 4)}).load(), rows.table)
        return rows

    def _append_file(self, rows: Rows, file: Path) -> Rows:
        parts = rows.file.header.get("parts", {})
        column = "embedding" if self.request.output.pooling == "projected" else "embedding_projected"
        table = pq.read_table(file, columns=[*DATASET_COLUMNS, column])
        if file.name in parts:  # a file that was written again: add only its new rows
            known = set(rows.table["unique_id"].to_pylist())
            table = table.filter(pa.array([u not in known for u in table["unique_id"].to_pylist()]))
        notes = {
            "parts": parts | {file.name: _row_count(file)},
            "columns": STORED_COLUMNS,
            "model": self.request.model,
            "weights_sha256": self.request.weights_sha256,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = table.drop_columns([column]).append_column("part", pa.array([file.name] * len(table), pa.string()))
        pq.write_table(metadata, self.folder / f"rows-{len(rows):09d}.parquet", compression="zstd")
        vectors = unit(vectors_of(table, column))
        added = rows.file.append(vectors, notes) if len(vectors) else rows.file.annotate(notes)
        return Rows(added.load(), pa.concat_tables([rows.table, metadata]) if len(rows) else metadata)


def _row_count(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)
