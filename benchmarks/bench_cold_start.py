"""Seconds and peak memory of one embedding in a new process, ViT-B/32 from a local checkpoint, against open_clip."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.oracle import random_checkpoint
from benchmarks.timing import Comparison, compare, seconds_of

_PEAK = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])"

OURS = f"""
import sys
import numpy as np
from rs_embed import get_embedding
dn = np.random.default_rng(0).integers(1, 5000, (3, 120, 120)).astype(np.uint16)
get_embedding("remoteclip_s2rgb", input_chw=dn, checkpoint=sys.argv[1])
{_PEAK}
"""

THEIRS = f"""
import sys
import numpy as np
import torch
from PIL import Image
from benchmarks.oracle import import_open_clip
open_clip = import_open_clip()
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=sys.argv[1] + "/open_clip.pt")
dn = np.random.default_rng(0).integers(1, 5000, (3, 120, 120)).astype(np.uint16)
rgb = (np.clip(dn / 10_000, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
with torch.inference_mode():
    model.eval().encode_image(preprocess(Image.fromarray(rgb))[None])
{_PEAK}
"""


BUNDLED = f"""
import numpy as np
from rs_embed import get_embedding
dn = np.random.default_rng(0).integers(1, 5000, (3, 120, 120)).astype(np.uint16)
get_embedding("clip_eurosat_s2rgb", input_chw=dn)
{_PEAK}
"""
TURNS = 5


def _start(code: str, *arguments: str) -> int:
    """Run code in a new process, and return its peak memory in MiB."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) // 1024


def run() -> list[Comparison]:
    """Compare whole processes, from their start to one vector."""
    folder = str(random_checkpoint())
    return [
        compare("one cold embedding: open_clip", lambda: _start(OURS, folder), lambda: _start(THEIRS, folder), TURNS)
    ]


def report() -> list[str]:
    """Print the seconds of the first things a user waits for, and the peak memory."""
    folder, command = str(random_checkpoint()), str(Path(sys.executable).with_name("rs-embed"))
    cases: dict[str, Callable[[], object]] = {
        "`rs-embed --help`": lambda: subprocess.run([command, "--help"], capture_output=True, check=True),
        "`import rs_embed`": lambda: subprocess.run([sys.executable, "-c", "import rs_embed"], check=True),
        "one embedding, bundled model": lambda: _start(BUNDLED),
        "one embedding, ViT-B/32": lambda: _start(OURS, folder),
    }
    seconds = {name: statistics.median(seconds_of(case) for _ in range(TURNS)) for name, case in cases.items()}
    times = ", ".join(f"{name} {spent:.2f} s" for name, spent in seconds.items())
    peaks = _start(OURS, folder), _start(THEIRS, folder)
    line = f"cold start: {times}; peak memory of the last {peaks[0]:,} MiB, of open_clip {peaks[1]:,} MiB"
    print(line, flush=True)
    return [line]


if __name__ == "__main__":
    report()
