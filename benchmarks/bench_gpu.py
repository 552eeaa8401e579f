"""Rates on a GPU, stage by stage: pixels from the host to chips, the networks in each precision, whole runs, open_clip.

`make bench-gpu`, on a machine with CUDA; torch, numpy, Pillow, safetensors and affine are enough. Weights are random.
The last lines are runs over patches in memory by the way that users take, and open_clip's network on the same chips.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from benchmarks.oracle import import_open_clip, random_checkpoint
from benchmarks.timing import seconds_of
from rs_embed import OutputSpec, get_embeddings_batch
from rs_embed.clip import device as on_device
from rs_embed.clip.kernels import fuse_gelu, replace_linear
from rs_embed.clip.model import VisionConfig, VisionTower, initialise
from rs_embed.clip.preprocess import standardise
from rs_embed.clip.resample import resize_and_crop_levels

SHAPES = {
    "ViT-B-32": (VisionConfig(width=768, layers=12, heads=12, patch_px=32, image_px=224), 512, 8.73),
    "ViT-L-14": (VisionConfig(width=1024, layers=24, heads=16, patch_px=14, image_px=224), 768, 162.0),
}
"""Sizes, CLIP projection, and GFLOP of one image."""
KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIDE_PX, BATCH, TURNS = 410, 256, 7


def rate(run: Callable[[], object], images: int) -> float:
    """Return images per second, the median of some turns after two warm-ups."""

    def once() -> None:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    once()
    once()
    return images / sorted(seconds_of(once) for _ in range(TURNS))[TURNS // 2]


def stages(device: torch.device, batch: int = BATCH) -> list[str]:
    """Measure each step from DN on the host to the network's input."""
    dn = np.random.default_rng(0).integers(0, 12_000, (batch, 3, SIDE_PX, SIDE_PX)).astype(np.uint16)
    patches = [on_device.pin(patch) for patch in dn]
    raw = on_device._upload(patches, device)
    grey = on_device._stretch(raw, (0, 10_000))
    chips = resize_and_crop_levels(grey, 224)
    rates = {
        "copy of uint16 from pinned memory": rate(lambda: on_device._upload(patches, device), batch),
        "stretch": rate(lambda: on_device._stretch(raw, (0, 10_000)), batch),
        "resize": rate(lambda: resize_and_crop_levels(grey, 224), batch),
        "counts of grey levels": rate(lambda: on_device.histograms_of(chips), batch),
        "standardise": rate(lambda: standardise(chips.clone()), batch),
    }
    for workers in sorted({1, os.cpu_count() or 1}):
        with ThreadPoolExecutor(workers) as pool:
            copies = rate(lambda pool=pool: list(pool.map(on_device.pin, dn)), batch)
            digests = rate(lambda pool=pool: list(pool.map(lambda a: hashlib.sha256(a.data).digest(), dn)), batch)
        rates[f"to pinned memory, {workers} thread(s)"], rates[f"sha256, {workers} thread(s)"] = copies, digests
    return [f"{name}: {found:,.0f} patches/s" for name, found in rates.items()]


def networks(device: torch.device, batches: Sequence[int] = (64, BATCH)) -> list[str]:
    """Measure the networks alone, pixels on the device, with the share of the card's own product."""
    lines = []
    for name, (config, projection, gflop) in SHAPES.items():
        for precision, kind in KINDS.items():
            tower = VisionTower(config, projection, "gelu")
            initialise(tower, 0)
            tower = tower.to(device, kind).eval()
            if kind != torch.float32:
                replace_linear(tower, fuse_gelu)
            left, right = (torch.rand(8192, 8192, device=device).to(kind) for _ in range(2))
            product = 2 * 8192**3 * rate(lambda a=left, b=right: a @ b, 1) / 1e9
            for batch in batches:
                pixels = torch.randn(batch, 3, 224, 224, device=device).to(kind)
                found = rate(lambda tower=tower, pixels=pixels: tower.encode_image(pixels), batch)
                share = found * gflop / product
                lines.append(f"{name} {precision}, batch {batch}: {found:,.0f} images/s, {share:.0%} of the product")
    return lines


def theirs(device: torch.device) -> list[str]:
    """Measure open_clip's ViT-B/32 on the same kind of chips, uint8 on the host, in fp16."""
    model, _, _ = import_open_clip().create_model_and_transforms("ViT-B-32")
    visual = model.visual.to(device, torch.float16).eval()
    chips = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8)

    def run() -> None:
        visual(standardise(chips.float()).to(device, torch.float16)).float().cpu()

    return [f"open_clip ViT-B-32 fp16, batch {BATCH}, from chips on the host: {rate(run, BATCH):,.0f} images/s"]


def whole_runs(device: torch.device, patches: int = 4096) -> list[str]:
    """Measure DN on the host to vectors on the host, and compare the precisions."""
    some = np.random.default_rng(0).integers(1, 9000, (min(patches, 512), 3, SIDE_PX, SIDE_PX)).astype(np.uint16)
    dn = [some[i % len(some)] for i in range(patches)]
    checkpoint, lines, exact = str(random_checkpoint()), [], np.empty(0)
    for precision in KINDS:
        found: list[np.ndarray] = []

        def run(precision: str = precision, found: list[np.ndarray] = found) -> None:
            results = get_embeddings_batch(
                "remoteclip_s2rgb",
                input_chws=dn,
                output=OutputSpec.pooled("projected"),
                checkpoint=checkpoint,
                precision=precision,
                device=device.type,
            )
            found[:] = [np.stack([result.data for result in results])]

        run()
        seconds = sorted(seconds_of(run) for _ in range(3))[1]
        vectors = found[0] / np.linalg.norm(found[0], axis=1, keepdims=True)
        exact = vectors if precision == "fp32" else exact
        cosine = (vectors * exact).sum(axis=1).min()
        lines.append(f"{patches:,} patches, {precision}: {patches / seconds:,.0f} patches/s, cosine >= {cosine:.7f}")
    return lines


def main() -> None:
    torch.set_grad_enabled(False)
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPUs, torch {torch.__version__}", flush=True)
    for measure in (stages, networks, whole_runs, theirs):
        print("\n".join(measure(device)), flush=True)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device; nothing was measured")
    main()
