"""Machine of a measurement: its processor, its rate of multiplication, and the peak memory of a process."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from benchmarks.timing import seconds_of

VIT_B32_GFLOP = 8.73
"""Multiplications and additions for one image in ViT-B/32: 12 blocks of width 768 on 50 tokens, and patches."""
_RELEVANT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def describe() -> str:
    """Return the processor, its cores, and its relevant instruction sets, as text."""
    import torch  # not at the top: cold-start processes import this module to read their memory

    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    facts = {n: re.search(rf"^{n}\s*:\s*(.+)$", text, re.MULTILINE) for n in ("model name", "cpu family", "model")}
    name, family, model = (found[1].strip() if found else "?" for found in facts.values())
    flags = [flag for flag in _RELEVANT_FLAGS if re.search(rf"\b{flag}\b", text)]
    return f"{torch.get_num_threads()} cores of {name} (family {family}, model {model}; {', '.join(flags)})"


def gemm_rate(n: int = 2048) -> float:
    """Return the GFLOP/s of the fastest n x n float32 product in this torch, which is the machine's limit.

    MKL, which `@` uses, runs at half speed on some processors; oneDNN's packed product does not.
    """
    import torch

    left, right, bias = torch.rand(n, n), torch.rand(n, n), torch.zeros(n)
    runs = [lambda: left @ right]
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packed = torch.ops.mkldnn._reorder_linear_weight(right, n)
        runs.append(lambda: torch.ops.mkldnn._linear_pointwise(left, packed, bias, "none", [], None))
    return max(2 * n**3 / min(seconds_of(run) for _ in range(6)) / 1e9 for run in runs)


def peak_mib() -> int:
    """Return the peak memory of this process in MiB; unlike `ru_maxrss`, it does not start from the parent's."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024
