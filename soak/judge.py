"""Comparison of what is on the disk with what was asked for, and with a calm run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rs_embed.embedders.text import unit
from rs_embed.embedding import has_fault
from rs_embed.export.folder import DatasetFolder
from rs_embed.search.rows import Rows

Vectors = dict[str, np.ndarray]


def read_vectors(folder: Path) -> tuple[Vectors, list[str]]:
    """Return the vectors of a dataset by `unique_id`, and the ids that it has twice."""
    found: Vectors = {}
    seen: Counter[str] = Counter()
    for file in sorted((folder / "embeddings").glob("*.parquet")):
        for row in pq.read_table(file, columns=["unique_id", "embedding"]).to_pylist():
            seen[row["unique_id"]] += 1
            found[row["unique_id"]] = np.array(row["embedding"], np.float32)
    return found, [name for name, count in seen.items() if count > 1]


def faults_of_dataset(folder: Path, places: int) -> Iterator[str]:
    """Yield what is lost, doubled or failed in a dataset that should hold this many places."""
    planned = DatasetFolder(folder).planned_ids()
    vectors, doubled = read_vectors(folder)
    if len(planned) != places:
        yield f"{len(planned)} places are planned, {places} were given"
    if lost := planned - vectors.keys():
        yield f"{len(lost)} of {places} places have no vector"
    if more := vectors.keys() - planned:
        yield f"{len(more)} rows were never asked for"
    if doubled:
        yield f"{len(doubled)} rows are there twice"
    if failures := [f for f in (folder / "failures").glob("*.parquet") if pq.read_metadata(f).num_rows]:
        yield f"failures are left in {[f.name for f in failures]}"
    for file in (folder / "embeddings").glob("*.parquet"):
        if any(map(has_fault, pq.read_table(file)["dropped_scenes"].to_pylist())):
            yield f"{file.name} still lacks scenes"


def faults_of_index(folder: Path) -> Iterator[str]:
    """Yield what an index lacks, doubles or changes of its dataset."""
    vectors, _ = read_vectors(folder)
    rows = Rows.open(folder / ".rs-embed" / "index")
    names = rows.table["unique_id"].to_pylist()
    if Counter(names) != Counter(vectors.keys()):
        yield f"the index holds {len(names)} rows ({len(set(names))} different), the dataset {len(vectors)}"
        return
    projected = {}
    for file in (folder / "embeddings").glob("*.parquet"):
        for row in pq.read_table(file, columns=["unique_id", "embedding_projected"]).to_pylist():
            projected[row["unique_id"]] = row["embedding_projected"]
    expected = unit(np.array([projected[name] for name in names], np.float32))
    worst = float(np.abs(np.asarray(rows.file.vectors, np.float32) - expected).max(initial=0.0))
    if worst > 1e-3:
        yield f"vectors of the index differ from the dataset's by {worst:.2g}"


def compare(folder: Path, calm: Path) -> tuple[float, list[str]]:
    """Return the largest difference of a number from the calm run's, relative to its vector, and what else differs."""
    vectors, expected = read_vectors(folder)[0], read_vectors(calm)[0]
    faults = [] if vectors.keys() == expected.keys() else ["the rows are not those of the calm run"]
    worst = max(np.abs(vectors[k] - v).max() / np.abs(v).max() for k, v in expected.items() if k in vectors)
    if worst > 1e-5:
        faults.append(f"vectors differ from the calm run's by {worst:.2g}")
    return float(worst), faults
