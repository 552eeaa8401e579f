"""Throughput of many places, pooled and grid, against a plain open_clip loop over the patches.

Both sides start from the same raw DN and give the same vectors. ViT-B/32 with random weights, float32, CPU or CUDA.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import VIT_B32_GFLOP, gemm_rate
from benchmarks.oracle import import_open_clip, random_checkpoint
from benchmarks.timing import Comparison, compare
from rs_embed import OutputSpec, get_embeddings_batch
from rs_embed.clip.preprocess import to_uint8

PLACES = 48


def run() -> list[Comparison]:
    folder = random_checkpoint()
    open_clip = import_open_clip()
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(folder / "open_clip.pt"))
    model.eval()
    rng = np.random.default_rng(0)
    patches = [rng.integers(1, 5000, (3, 120, 120)).astype(np.uint16) for _ in range(PLACES)]

    def theirs(grid: bool) -> list[np.ndarray]:
        model.visual.output_tokens = grid
        out = []
        for dn in patches:
            pixels = preprocess(Image.fromarray(to_uint8(dn, (0, 10_000))))[None]
            with torch.inference_mode():
                found = model.visual(pixels)
            out.append((found[1] if grid else found)[0].numpy())
        return out

    def ours(output: OutputSpec) -> list[np.ndarray]:
        results = get_embeddings_batch("remoteclip_s2rgb", input_chws=patches, checkpoint=folder, output=output)
        return [np.asarray(r.data) for r in results]

    projected = OutputSpec.pooled("projected")
    a, b = ours(projected), theirs(False)
    assert max(np.abs(x - y).max() / np.abs(y).max() for x, y in zip(a, b, strict=True)) < 1e-4
    found = [
        compare(
            f"{PLACES} places, pooled: open_clip patch by patch", lambda: ours(projected), lambda: theirs(False), 5
        ),
        compare(
            f"{PLACES} places, grid: open_clip patch by patch", lambda: ours(OutputSpec.grid()), lambda: theirs(True), 5
        ),
    ]
    print(_limit(found[0]))
    return found


def _limit(pooled: Comparison) -> str:
    """Return our rate as a share of the machine's fastest matrix product, as text."""
    peak, reached = gemm_rate(), PLACES * VIT_B32_GFLOP / pooled.ours_s
    return (
        f"pooled: {PLACES / pooled.ours_s:.1f} places/s, {reached:.0f} GFLOP/s of the {peak:.0f} that the fastest "
        f"float32 product reaches here ({reached / peak:.0%})"
    )
