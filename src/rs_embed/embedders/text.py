"""Texts to vectors of the CLIP projection, alone or in a template's frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rs_embed.clip.model import TextTower
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.errors import ModelError, SpecError

FloatArray = npt.NDArray[np.float32]

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
"""Eight do as well as a hundred; see `benchmarks/bench_whurs19.py`."""

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
        """What the model multiplies a cosine by before a softmax."""
        return float(self.tower.logit_scale.exp())

    def embed(self, texts: Sequence[str], frames: Sequence[str] | None) -> FloatArray:
        """(n, d): the text itself where `frames` is None, else the unit mean over its frames."""
        if frames is None:
            return self._encode(texts)
        framed = self._encode([frame.replace("{}", text) for text in texts for frame in frames])
        return unit(unit(framed).reshape(len(texts), len(frames), -1).mean(axis=1))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of a text that the vocabulary does not have, and that say something of what a place looks like."""
        unknown = self.tokenizer.unknown_words(text)
        return tuple(word for word in unknown if word not in _SMALL_WORDS and any(map(str.isalnum, word)))

    def reads(self, text: str) -> bool:
        """Whether the vocabulary has a word of it."""
        return len(self.unknown_words(text)) < len(text.split())

    def remarks(self, text: str) -> list[str]:
        """What is lost of a text, one sentence each."""
        unknown = self.unknown_words(text)
        found = []
        if unknown:
            words = ", ".join(map(repr, unknown))
            found.append(
                f"{self.model} does not know the word(s) {words} of {text!r}: what they mean is not in the vector"
            )
        tokens, room = self.tokenizer.count(text), self.tower.config.context
        if tokens > room:
            found.append(f"{self.model} reads {room} tokens, and {text[:40]!r}… has {tokens}: its end is cut off")
        return found

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        ids = self.tokenizer.encode(texts, self.tower.config.context).to(self.device)
        with torch.inference_mode():
            parts = [self.tower.encode_text(part).cpu() for part in torch.split(ids, _BATCH)]
        return torch.cat(parts).numpy()


def frames_of(template: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The sentences of a template: `"rs"` are eight of remote sensing, None is the text as it is.

    Raises:
        SpecError: for a sentence without `{}`.
    """
    if template is None:
        return None
    if template == "rs":
        return RS_TEMPLATES
    frames = (template,) if isinstance(template, str) else tuple(template)
    if not frames or not all(isinstance(f, str) and "{}" in f for f in frames):
        raise SpecError(f"template must be 'rs', None, or sentences with {{}} in them, got {template!r}")
    return frames


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list.

    Raises:
        ModelError: for an empty text, or something that is no text.
    """
    found = [texts] if isinstance(texts, str) else list(texts)
    for position, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise ModelError(f"texts[{position}] must be a text that is not empty, got {text!r}")
    if not found:
        raise ModelError("texts is empty: give at least one")
    return found


def unit(vectors: FloatArray) -> FloatArray:
    """Each row to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: FloatArray = (vectors / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled
