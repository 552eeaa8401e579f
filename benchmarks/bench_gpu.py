"""Images per second on a GPU: ViT-B/32 and ViT-L/14 in each precision, against the GPU's matrix product and open_clip.

Run `make bench-gpu` on a machine with CUDA. The weights are random; both sides start from uint8 chips on the host.
Whole batches of patches follow, ViT-B/32, which includes their preparation on the host.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.oracle import import_open_clip, random_checkpoint
from benchmarks.timing import seconds_of
from rs_embed import OutputSpec, get_embeddings_batch
from rs_embed.clip.model import VisionConfig, VisionTower, initialise
from rs_embed.clip.preprocess import CLIP_MEAN, CLIP_STD, normalise

SHAPES = {
    "ViT-B-32": (VisionConfig(width=768, layers=12, heads=12, patch_px=32, image_px=224), 512, 8.73),
    "ViT-L-14": (VisionConfig(width=1024, layers=24, heads=16, patch_px=14, image_px=224), 768, 162.0),
}
"""Network sizes, size of the CLIP projection, and GFLOP of one image."""
KINDS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BATCHES = (64, 256)
TURNS = 7


def product_rate(kind: torch.dtype, device: torch.device, n: int = 8192) -> float:
    """Return the GFLOP/s of an n x n matrix product."""
    left, right = (torch.rand(n, n, device=device).to(kind) for _ in range(2))

    def run() -> None:
        _ = left @ right
        torch.cuda.synchronize()

    return 2 * n**3 / min(seconds_of(run) for _ in range(6)) / 1e9


def _theirs(name: str, kind: torch.dtype, device: torch.device) -> torch.nn.Module:
    model, _, _ = import_open_clip().create_model_and_transforms(name)
    return model.visual.to(device, kind).eval()


def _seconds(
    ours: VisionTower, theirs: torch.nn.Module, batch: int, kind: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of one batch on each side, alternating, from chips on the host to vectors on the host."""
    chips = list(np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3)).astype(np.uint8))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))

    def run_ours() -> None:
        ours.encode_image(normalise(chips).to(device, kind)).float().cpu()

    def run_theirs() -> None:
        pixels = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float().div_(255)
        theirs(pixels.sub_(mean).div_(std).to(device, kind)).float().cpu()

    for run in (run_ours, run_theirs, run_ours, run_theirs):
        run()
    pairs = [(seconds_of(run_ours), seconds_of(run_theirs)) for _ in range(TURNS)]
    a, b = (sorted(side)[TURNS // 2] for side in zip(*pairs, strict=True))
    return a, b


def report() -> list[str]:
    """Print one line per network, precision and batch."""
    torch.set_grad_enabled(False)
    device, lines = torch.device("cuda"), [f"{torch.cuda.get_device_name()}, torch {torch.__version__}"]
    for name, (config, projection, gflop) in SHAPES.items():
        tower = VisionTower(config, projection, "gelu")
        initialise(tower, 0)
        for precision, kind in KINDS.items():
            ours, theirs = tower.to(device, kind).eval(), _theirs(name, kind, device)
            rate = product_rate(kind, device)
            for batch in BATCHES:
                a, b = _seconds(ours, theirs, batch, kind, device)
                share = batch / a * gflop / rate
                lines.append(
                    f"{name} {precision}, batch {batch}: {batch / a:,.0f} images/s ({share:.0%} of the "
                    f"{rate / 1e3:,.1f} TFLOP/s of a product), open_clip {batch / b:,.0f} (x{b / a:.2f})"
                )
                print(lines[-1], flush=True)
    lines += _whole_runs()
    return lines


def _whole_runs(patches: int = 2048, side_px: int = 410) -> list[str]:
    """Return the rates of `get_embeddings_batch`, from raw DN on the host to vectors on the host."""
    dn = list(np.random.default_rng(0).integers(1, 5000, (patches, 3, side_px, side_px)).astype(np.uint16))
    checkpoint, lines = str(random_checkpoint()), []
    for precision in KINDS:

        def run(precision: str = precision) -> None:
            get_embeddings_batch(
                "remoteclip_s2rgb",
                input_chws=dn,
                output=OutputSpec.pooled("projected"),
                checkpoint=checkpoint,
                precision=precision,
                device="cuda",
            )

        run()
        seconds = sorted(seconds_of(run) for _ in range(3))[1]
        lines.append(f"{patches:,} patches of {side_px} px, ViT-B/32 {precision}: {patches / seconds:,.0f} patches/s")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("this machine has no CUDA device; nothing was measured")
    report()
