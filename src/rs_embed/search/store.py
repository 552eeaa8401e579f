"""The index's files beside a dataset: made of it, and made again when they are damaged or of an earlier version."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rs_embed.embedders.text import unit
from rs_embed.errors import RSEmbedError
from rs_embed.export.dataset import vectors_of
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.search.rows import COLUMNS, STORED, Rows
from rs_embed.search.vectors import EXACT_UP_TO

Report = Callable[[int, int], None]
Signature = tuple[object, ...]

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True)
class Store:
    """Reads and writes the index of one dataset."""

    dataset: DatasetFolder
    request: ExportRequest

    @property
    def folder(self) -> Path:
        """Where the index's own files are."""
        return self.dataset.path / ".rs-embed" / "index"

    def open(self, report: Report | None) -> Rows:
        """What is there, with what the dataset has since.

        Raises:
            RSEmbedError: when the index is of other weights, or must be built in a folder that cannot be written to.
        """
        rows = self.read()
        return self.build(report) if rows is None else self.add(rows, report)

    def read(self) -> Rows | None:
        """What is there; None when it must be made anew.

        Raises:
            RSEmbedError: when the index is of other weights.
        """
        try:
            rows = Rows.open(self.folder)
        except (ValueError, OSError) as error:  # ValueError: also of JSON and Arrow
            _log.warning("the index of %s is damaged (%s): it is built again", self.dataset.path, error)
            return None
        known = rows.file.facts.get("weights_sha256", self.request.weights_sha256)
        if known != self.request.weights_sha256:
            raise RSEmbedError(
                f"the index of {self.dataset.path} is of other weights: rs-embed index {self.dataset.path} --rebuild"
            )
        return None if len(rows) and rows.file.facts.get("columns") != STORED else rows

    def build(self, report: Report | None) -> Rows:
        """Make it anew."""
        with self._locked():
            shutil.rmtree(self.folder, ignore_errors=True)
            return self._take_in(Rows.open(self.folder), report)

    def add(self, rows: Rows, report: Report | None) -> Rows:
        """The rows with what the dataset has and they have not."""
        if not self._new_files(rows):
            return rows
        with self._locked():
            now = self.read()  # another process may have added them meanwhile
            return self._take_in(rows if now is None else now, report)

    def signature(self) -> Signature:
        """Differs once the index or the dataset changed on disk."""
        files = [self.folder / "index.json", *(self.dataset.path / "embeddings").glob("*.parquet")]
        return tuple(sorted((f.name, f.stat().st_mtime_ns) for f in files if f.exists()))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = self.dataset.claim("index", wait_s=-1)
        except OSError as error:
            raise RSEmbedError(
                f"the index of {self.dataset.path} must be built, and the folder cannot be written to "
                f"({error.strerror}): run `rs-embed index` where it can, or copy the dataset"
            ) from None
        assert lock is not None  # it waits for as long as it takes
        try:
            yield
        finally:
            lock.release()

    def _new_files(self, rows: Rows) -> list[Path]:
        """Parts of the dataset that the index does not hold, or not as they are now."""
        known, parts = rows.file.facts.get("parts", {}), (self.dataset.path / "embeddings").glob("*.parquet")
        return [f for f in sorted(parts) if _row_count(f) != known.get(f.name)]

    def _take_in(self, rows: Rows, report: Report | None) -> Rows:
        before, files = len(rows), self._new_files(rows)
        for number, file in enumerate(files):
            rows = self._with_file(rows, file)
            if report is not None:
                report(number + 1, len(files))
        if len(rows) > max(before, EXACT_UP_TO):
            rows = Rows(rows.file.note({"recall": round(rows.file.recall(), 4)}).load(), rows.table)
        return rows

    def _with_file(self, rows: Rows, file: Path) -> Rows:
        parts = rows.file.facts.get("parts", {})
        column = "embedding" if self.request.output.pooling == "projected" else "embedding_projected"
        table = pq.read_table(file, columns=[*COLUMNS, column])
        if file.name in parts:  # written again since: only what is new in it
            known = set(rows.table["unique_id"].to_pylist())
            table = table.filter(pa.array([u not in known for u in table["unique_id"].to_pylist()]))
        note = {
            "parts": parts | {file.name: _row_count(file)},
            "columns": STORED,
            "model": self.request.model,
            "weights_sha256": self.request.weights_sha256,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = table.drop_columns([column]).append_column("part", pa.array([file.name] * len(table), pa.string()))
        pq.write_table(facts, self.folder / f"rows-{len(rows):09d}.parquet", compression="zstd")
        vectors = unit(vectors_of(table, column))
        added = rows.file.append(vectors, note) if len(vectors) else rows.file.note(note)
        return Rows(added.load(), pa.concat_tables([rows.table, facts]) if len(rows) else facts)


def _row_count(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)
