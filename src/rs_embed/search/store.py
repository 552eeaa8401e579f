"""Index files beside a dataset: built from it, and rebuilt when they are damaged or of an earlier version.

A row or a file of the dataset that cannot be used costs itself: it is left out, and the index says so.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import Timeout

from rs_embed.arrays import FloatArray
from rs_embed.embedders.familiarity import TrainingStatistics, find_statistics
from rs_embed.embedders.text import unit
from rs_embed.errors import RSEmbedError
from rs_embed.export.checks import reading, regular_file
from rs_embed.export.dataset import vectors_of
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.files import cannot_write, make_folder
from rs_embed.search.columns import DATASET_COLUMNS, STORED_COLUMNS, check_table, usable_rows, warning_kinds
from rs_embed.search.rows import Rows
from rs_embed.search.vectors import EXACT_UP_TO

IndexProgress = Callable[[int, int], None]
"""Callback for the number of files read and of all files to read."""

_log = logging.getLogger("rs_embed")


class IndexBusyError(RSEmbedError):
    """Index that another process is writing to."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Rows that can be searched, and a sentence for each part of the dataset that is not among them."""

    rows: Rows
    problems: tuple[str, ...] = ()
    complete: bool = True
    """False if rows wait for another process that writes to the index."""


class _Part(NamedTuple):
    """Rows of one file that can be searched."""

    table: pa.Table
    vectors: FloatArray
    left_out: int


