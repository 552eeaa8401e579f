"""Weights files: keys and shapes are checked when a file is opened, and one tower is read by memory map.

The first bytes of a file tell its format, not its suffix. A pickle is always read with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rs_embed.clip.formats import CONFIG_FILES, Shape, Source, check_keys, infer_config, normal_names
from rs_embed.clip.model import ClipConfig, TextTower, VisionTower
from rs_embed.clip.weights import PREFERRED
from rs_embed.errors import CheckpointError
from rs_embed.files import read_json

_VISION = "visual."
_CONFIG_BYTES = 1 << 20
_HEADER_BYTES = 2 << 20  # the library reads up to 100 MB, those of CLIPs have 0.1
_MOST_KEYS = 10_000  # the largest CLIP has about a thousand

Tower = TypeVar("Tower", VisionTower, TextTower)


class _Tensors(Protocol):
    """Tensors of one file, not read yet."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of each key."""

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        """Read tensors, mapped from the file if its format allows that."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file whose keys and shapes are those of a CLIP. Its weights are read when a tower is loaded."""

    file: Path
    config: ClipConfig
    sources: Mapping[str, Source]  # by open_clip's name of the parameter
    tensors: _Tensors

    def load_vision(self) -> VisionTower:
        """Load the image tower in float32, ready to use; the text tower is not read."""
        with torch.device("meta"):
            tower = VisionTower(self.config.vision, self.config.projection, self.config.activation)
        return self._filled(tower, _VISION)

    def load_text(self) -> TextTower:
        """Load the text tower in float32, ready to use; the image tower is not read."""
        with torch.device("meta"):
            tower = TextTower(self.config.text, self.config.projection, self.config.activation)
        return self._filled(tower, "")

    def _filled(self, tower: Tower, prefix: str) -> Tower:
        state = {name: self._parameter(f"{prefix}{name}") for name in tower.state_dict()}
        tower.load_state_dict(state, strict=True, assign=True)
        return tower.requires_grad_(False).eval()

    def _parameter(self, name: str) -> Tensor:
        source = self.sources[name]
        parts = self.tensors.read(source.keys)
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.file}: key {name} holds {tensor.dtype}, not floating-point numbers")
        tensor = (tensor.T if source.transpose else tensor).float().contiguous()
        low, high = torch.aminmax(tensor)  # NaN wins in both, and nothing is copied
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"{self.file}: key {name} holds NaN or infinity: the file is damaged")
        return tensor


def open_checkpoint(file: Path) -> Checkpoint:
    """Open safetensors or a torch archive, and check its shapes; a `config.json` beside it gives heads, activation."""
    tensors = _open(file)
    try:
        sources, shapes = normal_names(tensors.shapes)
        config = infer_config(shapes, _read_config(file.parent))
        check_keys(shapes, _expected_shapes(config))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return Checkpoint(file, config, sources, tensors)


def save_checkpoint(folder: Path, vision: VisionTower, text: TextTower, facts: Mapping[str, Any]) -> Path:
    """Write both towers as a RemoteCLIP checkpoint folder in float16: `model.safetensors` and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{_VISION}{k}": v for k, v in vision.state_dict().items()}
    state |= {f"model.{k}": v for k, v in text.state_dict().items()}
    part, file = folder / "model.part", folder / PREFERRED[0]
    save_file({k: v.detach().cpu().half().contiguous() for k, v in state.items()}, part)
    heads = {"vision_cfg": {"heads": vision.config.heads}, "text_cfg": {"heads": text.config.heads}}
    (folder / "config.json").write_text(json.dumps({**facts, **heads}, indent=1) + "\n", encoding="utf-8")
    part.chmod(0o644)  # the library writes it readable by its owner alone
    part.replace(file)
    return file


def _expected_shapes(config: ClipConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        vision = VisionTower(config.vision, config.projection, config.activation)
        text = TextTower(config.text, config.projection, config.activation)
    names = {f"{_VISION}{k}": v for k, v in vision.state_dict().items()} | text.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in names.items()}


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Read the folder's `config.json` or `open_clip_config.json`; empty if it has neither."""
    for name in CONFIG_FILES:
        file = folder / name
        if file.is_file():
            try:
                config = read_json(file, _CONFIG_BYTES)
            except (ValueError, OSError) as error:
                raise CheckpointError(f"{name} beside it is not readable as JSON: {error}") from error
            config = config.get("model_cfg", config) if isinstance(config, dict) else config
            if not isinstance(config, dict):
                raise CheckpointError(f"{name} beside it holds a {type(config).__name__}, expected an object")
            return config
    return {}


def _open(file: Path) -> _Tensors:
    """Open a file in the format that its first bytes tell."""
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file} is a git-lfs pointer, not the weights: fetch them with `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{file} is a web page, not weights: the download was answered by a login or error page")
    if head[8:9] == b"{":
        return _open_safetensors(file)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _open_torch(file)
    fault = "is empty" if not head else "is neither safetensors nor a torch file"
    raise CheckpointError(f"{file} {fault}: download it again")


@dataclass(frozen=True, slots=True)
class _Safetensors:
    file: Path
    shapes: Mapping[str, Shape]

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        with safe_open(self.file, framework="pt") as stored:
            return [stored.get_tensor(key) for key in keys]


def _open_safetensors(file: Path) -> _Tensors:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > _HEADER_BYTES:
        raise CheckpointError(f"{file} has a header of {length:,} bytes: it is damaged, or no CLIP")
    try:
        with safe_open(file, framework="pt") as stored:
            keys = stored.keys()  # it cannot be iterated itself
            _check_number(file, len(keys))
            return _Safetensors(file, {key: tuple(stored.get_slice(key).get_shape()) for key in keys})
    except SafetensorError as error:
        raise CheckpointError(f"{file} is cut short or damaged ({error}): download it again") from error


@dataclass(frozen=True, slots=True)
class _TorchFile:
    state: Mapping[str, Tensor]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {key: tuple(tensor.shape) for key, tensor in self.state.items()}

    def read(self, keys: Sequence[str]) -> list[Tensor]:
        return [self.state[key] for key in keys]


def _open_torch(file: Path) -> _Tensors:
    mapped = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be mapped
    try:
        if mapped:
            with zipfile.ZipFile(file) as archive:
                _check_archive(file, archive)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file} {_torch_fault(error)}") from error
    state = dict(_state_dict(content))
    _check_number(file, len(state))
    if not state:
        raise CheckpointError(f"{file} holds no state dict (a mapping of names to tensors)")
    return _TorchFile(state)


def _check_archive(file: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that torch.save did not write: TorchScript, or one that grows when it is unpacked."""
    entries = archive.infolist()
    _check_number(file, len(entries))
    if any(PurePosixPath(entry.filename).name == "constants.pkl" for entry in entries):
        raise CheckpointError(f"{file} is a TorchScript archive: save its state_dict() with torch.save first")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{file} is a compressed archive, which torch.save does not write: save it again")


def _check_number(file: Path, keys: int) -> None:
    if keys > _MOST_KEYS:
        raise CheckpointError(f"{file} has {keys:,} keys, at most {_MOST_KEYS:,} are read: it is no CLIP")


def _torch_fault(error: Exception) -> str:
    text = str(error)
    if "weights_only" in text.lower() or "Unsupported" in text:
        return "would run code when it is unpickled, and is refused: save its state_dict() alone, or use safetensors"
    return f"is cut short or damaged ({text.splitlines()[0] if text else type(error).__name__}): download it again"


def _state_dict(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a state dict, also of one inside a training checkpoint."""
    if not isinstance(content, Mapping):
        return
    inner = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    for key, value in inner.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            yield key, value
