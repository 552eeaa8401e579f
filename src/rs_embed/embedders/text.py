"""The text side of a model: its tower with its tokenizer, templates, and their loading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rs_embed.arrays import FloatArray
from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.formats import CONFIG_FILES, TOKENIZER_FILE
from rs_embed.clip.model import TextTower
from rs_embed.clip.tokenizer import Tokenizer, clean
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import ModelCard
from rs_embed.embedders.loading import find_device, find_weights
from rs_embed.errors import CheckpointError, ModelError, SpecError
from rs_embed.files import FileMemo

RS_TEMPLATES = (
    "a satellite image of a {}",
    "a satellite image of the {}",
    "a satellite image of a large {}",
    "a satellite photo of a {}",
    "an aerial image of a {}",
    "an aerial image of the {}",
    "a remote sensing image of a {}",
    "a remote sensing image of the {}",
)
"""Eight sentences, which are as good as a hundred: see `benchmarks/bench_whurs19.py`."""

_BATCH = 256
_SMALL_WORDS = frozenset({"a", "an", "the", "of", "in", "on", "at", "by", "with", "and", "or", "to", "from", "its"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEmbedder:
    """A text tower with its tokenizer."""

    model: str
    tower: TextTower
    tokenizer: Tokenizer
    device: torch.device
    weights_sha256: str

    @property
    def logit_scale(self) -> float:
        """Factor that the model multiplies a cosine by before a softmax."""
        return float(self.tower.logit_scale.exp())

    def embed(self, texts: Sequence[str], frames: Sequence[str] | None) -> FloatArray:
        """Embed texts as they are if `frames` is None, else as the unit mean over the frames: (n, d)."""
        if frames is None:
            return self._encode(texts)
        framed = self._encode([frame.replace("{}", text) for text in texts for frame in frames])
        return unit(unit(framed).reshape(len(texts), len(frames), -1).mean(axis=1))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Return the words of a text that the vocabulary lacks, without articles and prepositions."""
        unknown = self.tokenizer.unknown_words(text)
        return tuple(word for word in unknown if word not in _SMALL_WORDS and any(map(str.isalnum, word)))

    def known_words(self, text: str) -> list[str]:
        """Return the words of a text that the model reads, without articles and prepositions."""
        unknown = set(self.unknown_words(text))
        return [word for word in re.findall(r"\w+", clean(text)) if word not in unknown | _SMALL_WORDS]

    def reads(self, text: str) -> bool:
        """Return whether the vocabulary has at least one word of a text."""
        return len(self.unknown_words(text)) < len(text.split())

    def remarks(self, text: str) -> list[str]:
        """Return one sentence for each part of a text that the model cannot read."""
        unknown = self.unknown_words(text)
        found = []
        if unknown:
            words = ", ".join(map(repr, unknown))
            found.append(f"{self.model} does not know the word(s) {words} of {text!r}: the vector ignores them")
        tokens, room = self.tokenizer.count(text), self.tower.config.context
        if tokens > room:
            found.append(f"{self.model} reads {room} tokens, and {text[:40]!r}… has {tokens}: its end is cut off")
        return found

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        ids = self.tokenizer.encode(texts, self.tower.config.context)
        if (largest := int(ids.max())) >= self.tower.config.vocabulary:
            raise CheckpointError(
                f"the tokenizer of {self.model} gives the token {largest:,}, and its vocabulary has "
                f"{self.tower.config.vocabulary:,}: put the tokenizer.json that belongs to the weights beside them"
            )
        ids = ids.to(self.device)
        with torch.inference_mode():
            parts = [self.tower.encode_text(part).cpu() for part in torch.split(ids, _BATCH)]
        return torch.cat(parts).numpy()


def frames_of(template: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the sentences of a template: eight of remote sensing for `"rs"`, None for the text as it is."""
    if template is None:
        return None
    if template == "rs":
        return RS_TEMPLATES
    frames = (template,) if isinstance(template, str) else tuple(template)
    if not frames or not all(isinstance(f, str) and "{}" in f for f in frames):
        raise SpecError(f"template must be 'rs', None, or sentences with {{}} in them, got {template!r}")
    return frames


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """Return one text or several as a list."""
    if not isinstance(texts, Sequence):
        raise ModelError(f"texts must be a text or a list of texts, got {texts!r:.80}")
    found = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise ModelError(f"texts[{position}] must be a non-empty text, got {text!r}")
    if not found:
        raise ModelError("texts is empty: give at least one")
    return found


def unit(vectors: FloatArray) -> FloatArray:
    """Scale each row to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: FloatArray = (vectors / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled


@dataclass(frozen=True, slots=True)
class _LoadedTexts:
    """A text tower in memory, with its tokenizer."""

    tower: TextTower
    sha256: str
    tokenizer: Tokenizer


_loaded: FileMemo[_LoadedTexts] = FileMemo()


def load_text_embedder(card: ModelCard, *, checkpoint: str | Path | None, device: str) -> TextEmbedder:
    """Load the text side of a model, from its default checkpoint or another; the image tower is not read."""
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise ModelError(
            f"texts need a checkpoint that is a path or hub repo, got a {type(checkpoint).__qualname__}: its tokenizer "
            "is unknown"
        )
    reference = card.checkpoint if checkpoint is None else str(checkpoint)
    where = find_device(device)
    weights = find_weights(reference)
    loaded = _loaded.get(weights, lambda: _load_texts(weights, where), str(where), (*CONFIG_FILES, TOKENIZER_FILE))
    return TextEmbedder(
        model=card.name, tower=loaded.tower, tokenizer=loaded.tokenizer, device=where, weights_sha256=loaded.sha256
    )


def _load_texts(file: Path, device: torch.device) -> _LoadedTexts:
    from rs_embed.clip.hub import resolve_tokenizer  # its client takes a tenth of a second to import

    digest = digest_of(file)  # beside the reading
    checkpoint = open_checkpoint(file)
    tokenizer, vocabulary = resolve_tokenizer(file), checkpoint.config.text.vocabulary
    if tokenizer.rules.get_vocab_size() != vocabulary:
        raise CheckpointError(
            f"{file} has a vocabulary of {vocabulary}, and its tokenizer one of {tokenizer.rules.get_vocab_size()}: "
            "put the tokenizer.json that belongs to it beside it"
        )
    return _LoadedTexts(checkpoint.load_text().to(device), digest.result(), tokenizer)


def likelihoods(images: FloatArray, texts: FloatArray, scale: float) -> FloatArray:
    """Return the softmax over unit texts (t, d) for each unit image (n, d): (n, t), rows sum to 1."""
    logits = scale * images @ texts.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: FloatArray = odds / odds.sum(axis=1, keepdims=True)
    return shares
