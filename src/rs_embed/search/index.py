"""Search a dataset: by words, by example, or both; filtered by place and time before it is searched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rs_embed.api import get_embedding
from rs_embed.embedders.catalog import find_card
from rs_embed.embedders.loading import load_text_embedder
from rs_embed.embedders.text import TextEmbedder, check_texts, unit
from rs_embed.embedding import Embedding
from rs_embed.errors import ModelError, RSEmbedError, SpecError
from rs_embed.export.dataset import vectors_of
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest
from rs_embed.search.concepts import Concept, Concepts, learn
from rs_embed.search.found import JUDGED_BY, Found, Hit, corners_of, day_of, notice_of
from rs_embed.search.query import NEGATIVE_WEIGHT, odds_of, query_vector, word_odds, word_query
from rs_embed.search.vectors import EXACT_UP_TO, Nearest, VectorFile
from rs_embed.specs import BBox, OutputSpec, TemporalSpec

FloatArray = npt.NDArray[np.float32]
Report = Callable[[int, int], None]

MAX_HITS = 1000
_COLUMNS = (
    "unique_id",
    "id",
    "centre_lon",
    "centre_lat",
    "bbox",
    "geometry",
    "datetime_start",
    "datetime_end",
    "status",
    "scene_ids",
)
_STORED = [*_COLUMNS, "part"]
"""Of the rows' facts; `part` is the dataset's file that a row came from."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What rows are ranked by."""

    query: FloatArray
    centred: bool
    """Whether the direction is a difference already, as words minus their background are."""
    words: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    """Rows that were named as examples: they are no answer."""


