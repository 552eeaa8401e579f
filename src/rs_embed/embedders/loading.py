"""From a model's name and a checkpoint to an embedder. The last two networks stay loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.kernels import PRECISIONS, Int8Linear, PackedLinear, can_pack, has_bf16, replace_linear
from rs_embed.clip.model import TextTower, VisionTower
from rs_embed.clip.reference import resolve
from rs_embed.clip.tokenizer import Tokenizer
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import ModelCard, shipped_folder
from rs_embed.embedders.chips import ChipSize
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.text import TextEmbedder
from rs_embed.embedders.wrapped import wrap
from rs_embed.errors import CheckpointError, ModelError
from rs_embed.files import FileMemo

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True)
class _Images:
    """An image tower in memory."""

    tower: VisionTower
    activation: str


@dataclass(frozen=True, slots=True)
class _Texts:
    """A text tower in memory, with its tokenizer."""

    tower: TextTower
    sha256: str
    tokenizer: Tokenizer


_images: FileMemo[_Images] = FileMemo()
_texts: FileMemo[_Texts] = FileMemo()


def load_embedder(card: ModelCard, *, checkpoint: object | None, device: str, precision: str) -> RemoteClipEmbedder:
    """The embedder of a card, with its default checkpoint or another.

    Args:
        card: the model.
        checkpoint: hub repo, path, or a ready object that encodes images; None for the card's own.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32", "bf16", "int8" (on a CPU), "fp16" (on CUDA).

    Raises:
        CheckpointError: when the weights cannot be had or do not fit.
        ModelError: for a device or precision that is not there.
    """
    where = find_device(device)
    _check_precision(precision, where)
    size = ChipSize(card.image_px, card.patch_px)
    if checkpoint is not None and not isinstance(checkpoint, (str, Path)):
        if precision != "fp32":
            raise ModelError(f"precision {precision!r} needs a checkpoint by name: a ready object computes as it is")
        wrapper = wrap(checkpoint, default=size, device=where)
        return RemoteClipEmbedder(
            card=card,
            network=wrapper.network,
            size=wrapper.size,
            device=where,
            checkpoint=wrapper.label,
            digest=None,
            activation=None,
            transform=wrapper.transform,
        )
    reference = str(checkpoint) if checkpoint is not None else card.checkpoint
    weights = find_weights(reference)
    digest = digest_of(weights)  # beside the reading
    loaded = _images.get(weights, lambda: _load_images(weights, where, precision), f"{where} {precision}")
    config = loaded.tower.config
    return RemoteClipEmbedder(
        card=card,
        network=loaded.tower,
        size=ChipSize(config.image_px, config.patch_px),
        device=where,
        checkpoint=reference.removeprefix("hf:"),
        digest=digest,
        activation=loaded.activation,
        dtype=_DTYPES.get(precision, torch.float32),
        resizes=where.type == "cuda" and precision in _DTYPES,
    )


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ModelError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ModelError("precision 'fp16' is slow on a CPU: use 'fp32', 'bf16' or 'int8'")
    if precision == "int8" and device.type != "cpu":
        raise ModelError(f"precision 'int8' is for the CPU, not for {device}: use 'fp16' or 'bf16'")
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        _log.warning("this CPU emulates bfloat16: 'fp32' is faster here, and 'int8' more so")


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
    weights = find_weights(reference)
    loaded = _texts.get(weights, lambda: _load_texts(weights, where), str(where))
    return TextEmbedder(
        model=card.name, tower=loaded.tower, tokenizer=loaded.tokenizer, device=where, weights_sha256=loaded.sha256
    )


def _load_images(file: Path, device: torch.device, precision: str) -> _Images:
    checkpoint = open_checkpoint(file)
    dtype = _DTYPES.get(precision, torch.float32)
    tower = checkpoint.load_vision().to(device, dtype)
    if precision == "int8":
        replace_linear(tower, Int8Linear)
    elif device.type == "cpu" and can_pack(dtype):
        replace_linear(tower, PackedLinear)
    return _Images(tower, checkpoint.config.activation)


def _load_texts(file: Path, device: torch.device) -> _Texts:
    from rs_embed.clip.hub import resolve_tokenizer  # its client takes a tenth of a second to import

    digest = digest_of(file)  # beside the reading
    checkpoint = open_checkpoint(file)
    tokenizer, vocabulary = resolve_tokenizer(file), checkpoint.config.text.vocabulary
    if tokenizer.rules.get_vocab_size() != vocabulary:
        raise CheckpointError(
            f"{file} has a vocabulary of {vocabulary}, and its tokenizer one of {tokenizer.rules.get_vocab_size()}: "
            "put the tokenizer.json that belongs to it beside it"
        )
    return _Texts(checkpoint.load_text().to(device), digest.result(), tokenizer)
