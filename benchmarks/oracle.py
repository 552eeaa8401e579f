"""Open_clip with a CPU torch, and a ViT-B/32 with random weights for both sides."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

from rs_embed.clip.model import TextConfig, TextTower, VisionConfig, VisionTower, initialise

FOLDER = Path(__file__).parent / "data" / "random-vit-b-32"


def import_open_clip() -> ModuleType:
    """Import open_clip; stubs replace torchvision's operators, which a CPU torch lacks and open_clip does not use."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import open_clip
    return open_clip


def random_checkpoint() -> Path:
    """Return the folder of a random ViT-B/32 checkpoint (605 MB), also as `open_clip.pt`; it is written once."""
    if (FOLDER / "config.json").exists():
        return FOLDER
    vision = VisionTower(VisionConfig(width=768, layers=12, heads=12, patch_px=32, image_px=224), 512, "gelu")
    text = TextTower(TextConfig(width=512, layers=12, heads=8, context=77, vocabulary=49_408), 512, "gelu")
    initialise(vision, 0)
    initialise(text, 1)
    state = {f"visual.{k}": v.contiguous() for k, v in vision.state_dict().items()} | dict(text.state_dict())
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{k}": v for k, v in state.items()}, FOLDER / "model.safetensors")
    torch.save(state, FOLDER / "open_clip.pt")
    (FOLDER / "config.json").write_text(json.dumps({"model_name": "ViT-B-32"}))
    return FOLDER
