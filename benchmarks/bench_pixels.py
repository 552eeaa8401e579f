"""Preprocessing of 64 patches of 410 x 410 px, from raw DN to the network's input, against open_clip; one thread each.

Both start from uint16 DN in memory and end with one (64, 3, 224, 224) tensor.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from benchmarks.oracle import import_open_clip
from benchmarks.timing import Comparison, compare
from rs_embed.clip.preprocess import normalise
from rs_embed.embedders.chips import ChipSize, Preparation

PATCHES, SIDE_PX = 64, 410


def run() -> list[Comparison]:
    rng = np.random.default_rng(0)
    patches = rng.integers(1, 5000, (PATCHES, 3, SIDE_PX, SIDE_PX)).astype(np.uint16)
    preparation = Preparation((0.0, 10_000.0), ChipSize(224, 32))
    _, _, preprocess = import_open_clip().create_model_and_transforms("ViT-B-32")

    def ours() -> torch.Tensor:
        return normalise([preparation.cut(dn, fill_value=0.0, prep="resize").images[0] for dn in patches])

    def theirs() -> torch.Tensor:
        grey = ((np.clip(dn.astype(np.float32) / 10_000, 0, 1) * 255).astype(np.uint8) for dn in patches)
        return torch.stack([preprocess(Image.fromarray(rgb.transpose(1, 2, 0))) for rgb in grey])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.testing.assert_close(ours(), theirs(), atol=1e-6, rtol=0)
        return [compare(f"{PATCHES} patches of {SIDE_PX} px, DN to tensor: open_clip", ours, theirs)]
    finally:
        torch.set_num_threads(threads)
