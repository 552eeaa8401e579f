"""CLIP's tokenizer: open_clip's cleaning of a text, then a `tokenizer.json` of the `tokenizers` library.

Source: https://github.com/openai/CLIP (`simple_tokenizer.py`).
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from rs_embed.errors import CheckpointError

_FILE_BYTES = 64 << 20
_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49_152 - 256 - 2
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary with its rules."""

    rules: tokenizers.Tokenizer

    def __post_init__(self) -> None:
        self.rules.encode_special_tokens = True  # a text that spells out <|endoftext|> does not end there
        self.rules.no_padding()  # `encode` cuts and fills itself; a file may ask for any length
        self.rules.no_truncation()

    @classmethod
    def from_file(cls, file: Path) -> Tokenizer:
        """Read a `tokenizer.json`."""
        try:
            if (size := file.stat().st_size) > _FILE_BYTES:
                raise ValueError(f"it has {size:,} bytes")
            with _without_panics():
                return cls(tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8")))
        except Exception as error:
            raise CheckpointError(f"{file} is not a readable tokenizer.json: {error}") from error

    @classmethod
    def from_open_clip_merges(cls) -> Tokenizer | None:
        """Load CLIP's vocabulary from an installed open_clip, which is not imported; None if it is not installed."""
        spec = find_spec("open_clip")
        file = Path(spec.origin).parent / _MERGES_FILE if spec and spec.origin else None
        return cls(clip_rules(file)) if file is not None and file.exists() else None

    def encode(self, texts: Sequence[str], context: int) -> Tensor:
        """Encode texts as ids (n, context) int64: start, text, end, zeros; a long text is cut before its end token."""
        ids = torch.zeros(len(texts), context, dtype=torch.int64)
        with _without_panics():
            encodings = self.rules.encode_batch([clean(t) for t in texts])
        for row, encoding in zip(ids, encodings, strict=True):
            tokens = encoding.ids if len(encoding.ids) <= context else [*encoding.ids[: context - 1], encoding.ids[-1]]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def count(self, text: str) -> int:
        """Count the tokens of a text, start and end included, before it is cut."""
        with _without_panics():
            return len(self.rules.encode(clean(text)).ids)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Return the words that the vocabulary lacks; a byte-pair vocabulary lacks none."""
        cleaned, unknown = clean(text), self.rules.token_to_id("[UNK]")
        if unknown is None:
            return ()
        with _without_panics():
            encoding = self.rules.encode(cleaned)
        spans = [span for i, span in zip(encoding.ids, encoding.offsets, strict=True) if i == unknown]
        return tuple(cleaned[a:b] for a, b in spans)


@contextmanager
def _without_panics() -> Iterator[None]:
    """Turn what the library raises for odd rules into a CheckpointError.

    It is written in Rust, whose panics are no Exception: a pattern that takes too long for a text ends in one.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"tokenizer.json cannot be used ({reason}): take the one that belongs to it") from error


def clean(text: str) -> str:
    """Repair Unicode, resolve HTML entities (twice), and normalise spaces and case."""
    import ftfy  # takes a tenth of a second, and only texts need it

    unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", unescaped).strip().lower()


def clip_rules(merges_file: Path) -> tokenizers.Tokenizer:
    """Build CLIP's byte-pair rules from its published merges, as in the hub's `tokenizer.json`."""
    lines = gzip.decompress(merges_file.read_bytes()).decode("utf-8").split("\n")
    merges = [(a, b) for a, b in (line.split() for line in lines[1 : _MERGES + 1])]
    letters = _byte_letters()
    words = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges), _START, _END]
    vocabulary = {word: i for i, word in enumerate(words)}
    rules = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token=_END, end_of_word_suffix="</w>", fuse_unk=False)
    )
    rules.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ends = [(word, vocabulary[word]) for word in (_START, _END)]
    rules.post_processor = tokenizers.processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ends)
    rules.add_special_tokens([_START, _END])
    return rules


def _byte_letters() -> list[str]:
    """Return a printable letter for each byte, in CLIP's order: printable bytes, then the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
