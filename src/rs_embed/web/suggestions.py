"""Words for a first query: some that occur in the dataset, each with the place that shows it best."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from rs_embed.errors import RSEmbedError
from rs_embed.search.index import EmbeddingIndex
from rs_embed.search.query import known_words

SUGGESTED = 8


class Suggestions:
    """Words that occur in a dataset, found once for the rows that it has."""

    def __init__(self, index: EmbeddingIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._found: tuple[int, list[dict[str, str]]] | None = None

    def get(self) -> list[dict[str, str]]:
        """Return words and the `unique_id` of their best places; none without words that the model knows."""
        with self._lock:
            if self._found is None or self._found[0] != len(self._index):
                self._found = len(self._index), _different(sorted(_present(self._index), reverse=True))
            return self._found[1]


def readable_words(index: EmbeddingIndex) -> list[str]:
    """Return words that the model can read; none if its text side cannot be loaded (a search will say why)."""
    try:
        return known_words(index.weights.texts())
    except RSEmbedError:
        return []


def _present(index: EmbeddingIndex) -> Iterator[tuple[float, str, str]]:
    """Yield likelihood, word and best place for each word that the dataset shows."""
    for word in readable_words(index):
        found = index.search(word)
        if found.presence == "present":
            yield found.hits[0].probability or 0.0, word, found.hits[0].unique_id


def _different(present: list[tuple[float, str, str]]) -> list[dict[str, str]]:
    """Choose words whose best places differ: others are mostly words for the same thing."""
    first: dict[str, str] = {}
    for _, word, id in present:
        first.setdefault(id, word)
    return [{"text": word, "id": id} for id, word in first.items()][:SUGGESTED]
