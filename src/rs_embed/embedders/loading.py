"""Loading of embedders. The last two networks stay in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.formats import CONFIG_FILES, TOKENIZER_FILE
from rs_embed.clip.kernels import PRECISIONS, Int8Linear, PackedLinear, can_pack, fuse_gelu, has_bf16, replace_linear
from rs_embed.clip.model import ClipConfig, VisionTower
from rs_embed.clip.weights import resolve
from rs_embed.digest import digest_of
from rs_embed.embedders.cards import ModelCard, shipped_folder
from rs_embed.embedders.chips import ChipSize, Preparation
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.wrapped import wrap
from rs_embed.errors import CheckpointError, ModelError
from rs_embed.files import FileMemo

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True)
class _Images:
    """An image tower in memory."""

    tower: VisionTower
    config: ClipConfig


_images: FileMemo[_Images] = FileMemo()


def load_embedder(card: ModelCard, *, checkpoint: object | None, device: str, precision: str) -> RemoteClipEmbedder:
    """Load the embedder of a card; `checkpoint` is a path, a hub repo, or an object that encodes images."""
    where = find_device(device)
    if precision != "fp32":
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
            preparation=Preparation(card.dn_range, wrapper.size, stage="rgb" if wrapper.transform else "chips"),
            device=where,
            checkpoint=wrapper.label,
            digest=None,
            activation=None,
            transform=wrapper.transform,
        )
    reference = str(checkpoint) if checkpoint is not None else card.checkpoint
    weights = find_weights(reference)
    digest = digest_of(weights)  # computed while the weights are read
    loaded = _images.get(weights, lambda: _load_images(weights, where, precision), f"{where} {precision}", CONFIG_FILES)
    size = ChipSize(loaded.tower.config.image_px, loaded.tower.config.patch_px)
    return RemoteClipEmbedder(
        card=card,
        network=loaded.tower,
        size=size,
        preparation=Preparation(card.dn_range, size, stage="dn" if where.type == "cuda" else "chips"),
        device=where,
        checkpoint=reference.removeprefix("hf:"),
        digest=digest,
        activation=loaded.config.activation,
        settings=loaded.config.settings,
        dtype=_DTYPES.get(precision, torch.float32),
    )


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ModelError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ModelError("precision 'fp16' is slow on a CPU: use 'fp32', 'bf16' or 'int8'")
    if precision == "int8" and device.type != "cpu":
        raise ModelError(f"precision 'int8' is for the CPU, not for {device}: use 'fp16' or 'bf16'")
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        _log.warning("this CPU emulates bfloat16: use 'fp32', which is faster here, or 'int8'")


def find_weights(reference: str) -> Path:
    """Return the weights file that a reference names: `package:<folder>` beside this module, a path or a hub repo."""
    folder = shipped_folder(reference)
    if folder is None:
        return resolve(reference)
    if not (file := folder / "model.safetensors").is_file():
        raise CheckpointError(f"{reference!r} does not come with the package: see rs-embed models")
    return file


def tokenizer_sha256(weights: Path) -> str | None:
    """Return the digest of the tokenizer beside weights; None where there is none."""
    file = weights.with_name(TOKENIZER_FILE)
    return digest_of(file).result() if file.is_file() else None


@lru_cache(maxsize=16)
def find_device(device: str) -> torch.device:
    """Return a device by name; `"auto"` is CUDA if the machine has it, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ModelError(f"device={device!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error


def _load_images(file: Path, device: torch.device, precision: str) -> _Images:
    checkpoint = open_checkpoint(file)
    dtype = _DTYPES.get(precision, torch.float32)
    tower = checkpoint.load_vision().to(device, dtype)
    if precision == "int8":
        replace_linear(tower, Int8Linear)
    elif device.type == "cpu" and can_pack(dtype):
        replace_linear(tower, PackedLinear)
    elif device.type == "cuda" and dtype != torch.float32:
        replace_linear(tower, fuse_gelu)
    return _Images(tower, checkpoint.config)
