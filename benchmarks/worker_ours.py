"""Our worker for `bench_peers`; it reads and writes the same lines as `worker_peers`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import peak_mib
from rs_embed import OutputSpec, get_embeddings_batch


def main() -> None:
    folder, weights, precision = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    patches = list(np.load(folder / "patches.npy"))
    outputs = {"pooled": OutputSpec.pooled("projected"), "grid": OutputSpec.grid()}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found = get_embeddings_batch(
            "remoteclip_s2rgb",
            input_chws=patches,
            output=outputs[line.strip()],
            checkpoint=weights,
            precision=precision,
            device="cpu",
        )
        stacked = np.stack([np.asarray(e.data) for e in found])
        seconds = time.perf_counter() - started
        np.save(folder / f"ours-{precision}-{line.strip()}.npy", stacked)
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
