"""Search over a dataset by words, by example, or both, among the rows that filters on place and time leave."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rs_embed.embedding import Embedding
from rs_embed.errors import RSEmbedError, SpecError
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.export.thumbnails import read_thumbnails
from rs_embed.search.concepts import Concept, Concepts
from rs_embed.search.presence import judge
from rs_embed.search.query import Query, QueryEncoder, as_list
from rs_embed.search.results import SearchResults, notice_text
from rs_embed.search.rows import Rows
from rs_embed.search.store import IndexProgress, IndexStore, Opened
from rs_embed.search.vectors import Neighbours
from rs_embed.search.weights import DatasetWeights
from rs_embed.specs import BBoxLike, TemporalSpec

MAX_HITS = 1000
_log = logging.getLogger("rs_embed")


class EmbeddingIndex:
    """Search index of one exported dataset; it is built if it is missing, and extended by rows that were added since.

    Args:
        folder: folder that `rs-embed export` wrote.
        report: callback for the number of files read and of all files to read, while the index is built.
        rebuild: build the index from scratch even if there is one.
        download: fetch the weights that the dataset names from the hub if they are not on this machine; only for a
            dataset that you trust.

    Raises:
        RSEmbedError: for a folder without a dataset, or with an index of other weights.

    Examples:
        >>> from rs_embed import EmbeddingIndex
        >>> index = EmbeddingIndex("dataset")  # that of the example of `export_embeddings`
        >>> found = index.search("forest", k=2)
        >>> [hit.rank for hit in found.hits], found.searched
        ([1, 2], 3)
    """

    def __init__(
        self,
        folder: str | Path,
        report: IndexProgress | None = None,
        *,
        rebuild: bool = False,
        download: bool = False,
    ) -> None:
        self.folder = DatasetFolder(Path(folder))
        self.request: ExportRequest = self.folder.request
        self.concepts = Concepts(self.folder)
        self.weights = DatasetWeights(self.request, download)
        self._store = IndexStore(self.folder, self.request)
        self._opened = self._store.build(report) if rebuild else self._store.open(report)
        self._fingerprint = self._store.fingerprint() if self._opened.complete else None
        self._fault = ""
        _warn_of(self._opened.problems)

    @property
    def _rows(self) -> Rows:
        return self._opened.rows

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each file or row of the dataset that is left out, and for a folder that is gone."""
        return (*self._opened.problems, self._fault) if self._fault else self._opened.problems

    def _take(self, opened: Opened) -> None:
        """Search these rows from now on; problems that are new are logged."""
        _warn_of(problem for problem in opened.problems if problem not in self._opened.problems)
        self._opened = opened

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.folder.path)!r}, {len(self):,} rows, {self.request.model})"

    def build(self, report: IndexProgress | None = None) -> int:
        """Rebuild the index, as after rows were changed by hand, and return its size.

        Args:
            report: callback, as for `EmbeddingIndex`.
        """
        self._take(self._store.build(report))
        return len(self)

    def add(self, report: IndexProgress | None = None) -> int:
        """Add the dataset's new rows to the index, and return their number.

        Args:
            report: callback, as for `EmbeddingIndex`.
        """
        before = len(self)
        self._take(self._store.add(self._rows, report))
        return len(self) - before

    def refresh(self) -> None:
        """Load what other processes added to the dataset or its index; without changes it only lists the folder.

        Where that fails, because the folder is gone or another process holds the index, `problems` says so, and the
        rows that were loaded before are searched.
        """
        try:
            if self._store.fingerprint() != self._fingerprint:
                self._take(self._store.open(None, wait=False))
                self._fingerprint = self._store.fingerprint()
            fault = ""
        except RSEmbedError as error:
            fault = str(error)
        if fault and fault != self._fault:
            _warn_of([fault])
        self._fault = fault

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north of all rows; None without rows."""
        return self._rows.extent

    @property
    def dense_extent(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north of the part where most rows lie together; None without rows."""
        return self._rows.dense_extent

    @property
    def time_range(self) -> tuple[str, str] | None:
        """First day of all rows and the day after the last; None without rows."""
        return self._rows.time_range

    def position_of(self, id: str) -> int:
        """Return the position of a row in the index.

        Args:
            id: its `unique_id` or `id`.

        Raises:
            SpecError: for an unknown id.
        """
        return self._rows.position_of(id)

    def unique_id(self, id: str) -> str:
        """Return the `unique_id` of a row.

        Args:
            id: its `unique_id` or `id`.

        Raises:
            SpecError: for an unknown id.
        """
        return self._rows.unique_id(id)

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
        bbox: BBoxLike | None = None,
        time: TemporalSpec | None = None,
        k: int = 20,
        every_window: bool = False,
        exact: bool | None = None,
    ) -> SearchResults:
        """Find the rows that resemble a query most; words and an example count half each.

        Args:
            text: words; several are meant together.
            image: pixels of an example, raw DN (3, y, x).
            vector: embedding of an example, `pooled("projected")` by the same model, or its numbers (d,).
            id: `unique_id` or `id` of one or several example rows, which the results leave out.
            unlike: ids of negative example rows; with words or an example, rows are ranked by what separates the two.
            concept: name of a concept that `train` saved, instead of words and examples.
            negative: words for what is not wanted.
            background: (b, d) vectors of other texts that replace the background vocabulary, if `vector` is a text's.
            logit_scale: scale of the model that made them, which gives hits of `vector` and `background` probabilities.
            bbox: only rows whose footprint meets this box; west > east where it crosses 180°.
            time: only rows whose time range lies inside this one.
            k: number of hits, at most 1,000.
            every_window: return each time range of a place; otherwise a place is there once, with its best.
            exact: compare every row; None decides by their number.

        Raises:
            SpecError: for an invalid `k`, an unknown id or concept, or criteria that exclude each other.
            ModelError: for an empty query, or a vector of another model or weights.
        """
        if not isinstance(k, int) or not 1 <= k <= MAX_HITS:
            raise SpecError(f"k must be a whole number from 1 to {MAX_HITS}, got {k!r}")
        query = Query(
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
        rows = self._rows
        if not len(rows):
            return SearchResults(notice=self.folder.why_empty)
        encoder = QueryEncoder(self.request, self.concepts, rows, self.weights)
        encoded = encoder.encode(query)
        candidates = rows.select(bbox, time, encoded.example_ids, every_window)
        if candidates is not None and not len(candidates):
            return SearchResults(notice=rows.no_match_notice)
        found = rows.nearest(
            encoded.vector, k, candidates, centred=encoded.centred, exact=exact, every_window=every_window
        )
        searched = len(rows) if candidates is None else len(candidates)
        strange, log_ratios = rows.unlike_training(found.positions), encoder.log_ratios(encoded, query, found.positions)
        presence = None
        if log_ratios is not None:
            total = rows.count_unlike_training(candidates)
            presence = judge(log_ratios, strange, searched=searched, unlike=total)
        asked = strange if encoded.words else strange[:0]
        return SearchResults(
            hits=rows.hits(found, presence.probabilities if presence else None, k, every_window=every_window),
            presence=presence.verdict if presence else None,
            notice=notice_text(presence, encoder.remarks(query), self.request.model, asked),
            searched=searched,
            exact=found.exact,
            recall=None if found.exact else rows.file.header.get("recall"),
            quicklooks=self.thumbnails,
        )

    def train(
        self,
        positives: str | Sequence[str],
        negatives: str | Sequence[str],
        *,
        name: str,
        text: str | None = None,
        save: bool = True,
    ) -> Concept:
        """Learn a concept from example rows and save it beside the dataset.

        Args:
            positives: `unique_id` or `id` of rows that show it; five are enough.
            negatives: ids of rows that do not, best those that a search mistook for it.
            name: name for `search(concept=…)`; a concept of the same name is replaced.
            text: words to start from, such as those that were searched for; the mean of the positives when None.
            save: write it; otherwise it is only returned.

        Raises:
            SpecError: for an invalid name, an unknown row, a row on both sides, or a side without rows.
        """
        self.concepts.check(name)
        rows = self._rows
        encoder = QueryEncoder(self.request, self.concepts, rows, self.weights)
        likes, unlikes = ([rows.unique_id(id) for id in as_list(ids)] for ids in (positives, negatives))
        if not likes or not unlikes:
            raise SpecError(f"a concept needs rows on both sides, got {len(likes)} positive, {len(unlikes)} negative")
        if both := sorted(set(likes) & set(unlikes)):
            raise SpecError(f"a row cannot be positive and negative: {', '.join(both)}")
        start = encoder.encode(Query(text=text) if text is not None else Query(id=likes))
        concept = Concept(
            name=name,
            model=self.request.model,
            weights_sha256=self.request.weights_sha256,
            direction=tuple(encoder.fit(start.vector, start.words, rows.vectors_of(likes), unlikes).tolist()),
            positives=tuple(likes),
            negatives=tuple(unlikes),
            text=start.words,
        )
        if save:
            self.concepts.save(concept)
        return concept

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """Return the PNG thumbnails of rows by `unique_id`; rows without a thumbnail are left out.

        Args:
            ids: `unique_id` or `id` of each row.

        Raises:
            SpecError: for an unknown row.
        """
        rows = self._rows
        positions = pa.array([rows.position_of(id) for id in ids], pa.int64())
        chosen = rows.table.select(["unique_id", "part"]).take(positions).to_pylist()
        parts = {part: read_thumbnails(self.folder.path, part) for part in {r["part"] for r in chosen}}
        found = {row["unique_id"]: parts[row["part"]].get(row["unique_id"]) for row in chosen}
        return {unique_id: png for unique_id, png in found.items() if png is not None}

    def places(
        self,
        bbox: BBoxLike | None = None,
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
    ) -> SearchResults:
        """List rows in the order of the dataset; with a query, each has its percentile among all rows.

        Args:
            bbox: as for `search`.
            time: as for `search`.
            limit: number of rows, at most.
            offset: number of rows to skip.
            spread: take every n-th row instead of the first ones, if there are more than `limit`.
            text: words to give percentiles by.
            id: as for `search`.
            unlike: as for `search`.
            concept: as for `search`.
            negative: as for `search`.
        """
        rows = self._rows
        selected = rows.select(bbox, time)
        positions = np.arange(len(rows)) if selected is None else selected
        page = positions[offset:]
        page = page[:: -(-len(page) // limit) or 1][:limit] if spread else page[:limit]
        query = Query(text=text, id=id, unlike=unlike, concept=concept, negative=negative)
        if query.is_empty or not len(rows):
            zeros = np.zeros(len(page), np.float32)
            scored = Neighbours(page, zeros, zeros, exact=True)
        else:
            encoded = QueryEncoder(self.request, self.concepts, rows, self.weights).encode(query)
            scored = rows.file.compare(encoded.vector, page)
        hits = rows.hits(scored, None, limit, every_window=True)
        return SearchResults(hits=hits, searched=len(positions), quicklooks=self.thumbnails)


def _warn_of(problems: Iterable[str]) -> None:
    for problem in problems:
        _log.warning("%s", problem)
