"""The network alone, ViT-B/32 of random weights, in each way it can run; and how near to the machine's own product.

`python -m benchmarks.bench_network`
"""

from __future__ import annotations

import copy

import torch

from benchmarks.machine import VIT_B32_GFLOP, gemm_rate
from benchmarks.timing import seconds_of
from rs_embed.clip.kernels import Int8Linear, PackedLinear, can_pack, replace_linear
from rs_embed.clip.model import VisionConfig, VisionTower, initialise

BATCHES, TURNS = (8, 32), 5


def report() -> list[str]:
    """One line a batch size."""
    torch.set_grad_enabled(False)
    plain = VisionTower(VisionConfig(width=768, layers=12, heads=12, patch_px=32, image_px=224), 512, "gelu").eval()
    initialise(plain, 0)
    lines = []
    for n in BATCHES:
        towers = {"plain": plain}
        if can_pack():
            towers["packed"] = copy.deepcopy(plain)
            replace_linear(towers["packed"], PackedLinear)
        if can_pack(torch.bfloat16):
            towers["bf16"] = copy.deepcopy(plain).bfloat16()
            replace_linear(towers["bf16"], PackedLinear)
        towers["int8"] = copy.deepcopy(plain)
        replace_linear(towers["int8"], Int8Linear)
        pixels = {name: torch.rand(n, 3, 224, 224).to(t.conv1.weight.dtype) for name, t in towers.items()}
        runs = {name: (lambda t=tower, p=pixels[name]: t.tokens(p)) for name, tower in towers.items()}
        if "packed" in towers:
            runs["packed, CLS alone"] = lambda t=towers["packed"], p=pixels["packed"]: t.encode_image(p)
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        rates = []
        for _ in range(TURNS):  # in turns: the machine drifts
            rates.append(gemm_rate())
            for name, run in runs.items():
                seconds[name].append(seconds_of(run))
        rate = sorted(rates)[TURNS // 2]
        per_s = {name: n / sorted(s)[TURNS // 2] for name, s in seconds.items()}
        parts = [f"{name} {v:.1f}" for name, v in per_s.items()]
        share = per_s.get("packed", per_s["plain"]) * VIT_B32_GFLOP / rate
        lines.append(
            f"network alone, batch {n}, images/s: {', '.join(parts)}; float32 at {share:.0%} of the {rate:.0f} GFLOP/s "
            "of the machine's fastest 2048 x 2048 product"
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    report()