@dataclass(frozen=True, slots=True)
class IndexStore:
    """Reader and writer of one dataset's index."""

    dataset: DatasetFolder
    request: ExportRequest

    @property
    def folder(self) -> Path:
        """Folder of the index's files."""
        return self.dataset.path / ".rs-embed" / "index"

    def open(self, report: IndexProgress | None, *, wait: bool = True) -> Opened:
        """Return the rows of the dataset, building the index or adding to it as needed.

        While another process writes to the index, the rows that are there are returned, if there are any; without
        `wait` an IndexBusyError says so.
        """
        rows = self.read()
        if rows is None:
            return self.build(report, wait=wait)
        try:
            return self.add(rows, report, wait=wait and not len(rows))
        except IndexBusyError as error:
            if not wait:
                raise
            return Opened(rows, (str(error),), complete=False)

    def read(self) -> Rows | None:
        """Return the rows that the index holds now; None when it must be rebuilt."""
        try:
            for file in self.folder.glob("*"):
                regular_file(self.folder, file)
            rows = Rows.open(self.folder)
        except (ValueError, TypeError, OSError, pa.ArrowException, RSEmbedError) as error:  # ValueError: also of JSON
            reason = str(error).partition("\n")[0]
            _log.warning("the index of %s is damaged (%s): it is built again", self.dataset.path, reason)
            return None
        known = rows.file.header.get("weights_sha256", self.request.weights_sha256)
        if known != self.request.weights_sha256:
            raise RSEmbedError(
                f"the index of {self.dataset.path} is of other weights: rs-embed index {self.dataset.path} --rebuild"
            )
        return None if len(rows) and rows.file.header.get("columns") != STORED_COLUMNS else rows

    def build(self, report: IndexProgress | None, *, wait: bool = True) -> Opened:
        """Build the index from scratch."""
        with self._locked(wait):
            return self._add_files(self._empty(), report)

    def add(self, rows: Rows, report: IndexProgress | None, *, wait: bool = True) -> Opened:
        """Add the rows that the dataset has and the index lacks; an IndexBusyError tells that they wait for a lock."""
        new, problems = self._new_files(rows)
        if not new:
            return Opened(rows, (*problems, *_left_out(rows)))
        with self._locked(wait):
            latest = self.read()  # another process may have added them meanwhile
            return self._add_files(self._empty() if latest is None else latest, report)

    def fingerprint(self) -> tuple[tuple[str, int, int], ...]:
        """Return names, times and sizes of the files, which differ once index or dataset changed on disk.

        Raises:
            RSEmbedError: for a dataset that is gone, or was replaced by another one.
        """
        if not self.dataset.path.exists():
            raise RSEmbedError(f"{self.dataset.path} is gone: put it back, the rows read before are still searched")
        if ExportRequest.from_dict(self.dataset.manifest()["request"]) != self.request:
            raise RSEmbedError(f"{self.dataset.path} holds another dataset now: open it again")
        with reading(self.dataset.path):
            files = [self.folder / "index.json", *(self.dataset.path / "embeddings").glob("*.parquet")]
            states = [(f.name, f.lstat()) for f in files if f.exists()]
        return tuple(sorted((name, state.st_mtime_ns, state.st_size) for name, state in states))

    def _locked(self, wait: bool) -> AbstractContextManager[object]:
        try:
            return self.dataset.lock("index").acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise IndexBusyError(
                f"another process writes to the index of {self.dataset.path}: rows that were added are found later"
            ) from None
        except (OSError, RSEmbedError) as error:
            raise RSEmbedError(
                f"the index of {self.dataset.path} must be built, and the folder cannot be written to ({error}): run "
                "`rs-embed index` where it can, or copy the dataset"
            ) from None

    def _empty(self) -> Rows:
        """Remove the index's files and return no rows."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise RSEmbedError(f"{self.folder} cannot be removed, and must be built again: check its permissions")
        return Rows.open(self.folder)

    def _new_files(self, rows: Rows) -> tuple[list[Path], list[str]]:
        """Return the files that the index lacks or that have another number of rows now, and errors of the others."""
        known, new, problems = rows.file.header.get("parts", {}), [], []
        for file in sorted((self.dataset.path / "embeddings").glob("*.parquet")):
            try:
                with reading(regular_file(self.dataset.path, file)):
                    if pq.read_metadata(file).num_rows != known.get(file.name):
                        new.append(file)
            except RSEmbedError as error:
                problems.append(str(error))
        return new, problems

    def _add_files(self, rows: Rows, report: IndexProgress | None) -> Opened:
        before, (files, problems) = len(rows), self._new_files(rows)
        for number, file in enumerate(files):
            try:
                part = self._read_part(file, rows)
            except RSEmbedError as error:
                problems.append(str(error))
            else:
                rows = self._append(rows, file, part)
            if report is not None:
                report(number + 1, len(files))
        if len(rows) > max(before, EXACT_UP_TO):
            rows = Rows(rows.file.annotate({"recall": round(rows.file.recall(), 4)}).load(), rows.table)
        problems += _left_out(rows)
        if problems and not len(rows):
            raise RSEmbedError(f"no row of {self.dataset.path} can be searched: {problems[0]}")
        return Opened(rows, tuple(problems))

    def _read_part(self, file: Path, rows: Rows) -> _Part:
        """Read the rows of a file that the index lacks and that can be shown; an RSEmbedError refuses the file."""
        column = "embedding" if self.request.output.pooling == "projected" else "embedding_projected"
        statistics = find_statistics(self.request.weights_sha256)
        with reading(file):
            stored = pq.ParquetFile(file)
            others = ("embedding", "norm") if statistics is not None else ()
            wanted = {*DATASET_COLUMNS, "warnings", column, *others}.intersection(stored.schema_arrow.names)
            table = stored.read(sorted(wanted))
            check_table(table, DATASET_COLUMNS)
            shown = table.select(DATASET_COLUMNS).append_column("warnings", warning_kinds(table))
            if not len(table):
                empty = shown.append_column("unlike_training", pa.nulls(0, pa.bool_()))
                return _Part(empty, np.empty((0, 0), np.float32), 0)
            vectors, good = vectors_of(table, column)
            dim = rows.file.header["dim"]
            if len(rows) and good.any() and vectors.shape[1] != dim:
                raise ValueError(f"its vectors have {vectors.shape[1]} numbers, those of the others {dim}")
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = unit(vectors)
        good &= usable_rows(table) & np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        keep = good.copy()
        if file.name in rows.file.header.get("parts", {}):  # a file that was written again: add only its new rows
            known = set(rows.table["unique_id"].to_pylist())
            keep &= np.array([unique_id not in known for unique_id in table["unique_id"].to_pylist()], bool)
        unlike = self._unlike_training(table, statistics)
        shown = shown.append_column("unlike_training", unlike)
        return _Part(shown.filter(pa.array(keep)), vectors[keep], int((~good).sum()))

    def _unlike_training(self, table: pa.Table, statistics: TrainingStatistics | None) -> pa.Array:
        """Return which rows' imagery is unlike what the model was trained on; null where that is not known."""
        if statistics is None or self.request.output.pooling != "mean":
            return pa.nulls(len(table), pa.bool_())
        with reading(self.folder), np.errstate(over="ignore", invalid="ignore"):
            vectors, known = vectors_of(table, "embedding")
            if vectors.shape[1] != len(statistics.mean):
                return pa.nulls(len(table), pa.bool_())
            if self.request.normalise:
                vectors = vectors * table["norm"].to_numpy()[:, None]
            return pa.array(statistics.unlike(vectors), mask=~(known & np.isfinite(vectors).all(axis=1)))

    def _append(self, rows: Rows, file: Path, part: _Part) -> Rows:
        header = rows.file.header
        notes = {
            "parts": header.get("parts", {}) | {file.name: pq.read_metadata(file).num_rows},
            "left_out": header.get("left_out", {}) | {file.name: part.left_out},
            "columns": STORED_COLUMNS,
            "model": self.request.model,
            "weights_sha256": self.request.weights_sha256,
        }
        metadata = part.table.append_column("part", pa.array([file.name] * len(part.table), pa.string()))
        try:
            pq.write_table(metadata, make_folder(self.folder) / f"rows-{len(rows):09d}.parquet", compression="zstd")
            added = rows.file.append(part.vectors, notes) if len(part.vectors) else rows.file.annotate(notes)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return Rows(added.load(), pa.concat_tables([rows.table, metadata]) if len(rows) else metadata)


def _left_out(rows: Rows) -> Iterator[str]:
    """Yield a sentence for each file of which rows were left out when it was read."""
    for name, count in rows.file.header.get("left_out", {}).items():
        if count:
            yield f"{count:,} row(s) of {name} are left out: their vector, outline or time range cannot be used"
