"""From a model's name and a checkpoint to an embedder. The last two networks stay loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.hub import resolve, resolve_tokenizer
from rs_embed.clip.model import TextTower, VisionTower
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.embedders.card import ModelCard
from rs_embed.embedders.catalog import shipped_folder
from rs_embed.embedders.chips import ChipSize
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.text import TextEmbedder
from rs_embed.embedders.wrapper import wrap
from rs_embed.errors import CheckpointError, ModelError

_KEEP_LOADED = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Images:
    """An image tower in memory."""

    tower: VisionTower
    sha256: str
    activation: str


@dataclass(frozen=True, slots=True)
class _Texts:
    """A text tower in memory, with its tokenizer."""

    tower: TextTower
    sha256: str
    tokenizer: Tokenizer


class _Recent(Generic[T]):
    """What was made for the last two files; a file that changed is another file."""

    def __init__(self) -> None:
        self.made: OrderedDict[tuple[str, int, int, str], T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: Path, device: torch.device, make: Callable[[Path, torch.device], T]) -> T:
        status = file.stat()
        key = (str(file.resolve()), status.st_mtime_ns, status.st_size, str(device))
        with self._lock:
            if key not in self.made:
                self.made[key] = make(file, device)
            self.made.move_to_end(key)
            while len(self.made) > _KEEP_LOADED:
                self.made.popitem(last=False)
            return self.made[key]


_images: _Recent[_Images] = _Recent()
_texts: _Recent[_Texts] = _Recent()


def load_embedder(card: ModelCard, *, checkpoint: object | None, device: str, precision: str) -> RemoteClipEmbedder:
    """The embedder of a card, with its default checkpoint or another.

    Args:
        card: the model.
        checkpoint: hub repo, path, or a ready object that encodes images; None for the card's own.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32".

    Raises:
        CheckpointError: when the weights cannot be had or do not fit.
        ModelError: for a device or precision that is not there.
    """
    if precision != "fp32":
        raise ModelError(f"precision must be 'fp32' in this version, got {precision!r}")
    where = find_device(device)
    size = ChipSize(card.image_px, card.patch_px)
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        wrapper = wrap(checkpoint, default=size, device=where)
        return RemoteClipEmbedder(
            card=card,
            network=wrapper.network,
            size=wrapper.size,
            device=where,
            checkpoint=wrapper.label,
            weights_sha256=None,
            activation=None,
            transform=wrapper.transform,
        )
    reference = str(checkpoint) if checkpoint is not None else card.checkpoint
    loaded = _images.get(find_weights(reference), where, _load_images)
    config = loaded.tower.config
    return RemoteClipEmbedder(
        card=card,
        network=loaded.tower,
        size=ChipSize(config.image_px, config.patch_px),
        device=where,
        checkpoint=reference.removeprefix("hf:"),
        weights_sha256=loaded.sha256,
        activation=loaded.activation,
    )


def find_weights(reference: str) -> Path:
    """The weights file that a reference names: `package:<folder>` beside this module, else a path or hub repo."""
    folder = shipped_folder(reference)
    return resolve(reference) if folder is None else folder / "model.safetensors"


def find_device(device: str) -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU.

    Raises:
        ModelError: for a device that this machine or this torch does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device={device!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error


def load_text_embedder(card: ModelCard, *, checkpoint: str | Path | None, device: str) -> TextEmbedder:
    """The text side of a card, with its default checkpoint or another; the image tower is not read.

    Raises:
        CheckpointError: when weights or tokenizer cannot be had or do not fit each other.
        ModelError: for a device that is not there, or an object, which has no tokenizer that we know.
    """
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        raise ModelError(
            f"texts need a checkpoint that is a path or hub repo, got a {type(checkpoint).__qualname__}: its tokenizer "
            "is not known here"
        )
    reference = card.checkpoint if checkpoint is None else str(checkpoint)
    where = find_device(device)
    loaded = _texts.get(find_weights(reference), where, _load_texts)
    return TextEmbedder(
        model=card.name, tower=loaded.tower, tokenizer=loaded.tokenizer, device=where, weights_sha256=loaded.sha256
    )


def _load_images(file: Path, device: torch.device) -> _Images:
    checkpoint = open_checkpoint(file)
    tower = checkpoint.load_vision().to(device)
    return _Images(tower, checkpoint.sha256(), checkpoint.config.activation)


def _load_texts(file: Path, device: torch.device) -> _Texts:
    checkpoint = open_checkpoint(file)
    tokenizer, vocabulary = resolve_tokenizer(file), checkpoint.config.text.vocabulary
    if tokenizer.rules.get_vocab_size() != vocabulary:
        raise CheckpointError(
            f"{file} has a vocabulary of {vocabulary}, and its tokenizer one of {tokenizer.rules.get_vocab_size()}: "
            "put the tokenizer.json that belongs to it beside it"
        )
    return _Texts(checkpoint.load_text().to(device), checkpoint.sha256(), tokenizer)
