"""EuroSAT's chips and captions: read, split by seed, and shown to a network as the library would show them.

Source: Helber et al., EuroSAT (MIT); 64 x 64 px, 10 m, DN 0…2750 as grey levels 1…255, L1C (haze in).
"""

from __future__ import annotations

import io
import itertools
import tarfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from rs_embed.clip.preprocess import normalise, resize_and_crop, to_uint8

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
DN_RANGE = (0.0, 2750.0)
HAZE_OUT = (140.0, 250.0, 590.0)
"""DN of haze, red green blue, that brings L1C near L2A."""


@dataclass(frozen=True, slots=True)
class Chips:
    """All chips, and which of them are held out."""

    images: npt.NDArray[np.uint8]
    """(n, 64, 64, 3) grey levels as stored."""
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]

    def dn(self, index: int, haze: tuple[float, float, float]) -> npt.NDArray[np.float32]:
        """One chip as DN, (3, 64, 64), with that much haze taken out of red, green and blue."""
        dn = (self.images[index].astype(np.float32).transpose(2, 0, 1) - 1) * (DN_RANGE[1] / 254)
        return np.maximum(dn - np.array(haze, np.float32)[:, None, None], 0)

    def pixels(
        self,
        indexes: npt.NDArray[np.int64],
        haze: tuple[float, float, float],
        dn_range: tuple[float, float] = DN_RANGE,
        image_px: int = 224,
    ) -> Tensor:
        """Chips as the library's own pixel path gives them to a network, (n, 3, 224, 224)."""
        return normalise([resize_and_crop(to_uint8(self.dn(i, haze), dn_range), image_px) for i in indexes])


def load_chips(tar: Path, cache: Path | None, held_out_frac: float, seed: int) -> Chips:
    """Decode the archive (kept in `cache` for the next time) and hold out a share of each class."""
    if cache is not None and cache.exists():
        stored = np.load(cache)
        images, labels = stored["images"], stored["labels"]
    else:
        images, labels = _decode(tar)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, images=images, labels=labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = np.concatenate(
        [(of := order[labels[order] == c])[: round(len(of) * held_out_frac)] for c in range(len(CLASSES))]
    )
    train = np.setdiff1d(order, held_out)
    return Chips(images, labels, train, np.sort(held_out))


def _decode(tar: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    found: list[tuple[str, npt.NDArray[np.uint8]]] = []
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                file = archive.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                found.append((Path(member.name).stem, np.asarray(image)))
    found.sort(key=lambda pair: pair[0])
    labels = np.array([CLASSES.index(name.split("_")[0]) for name, _ in found])
    return np.stack([image for _, image in found]), labels


@dataclass(frozen=True, slots=True)
class Wordings:
    """What the classes are called."""

    templates: tuple[str, ...]
    names: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    """One tuple a class."""
    held_out: tuple[tuple[str, ...], ...]

    def captions(self, class_index: int) -> list[str]:
        """All captions of a class that are trained on."""
        return [t.format(w) for t, w in itertools.product(self.templates, self.train[class_index])]


def load_captions(file: Path) -> Wordings:
    """Read `captions.toml`."""
    data: dict[str, Any] = tomllib.loads(file.read_text())
    rows = [data["classes"][name] for name in CLASSES]
    return Wordings(
        tuple(data["templates"]),
        tuple(row["name"] for row in rows),
        tuple(tuple(row["train"]) for row in rows),
        tuple(tuple(row["held_out"]) for row in rows),
    )


def build_tokenizer(wordings: Wordings) -> Tokenizer:
    """A word-level tokenizer over the words of the captions; the end-of-text id is the highest, as CLIP pools there."""
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
    """Captions as token ids, ready to be drawn from."""

    wordings: Wordings
    tokenizer: Tokenizer
    context: int
    ids: list[Tensor] = field(init=False)
    """Captions of each class, (captions, context)."""

    def __post_init__(self) -> None:
        self.ids = [self.encode(self.wordings.captions(c)) for c in range(len(CLASSES))]

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def class_names(self) -> Tensor:
        """Token ids of the classes' names, (10, context)."""
        return self.encode([f"a satellite photo of {name}" for name in self.wordings.names])

    def encode(self, texts: list[str]) -> Tensor:
        """Texts to ids, (n, context), padded with 0."""
        rows = torch.zeros(len(texts), self.context, dtype=torch.int64)
        for row, encoding in zip(rows, self.tokenizer.encode_batch(texts), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return rows

    def sample(self, labels: Tensor, unknown_frac: float, rng: torch.Generator) -> Tensor:
        """One caption for each label, some of its words unknown, (n, context)."""
        rows = [self.ids[c][int(torch.randint(len(self.ids[c]), (1,), generator=rng))] for c in labels.tolist()]
        ids = torch.stack(rows)
        words = (ids > 1) & (ids < self.vocabulary - 2)
        hidden = words & (torch.rand(ids.shape, generator=rng) < unknown_frac)
        return torch.where(hidden, torch.ones_like(ids), ids)
