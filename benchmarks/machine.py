"""What a figure was measured on: the processor, the rate at which it multiplies, and the memory that a process took."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from benchmarks.timing import seconds_of

VIT_B32_GFLOP = 8.73
"""Multiplications and additions of one image, ViT-B/32: 12 blocks of 768 on 50 tokens, and the patch embedding."""
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def describe() -> str:
    """Processor, cores, and what of its instructions matters here."""
    import torch  # here, for a process that measures a cold start reads its memory from this module too

    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    facts = {n: re.search(rf"^{n}\s*:\s*(.+)$", text, re.MULTILINE) for n in ("model name", "cpu family", "model")}
    name, family, model = (found[1].strip() if found else "?" for found in facts.values())
    flags = [flag for flag in _TELLING if re.search(rf"\b{flag}\b", text)]
    return f"{torch.get_num_threads()} cores of {name} (family {family}, model {model}; {', '.join(flags)})"


def gemm_rate(n: int = 2048) -> float:
    """GFLOP/s of the fastest float32 product of n x n that this torch can run: the machine's limit.

    MKL, behind `@`, runs at half speed on some processors; oneDNN's packed product does not.
    """
    import torch

    left, right, bias = torch.rand(n, n), torch.rand(n, n), torch.zeros(n)
    runs = [lambda: left @ right]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(right, n)
        runs.append(lambda: torch.ops.mkldnn._linear_pointwise(left, packed, bias, "none", [], None))
    return max(2 * n**3 / min(seconds_of(run) for _ in range(6)) / 1e9 for run in runs)


def peak_mib() -> int:
    """The most memory that this process had in use; unlike `ru_maxrss` it does not begin with its parent's."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024
