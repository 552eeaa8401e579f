"""From a model's name and a checkpoint to an embedder. The last two networks stay loaded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from rs_embed.clip.checkpoint import open_checkpoint
from rs_embed.clip.hub import resolve
from rs_embed.clip.model import VisionTower
from rs_embed.embedders.card import ModelCard
from rs_embed.embedders.chips import ChipSize
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedders.wrapper import wrap
from rs_embed.errors import ModelError

_KEEP_LOADED = 2
_PACKAGE = "package:"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An image tower in memory."""

    tower: VisionTower
    sha256: str
    activation: str


_Key = tuple[str, int, int, str]
_loaded: OrderedDict[_Key, _Loaded] = OrderedDict()
_lock = threading.Lock()


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
    loaded = _load(find_weights(reference), where)
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
    if reference.startswith(_PACKAGE):
        return Path(__file__).parent / reference.removeprefix(_PACKAGE) / "model.safetensors"
    return resolve(reference)


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


def _load(file: Path, device: torch.device) -> _Loaded:
    """Read a file's image tower, or take it from the two that were used last."""
    status = file.stat()
    key = (str(file.resolve()), status.st_mtime_ns, status.st_size, str(device))
    with _lock:
        if key not in _loaded:
            checkpoint = open_checkpoint(file)
            tower = checkpoint.load_vision().to(device)
            _loaded[key] = _Loaded(tower, checkpoint.sha256(), checkpoint.config.activation)
        _loaded.move_to_end(key)
        while len(_loaded) > _KEEP_LOADED:
            _loaded.popitem(last=False)
        return _loaded[key]