class EmbeddingIndex:
    """Search over one exported dataset; it is built when it is missing, and takes in what was added since.

    Args:
        folder: what `rs-embed export` wrote.
        report: is called with files read and files to read, while the index is built.

    Raises:
        RSEmbedError: when the folder holds no dataset, or an index of other weights.
    """

    def __init__(self, folder: str | Path, report: Report | None = None) -> None:
        self.folder = DatasetFolder(Path(folder))
        self.request: ExportRequest = self.folder.request
        self.concepts = Concepts(self.folder)
        self._file = VectorFile(self.folder.path / ".rs-embed" / "index")
        known = self._file.facts.get("weights_sha256", self.request.weights_sha256)
        if known != self.request.weights_sha256:
            raise RSEmbedError(
                f"the index of {folder} is of other weights: delete {self._file.folder} and build it again"
            )
        self._drop_outdated()
        self.add(report)

    def _drop_outdated(self) -> None:
        """What an earlier version wrote is made again: it is made of the dataset."""

        def outdated() -> bool:
            return len(self._file) > 0 and self._file.facts.get("columns") != _STORED

        if not outdated():
            return
        with self.folder.lock("index"):
            self._forget()  # another process may have made it while this one waited
            if outdated():
                shutil.rmtree(self._file.folder, ignore_errors=True)
                self._forget()

    def __len__(self) -> int:
        return len(self._file)

    def __repr__(self) -> str:
        return f"EmbeddingIndex({str(self.folder.path)!r}, {len(self):,} rows, {self.request.model})"

    def build(self, report: Report | None = None) -> int:
        """Make the index anew from the dataset, as after rows were changed by hand; returns how many rows it has.

        Args:
            report: is called with files read and files to read.
        """
        with self.folder.lock("index"):
            shutil.rmtree(self._file.folder, ignore_errors=True)
            self._forget()
        return self.add(report)

    def add(self, report: Report | None = None) -> int:
        """Take in rows that the dataset has and the index does not; returns how many. Does nothing the second time.

        Args:
            report: is called with files read and files to read.
        """
        if not self._new_files():
            return 0
        added = 0
        with self.folder.lock("index"):
            self._forget()  # another process may have added them while this one waited
            files = self._new_files()
            for number, file in enumerate(files):
                added += self._add_file(file)
                if report is not None:
                    report(number + 1, len(files))
            if added and len(self) > EXACT_UP_TO:
                self._file.note({"recall": round(self._file.recall(), 4)})
        return added

    def _new_files(self) -> list[Path]:
        """Parts of the dataset that the index does not hold, or not as they are now."""
        known = self._file.facts.get("parts", {})
        return [f for f in sorted((self.folder.path / "embeddings").glob("*.parquet")) if _rows(f) != known.get(f.name)]

    def _forget(self) -> None:
        """Read again from disk what is asked for next."""
        self._file.forget()
        for name in ("_table", "_places"):
            self.__dict__.pop(name, None)

    def _add_file(self, file: Path) -> int:
        parts = self._file.facts.get("parts", {})
        column = "embedding" if self.request.output.pooling == "projected" else "embedding_projected"
        table = pq.read_table(file, columns=[*_COLUMNS, column])
        if file.name in parts:  # written again since: only what is new in it
            known = set(self._table["unique_id"].to_pylist())
            table = table.filter(pa.array([u not in known for u in table["unique_id"].to_pylist()]))
        note = {
            "parts": parts | {file.name: _rows(file)},
            "columns": _STORED,
            "model": self.request.model,
            "weights_sha256": self.request.weights_sha256,
        }
        rows = self._file.folder / f"rows-{len(self):09d}.parquet"
        rows.parent.mkdir(parents=True, exist_ok=True)
        table = table.append_column("part", pa.array([file.name] * len(table)).dictionary_encode())
        pq.write_table(table.drop_columns([column]), rows, compression="zstd")
        self._file.append(unit(vectors_of(table, column)), note)
        self._forget()
        return int(table.num_rows)

    @cached_property
    def _table(self) -> pa.Table:
        """The rows' facts, in the order of the vectors."""
        files = sorted(self._file.folder.glob("rows-*.parquet"))
        tables = [pq.read_table(f) for f in files if int(f.stem.removeprefix("rows-")) < len(self)]
        return pa.concat_tables(tables).combine_chunks() if tables else pa.table({name: [] for name in _COLUMNS})

    @cached_property
    def _places(self) -> dict[str, npt.NDArray[Any]]:
        """What filters look at, as arrays."""
        boxes = self._table["bbox"].combine_chunks()
        found = {n: boxes.field(n).to_numpy() for n in ("xmin", "ymin", "xmax", "ymax")} if len(self) else {}
        days = {n: self._table[n].to_numpy() for n in ("datetime_start", "datetime_end")}
        return found | days

    @property
    def extent(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north of all rows; None without any."""
        if not len(self):
            return None
        places = self._places
        west, south, east, north = (
            places["xmin"].min(),
            places["ymin"].min(),
            places["xmax"].max(),
            places["ymax"].max(),
        )
        return float(west), float(south), float(east), float(north)

    @property
    def time_range(self) -> tuple[str, str] | None:
        """The first and the last day of all rows, the last not included."""
        if not len(self):
            return None
        start, end = self._places["datetime_start"].min(), self._places["datetime_end"].max()
        return str(start.astype("M8[D]")), str(end.astype("M8[D]"))

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
        if not 1 <= k <= MAX_HITS:
            raise SpecError(f"k must be 1 to {MAX_HITS}, got {k}")
        asked = self._asked(text, image, vector, id, unlike, concept, negative, background)
        among = self._among(bbox, time, asked.own)
        found = self._nearest(asked, k, among, exact, every_window)
        odds = self._odds(asked, vector, background, logit_scale, found.positions)
        return Found(
            hits=self._hits(found, odds, k, every_window),
            notice=notice_of(odds, self._remarks([*asked.words, *_names(negative)])),
            searched=len(self) if among is None else len(among),
            exact=found.exact,
            recall=None if found.exact else self._file.facts.get("recall"),
        )

    def _asked(
        self,
        text: str | Sequence[str] | None,
        image: npt.ArrayLike | None,
        vector: Embedding | npt.ArrayLike | None,
        id: str | Sequence[str] | None,
        unlike: str | Sequence[str],
        concept: str | None,
        negative: str | Sequence[str],
        background: npt.ArrayLike | None,
    ) -> _Asked:
        """One direction out of all that was said."""
        words = [] if text is None else check_texts(text)
        likes, unlikes = _names(id), _names(unlike)
        if concept is not None:
            if words or likes or unlikes or image is not None or vector is not None:
                raise SpecError(f"concept {concept!r} stands for itself: leave out text, image, vector, id and unlike")
            return _Asked(self._direction(concept), centred=True)
        example = self._example(image, vector, likes)
        query = self._query(words, check_texts(negative) if negative else [], example, background)
        if unlikes:
            query = self._learn(query, words, example, unlikes)
        return _Asked(query, centred=bool(words or unlikes), words=tuple(words), own=(*likes, *unlikes))

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
        wanted, unwanted = ([self.unique_id(self.position_of(n)) for n in _names(g)] for g in (positives, negatives))
        if not wanted or not unwanted:
            raise SpecError(f"a concept needs rows on both sides, got {len(wanted)} positive, {len(unwanted)} negative")
        if both := sorted(set(wanted) & set(unwanted)):
            raise SpecError(f"a row cannot be positive and negative: {', '.join(both)}")
        words = [] if text is None else check_texts(text)
        examples = self._vectors(wanted)
        asked = self._query(words, [], None if words else examples, None)
        found = Concept(
            name=name,
            model=self.request.model,
            weights_sha256=self.request.weights_sha256,
            direction=tuple(self._learn(asked, words, examples, unwanted).tolist()),
            positives=tuple(wanted),
            negatives=tuple(unwanted),
            text=tuple(words),
        )
        self.concepts.save(found)
        return found

    def _direction(self, concept: str) -> FloatArray:
        found = self.concepts.read(concept)
        if found.weights_sha256 != self.request.weights_sha256:
            raise ModelError(f"the concept {concept!r} is of other weights ({found.model}): train it again")
        return np.asarray(found.direction, np.float32)

    def _learn(
        self, asked: FloatArray, words: list[str], example: FloatArray | None, unlikes: Sequence[str]
    ) -> FloatArray:
        """What tells the examples from rows that are not meant, starting from what was asked."""
        mean = self._file.mean
        start = asked if words else unit(asked - mean)  # words are a difference already
        nothing = np.empty((0, len(mean)), np.float32)
        return learn(start, nothing if example is None else unit(example), self._vectors(unlikes), mean)

    def _vectors(self, names: Sequence[str]) -> FloatArray:
        return np.asarray(self._file.vectors[[self.position_of(name) for name in names]], np.float32)

    def _example(
        self, image: npt.ArrayLike | None, vector: Embedding | npt.ArrayLike | None, likes: Sequence[str]
    ) -> FloatArray | None:
        """The examples as (n, d)."""
        if sum((image is not None, vector is not None, bool(likes))) > 1:
            raise SpecError("one kind of example is enough: image, vector or id")
        if likes:
            return self._vectors(likes)
        if image is not None:
            made = get_embedding(
                self.request.model,
                input_chw=np.asarray(image),
                output=OutputSpec.pooled("projected"),
                checkpoint=self.request.checkpoint,
            )
            return np.asarray(made.data, np.float32)[None]
        return None if vector is None else self._checked(vector)

    def _checked(self, vector: Embedding | npt.ArrayLike) -> FloatArray:
        if isinstance(vector, Embedding):
            sha256, pooling = vector.meta.get("weights_sha256"), vector.meta.get("pooling")
            if (sha256, pooling) != (self.request.weights_sha256, "clip_projection"):
                raise ModelError(
                    f"the vector is a {pooling} of {vector.meta.get('model')}, the index holds CLIP projections of "
                    f"{self.request.model}: embed with the same model and OutputSpec.pooled('projected')"
                )
            vector = np.asarray(vector.data)
        array = np.atleast_2d(np.asarray(vector, np.float32))
        if len(self) and array.shape[1:] != (self._file.facts["dim"],):
            raise ModelError(
                f"the vector has shape {array.shape[1:]}, the index holds {self._file.facts['dim']} numbers"
            )
        if not np.isfinite(array).all():
            raise ModelError("the vector holds NaN or infinity")
        return array

    def _query(
        self, words: list[str], negative: list[str], example: FloatArray | None, background: npt.ArrayLike | None
    ) -> FloatArray:
        if words:
            return word_query(self._texts, words, negative, images=example)
        if example is None:
            raise ModelError("nothing was asked: give a text, an image, a vector or an id")
        if background is not None:
            return query_vector(texts=example, background=np.asarray(background, np.float32))
        if negative:
            away = word_query(self._texts, negative)
            return unit(unit(example).mean(axis=0) - NEGATIVE_WEIGHT * away)
        return unit(unit(example).mean(axis=0))

    def position_of(self, id: str) -> int:
        """Where a row is, by its `unique_id` or `id`.

        Raises:
            SpecError: when there is none.
        """
        for column in ("unique_id", "id"):
            position = self._table[column].combine_chunks().index(id).as_py() if len(self) else -1
            if position >= 0:
                return int(position)
        raise SpecError(f"the dataset has no row {id!r}")

    def unique_id(self, position: int) -> str:
        """The `unique_id` of the row at a position."""
        return str(self._table["unique_id"][position].as_py())

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """PNGs of rows by `unique_id`, from the parts that hold them; a row without one is missing.

        Raises:
            SpecError: for a row that the dataset does not have.
        """
        positions = [self.position_of(id) for id in ids]
        rows = self._table.select(["unique_id", "part"]).take(pa.array(positions, pa.int64())).to_pylist()
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
        among = self._among(bbox, time, ())
        positions = np.arange(len(self)) if among is None else among
        some = positions[offset:]
        some = some[:: -(-len(some) // limit) or 1][:limit] if spread else some[:limit]
        nothing = np.zeros(len(some), np.float32)
        scored = Nearest(some, nothing, nothing, exact=True)
        if text is not None or id or concept is not None:
            asked = self._asked(text, None, None, id, unlike, concept, negative, None)
            scored = self._file.compare(asked.query, some)
        hits = self._hits(scored, None, limit, every_window=True)
        return Found(hits=hits, notice=None, searched=len(positions), exact=True, recall=None)

    def _among(
        self, bbox: BBox | tuple[float, float, float, float] | None, time: TemporalSpec | None, own: Sequence[str]
    ) -> npt.NDArray[np.int64] | None:
        """Positions that the filters leave; None for all."""
        if not len(self) or (bbox is None and time is None and not own):
            return None
        keep, places = np.ones(len(self), bool), self._places
        if bbox is not None:
            box = bbox if isinstance(bbox, BBox) else BBox(*bbox)
            keep &= (places["xmin"] < box.maxlon) & (places["xmax"] > box.minlon)
            keep &= (places["ymin"] < box.maxlat) & (places["ymax"] > box.minlat)
        if time is not None:
            keep &= places["datetime_start"] >= np.datetime64(time.start)
            keep &= places["datetime_end"] <= np.datetime64(time.end)
        keep[[self.position_of(name) for name in own]] = False
        return np.flatnonzero(keep)

    def _nearest(
        self,
        asked: _Asked,
        k: int,
        among: npt.NDArray[np.int64] | None,
        exact: bool | None,
        every_window: bool,
    ) -> Nearest:
        """As many as `k` places need: windows of one place are one answer, so more may have to be looked at."""
        n, wanted = len(self) if among is None else len(among), max(k, JUDGED_BY)
        while True:
            found = self._file.nearest(asked.query, wanted, among=among, centred=asked.centred, exact=exact)
            if every_window or wanted >= n or len(set(self._places_of(found.positions))) >= k:
                return found
            wanted = min(2 * wanted, n)

    def _places_of(self, positions: npt.NDArray[np.int64]) -> list[tuple[Any, ...]]:
        """What makes rows windows of one place: the same id on the same spot (ids are unique within one input)."""
        some = self._table.select(["id", "centre_lon", "centre_lat"]).take(pa.array(positions))
        return list(zip(*(column.to_pylist() for column in some.columns), strict=True))

    @property
    def _texts(self) -> TextEmbedder:
        """The model's text side; it stays loaded."""
        return load_text_embedder(find_card(self.request.model), checkpoint=self.request.checkpoint, device="auto")

    def _remarks(self, words: Sequence[str]) -> list[str]:
        """What the model cannot read of the words."""
        return [remark for word in words for remark in self._texts.remarks(word)]

    def _odds(
        self,
        asked: _Asked,
        vector: Embedding | npt.ArrayLike | None,
        background: npt.ArrayLike | None,
        logit_scale: float | None,
        positions: npt.NDArray[np.int64],
    ) -> FloatArray | None:
        """Probability of what was asked against the background, for rows in the order of their scores."""
        images = np.asarray(self._file.vectors[positions], np.float32)
        if asked.words:
            return word_odds(self._texts, asked.words, images)
        if vector is None or background is None or logit_scale is None:
            return None
        return odds_of(
            unit(self._checked(vector)).mean(axis=0), np.asarray(background, np.float32), images, logit_scale
        )

    def _hits(self, found: Nearest, odds: FloatArray | None, k: int, every_window: bool) -> tuple[Hit, ...]:
        hits: list[Hit] = []
        seen: set[tuple[Any, ...]] = set()
        rows = self._table.take(pa.array(found.positions)).to_pylist()
        for i, (facts, place) in enumerate(zip(rows, self._places_of(found.positions), strict=True)):
            if len(hits) == k:
                break
            if place in seen and not every_window:
                continue
            seen.add(place)
            box = facts["bbox"]
            hits.append(
                Hit(
                    rank=len(hits) + 1,
                    score=float(found.scores[i]),
                    percentile=float(found.percentiles[i]),
                    probability=None if odds is None else float(odds[i]),
                    unique_id=facts["unique_id"],
                    id=facts["id"],
                    lon=facts["centre_lon"],
                    lat=facts["centre_lat"],
                    bounds=(box["xmin"], box["ymin"], box["xmax"], box["ymax"]),
                    footprint=corners_of(facts["geometry"]),
                    start=day_of(facts["datetime_start"]),
                    end=day_of(facts["datetime_end"]),
                    status=facts["status"],
                    scene_ids=tuple(facts["scene_ids"]),
                )
            )
        return tuple(hits)


def _thumbnails_in(file: Path) -> dict[str, bytes]:
    """All of one part, kept for a while: a map asks for neighbours, one by one."""
    return _read_thumbnails(file, file.stat().st_mtime_ns) if file.exists() else {}


@lru_cache(maxsize=16)
def _read_thumbnails(file: Path, changed_ns: int) -> dict[str, bytes]:
    table = pq.read_table(file, columns=["unique_id", "thumbnail"])
    return dict(zip(table["unique_id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))


def _rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)


def _names(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
