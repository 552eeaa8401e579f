"""Captions as token ids, and the tokenizer built from their words."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from evaluation.eurosat import CLASSES, Wordings


def build_tokenizer(wordings: Wordings) -> Tokenizer:
    """Return a word-level tokenizer of the captions' words. Its highest id is end-of-text, where CLIP pools."""
    split = pre_tokenizers.Whitespace()
    texts = [text for c in range(len(CLASSES)) for text in wordings.captions(c)]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    ends = [(word, vocabulary[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "<start>", "<end>"])
    return tokenizer


@dataclass(slots=True)
class Captions:
    """Captions as token ids, for sampling."""

    wordings: Wordings
    tokenizer: Tokenizer
    context: int
    ids: list[Tensor] = field(init=False)
    """Token ids of the captions of each class, (captions, context)."""

    def __post_init__(self) -> None:
        self.ids = [self.encode(self.wordings.captions(c)) for c in range(len(CLASSES))]

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def class_names(self) -> Tensor:
        """Token ids of the class names, (10, context)."""
        return self.encode([f"a satellite photo of {name}" for name in self.wordings.names])

    def encode(self, texts: list[str]) -> Tensor:
        """Return the token ids of texts, (n, context), padded with 0."""
        rows = torch.zeros(len(texts), self.context, dtype=torch.int64)
        for row, encoding in zip(rows, self.tokenizer.encode_batch(texts), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return rows

    def sample(self, labels: Tensor, unknown_frac: float, rng: torch.Generator) -> Tensor:
        """Draw a caption for each label and replace some of its words by the unknown word, (n, context)."""
        rows = [self.ids[c][int(torch.randint(len(self.ids[c]), (1,), generator=rng))] for c in labels.tolist()]
        ids = torch.stack(rows)
        words = (ids > 1) & (ids < self.vocabulary - 2)
        hidden = words & (torch.rand(ids.shape, generator=rng) < unknown_frac)
        return torch.where(hidden, torch.ones_like(ids), ids)
