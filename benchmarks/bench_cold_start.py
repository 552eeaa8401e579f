"""One embedding from a cold process, ViT-B/32 from a local checkpoint: seconds and peak memory against open_clip."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.oracle import random_checkpoint
from benchmarks.timing import Comparison, compare

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


def run() -> list[Comparison]:
    folder = str(random_checkpoint())
    peaks: dict[str, list[int]] = {OURS: [], THEIRS: []}

    def start(code: str) -> None:
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
        peaks[code].append(int(done.stdout.split()[-1]) // 1024)

    found = compare("one cold embedding: open_clip", lambda: start(OURS), lambda: start(THEIRS), 5)
    print(f"peak memory of one cold embedding: ours {max(peaks[OURS])} MiB, open_clip {max(peaks[THEIRS])} MiB")
    return [found]
