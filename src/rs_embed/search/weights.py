"""The weights that a dataset's rows were made with: fetched only if that was allowed, and compared before a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.formats import TOKENIZER_FILE
from rs_embed.clip.weights import find_cached
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import CARDS, PACKAGE, find_card
from rs_embed.embedders.loading import find_weights, tokenizer_sha256
from rs_embed.embedders.text import TextEmbedder, load_text_embedder
from rs_embed.errors import CheckpointError
from rs_embed.export.request import ExportRequest

_OURS = frozenset(card.checkpoint for card in CARDS)


@dataclass(frozen=True, slots=True)
class DatasetWeights:
    """Weights of one dataset.

    A dataset may come from anyone: a checkpoint that its manifest names is used if it is on this machine, and fetched
    only if `download` allows it. The checkpoints of our own table of models need no permission.
    """

    request: ExportRequest
    download: bool = False

    @property
    def missing(self) -> str | None:
        """Name of a checkpoint that would have to be fetched and needs permission; None where nothing is missing."""
        named = self._named
        if named in _OURS or (not named.startswith(PACKAGE) and find_cached(named) is not None):
            return None
        return named

    @property
    def _named(self) -> str:
        return self.request.checkpoint or find_card(self.request.model).checkpoint

    def checkpoint(self) -> str:
        """Return the checkpoint to load, whose weights are known to be those of the rows.

        Raises:
            CheckpointError: for weights that are not here, or others than the rows were made with.
        """
        if not self.download and (named := self.missing) is not None:
            raise CheckpointError(
                f"the dataset was made with the weights {named!r}, which are not on this machine: if you trust it, let "
                "them be fetched with --yes or EmbeddingIndex(folder, download=True)"
            )
        file = find_weights(self._named)
        self._compare(file)
        return self._named

    def texts(self) -> TextEmbedder:
        """Return the model's text side, which stays loaded."""
        return load_text_embedder(find_card(self.request.model), checkpoint=self.checkpoint(), device="auto")

    def _compare(self, file: Path) -> None:
        expected, found = self.request.weights_sha256, digest_of(file).result()
        if expected is not None and found != expected:
            raise CheckpointError(
                f"{file} has the sha256 {found[:12]}…, but the rows were made with {expected[:12]}…: put those weights "
                "there, or export again"
            )
        known = self.request.network
        if known is not None and known != (present := open_checkpoint(file).config.settings):
            raise _other_file(file, "config.json", present, known)
        known = self.request.tokenizer_sha256
        if known is not None and known != (present := tokenizer_sha256(file) or "none"):
            raise _other_file(file, TOKENIZER_FILE, present, known)


def _other_file(weights: Path, name: str, present: str, known: str) -> CheckpointError:
    return CheckpointError(
        f"{name} beside {weights} is not that of the rows ({present:.60}; they were made with {known:.60}): put it "
        "back, or export again"
    )
