"""Search a dataset: by words, by example, or both; filtered by place and time before it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rs_embed.embedding import Embedding
from rs_embed.errors import SpecError
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.search.asked import Asker, Terms, names
from rs_embed.search.concepts import Concept, Concepts
from rs_embed.search.results import Found, notice_of
from rs_embed.search.store import Report, Store
from rs_embed.search.vectors import Nearest
from rs_embed.specs import BBox, TemporalSpec

MAX_HITS = 1000


class EmbeddingIndex:
    """Search over one exported dataset; it is built when it is missing, and takes in what was added since.

    Args:
        folder: what `rs-embed export` wrote.
        report: is called with files read and files to read, while the index is built.
        rebuild: make the index anew, whatever is there.

    Raises:
        RSEmbedError: when the folder holds no dataset, or an index of other weights.
    """

    def __init__(self, folder: str | Path, report: Report | None = None, *, rebuild: bool = False) -> None:
        self.folder = DatasetFolder(Path(folder))
        self.request: ExportRequest = self.folder.request
        self.concepts = Concepts(self.folder)
        self._store = Store(self.folder, self.request)
        self._rows = self._store.build(report) if rebuild else self._store.open(report)
        self._seen = self._store.signature()

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.folder.path)!r}, {len(self):,} rows, {self.request.model})"

    def build(self, report: Report | None = None) -> int:
        """Make the index anew from the dataset, as after rows were changed by hand; returns how many rows it has.

        Args:
            report: is called with files read and files to read.
        """
        self._rows = self._store.build(report)
        return len(self)

    def add(self, report: Report | None = None) -> int:
        """Take in rows that the dataset has and the index does not; returns how many. Does nothing the second time.

        Args:
            report: is called with files read and files to read.
        """
        before = len(self)
        self._rows = self._store.add(self._rows, report)
        return len(self) - before

    def refresh(self) -> None:
        """See what other processes added to the dataset or its index; costs a look at the folder when they did not."""
        signature = self._store.signature()
        if signature != self._seen:
            self._rows = self._store.open(None)
            self._seen = self._store.signature()

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north of all rows; None without any."""
        return self._rows.extent

    @property
    def time_range(self) -> tuple[str, str] | None:
        """The first and the last day of all rows, the last not included."""
        return self._rows.time_range

    def position_of(self, id: str) -> int:
        """Where a row is, by its `unique_id` or `id`.

        Raises:
            SpecError: when there is none.
        """
        return self._rows.position_of(id)

    def unique_id(self, id: str) -> str:
        """The `unique_id` of a row, by that or by its `id`.

        Raises:
            SpecError: when there is none.
        """
        return self._rows.unique_id(self._rows.position_of(id))

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: npt.ArrayLike | None = None,
        vector: Embedding | npt.ArrayLike | None = None,
        id: str | Sequence[str] | None = None,
        unlike: str | Sequence[str] = (),
        concept: str | None = None,
        negative: str | Sequence[str] = (),
        background: npt.ArrayLike | None = None,
        logit_scale: float | None = None,
        bbox: BBox | tuple[float, float, float, float] | None = None,
        time: TemporalSpec | None = None,
        k: int = 20,
        every_window: bool = False,
        exact: bool | None = None,
    ) -> Found:
        """The rows most like what is asked; words and an example together count half each.

        Args:
            text: words; several are meant together.
            image: pixels of an example, raw DN (3, y, x).
            vector: an embedding of an example, `pooled("projected")` by the same model, or its numbers (d,).
            id: `unique_id` or `id` of a row as the example, or of several; they are left out of the answer.
            unlike: the same of rows that are not meant; with an example or words, the answer is ranked by what tells
                the two apart.
            concept: the name of what `train` saved; instead of words and examples.
            negative: words for what is not wanted.
            background: (b, d) vectors of other texts, instead of the background vocabulary, where `vector` is a text's.
            logit_scale: of the model that made them: gives hits of `vector` and `background` their probabilities.
            bbox: only rows whose footprint meets this box.
            time: only rows whose time range lies inside of this one.
            k: how many, at most 1,000.
            every_window: give each time range of a place; else a place is there once, with its best.
            exact: compare every row; None decides by their number.

        Raises:
            SpecError: for a `k` that is none, or an id that the dataset does not have.
            ModelError: when nothing was asked, or with a vector of another model or weights.
        """
        if not isinstance(k, int) or not 1 <= k <= MAX_HITS:
            raise SpecError(f"k must be a whole number from 1 to {MAX_HITS}, got {k!r}")
        rows = self._rows
        terms = Terms(
            text=text,
            image=image,
            vector=vector,
            id=id,
            unlike=unlike,
            concept=concept,
            negative=negative,
            background=background,
            logit_scale=logit_scale,
        )
        asker = Asker(self.request, self.concepts, rows)
        if not len(rows):
            return Found(hits=(), notice="this dataset has no rows yet", searched=0, exact=True, recall=None)
        asked = asker.ask(terms)
        among = rows.among(bbox, time, asked.own, every_window)
        if among is not None and not len(among):
            return Found(hits=(), notice=rows.span, searched=0, exact=True, recall=None)
        found = rows.nearest(asked.query, k, among, centred=asked.centred, exact=exact, every_window=every_window)
        odds = asker.odds(asked, terms, found.positions)
        return Found(
            hits=rows.hits(found, odds, k, every_window),
            notice=notice_of(odds, asker.remarks(terms)),
            searched=len(rows) if among is None else len(among),
            exact=found.exact,
            recall=None if found.exact else rows.file.facts.get("recall"),
        )

    def train(
        self, positives: str | Sequence[str], negatives: str | Sequence[str], *, name: str, text: str | None = None
    ) -> Concept:
        """Learn a concept from rows that are it and rows that are not; it is saved beside the dataset.

        Args:
            positives: `unique_id` or `id` of rows that are it; five do.
            negatives: the same of rows that are not, best such as a search took for it.
            name: what `search(concept=…)` calls it; one of the same name is replaced.
            text: words to start from, such as those that were searched for; else the mean of the positives.

        Raises:
            SpecError: for a name that is no file's name, a row that the dataset does not have, one that is both, or
                none on a side.
        """
        rows = self._rows
        wanted, unwanted = (
            [rows.unique_id(rows.position_of(name)) for name in names(given)] for given in (positives, negatives)
        )
        if not wanted or not unwanted:
            raise SpecError(f"a concept needs rows on both sides, got {len(wanted)} positive, {len(unwanted)} negative")
        if both := sorted(set(wanted) & set(unwanted)):
            raise SpecError(f"a row cannot be positive and negative: {', '.join(both)}")
        asker = Asker(self.request, self.concepts, rows)
        asked = asker.ask(Terms(text=text) if text is not None else Terms(id=wanted))
        found = Concept(
            name=name,
            model=self.request.model,
            weights_sha256=self.request.weights_sha256,
            direction=tuple(asker.learn(asked.query, asked.words, rows.vectors(wanted), unwanted).tolist()),
            positives=tuple(wanted),
            negatives=tuple(unwanted),
            text=asked.words,
        )
        self.concepts.save(found)
        return found

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """PNGs of rows by `unique_id`, from the parts that hold them; a row without one is missing.

        Raises:
            SpecError: for a row that the dataset does not have.
        """
        now = self._rows
        positions = [now.position_of(id) for id in ids]
        rows = now.table.select(["unique_id", "part"]).take(pa.array(positions, pa.int64())).to_pylist()
        parts = {part: _thumbnails_in(self.folder.path / "thumbnails" / part) for part in {r["part"] for r in rows}}
        found = {row["unique_id"]: parts[row["part"]].get(row["unique_id"]) for row in rows}
        return {unique_id: png for unique_id, png in found.items() if png is not None}

    def places(
        self,
        bbox: BBox | tuple[float, float, float, float] | None = None,
        *,
        time: TemporalSpec | None = None,
        limit: int = 1000,
        offset: int = 0,
        spread: bool = False,
        text: str | Sequence[str] | None = None,
        id: str | Sequence[str] | None = None,
        unlike: str | Sequence[str] = (),
        concept: str | None = None,
        negative: str | Sequence[str] = (),
    ) -> Found:
        """Rows in the order of the dataset; with a question, each with its percentile: how well every place answers it.

        Args:
            bbox: only rows whose footprint meets this box.
            time: only rows whose time range lies inside of this one.
            limit: how many.
            offset: how many to pass over.
            spread: of more than `limit`, take some from everywhere instead of the first.
            text: as for `search`, like those that follow.
            id: rows as the example.
            unlike: rows that are not meant.
            concept: what `train` saved.
            negative: words for what is not wanted.
        """
        rows = self._rows
        among = rows.among(bbox, time, ())
        positions = np.arange(len(rows)) if among is None else among
        some = positions[offset:]
        some = some[:: -(-len(some) // limit) or 1][:limit] if spread else some[:limit]
        nothing = np.zeros(len(some), np.float32)
        scored = Nearest(some, nothing, nothing, exact=True)
        terms = Terms(text=text, id=id, unlike=unlike, concept=concept, negative=negative)
        if terms.says_something and len(rows):
            asked = Asker(self.request, self.concepts, rows).ask(terms)
            scored = rows.file.compare(asked.query, some)
        hits = rows.hits(scored, None, limit, every_window=True)
        return Found(hits=hits, notice=None, searched=len(positions), exact=True, recall=None)


def _thumbnails_in(file: Path) -> dict[str, bytes]:
    """All of one part, kept for a while: a map asks for neighbours, one by one."""
    return _read_thumbnails(file, file.stat().st_mtime_ns) if file.exists() else {}


@lru_cache(maxsize=16)
def _read_thumbnails(file: Path, changed_ns: int) -> dict[str, bytes]:
    table = pq.read_table(file, columns=["unique_id", "thumbnail"])
    return dict(zip(table["unique_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))
