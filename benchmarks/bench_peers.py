"""Whole batches against rs-embed 0.3.1, open_clip and transformers, which alternate on the same patches.

`make bench-peers` installs them in a separate environment (Python 3.12 or newer, some gigabytes) and runs this module.
The input is 64 patches of 410 x 410 px, uint16 DN; the network is ViT-B/32 with random weights (transformers creates
its own). Both sides have the same RS_EMBED_REMOTECLIP_BATCH_SIZE.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks import machine, quote
from benchmarks.oracle import random_checkpoint

ROOT = Path(__file__).parent
PEER_PYTHON = ROOT / "data" / "rs-embed-peer" / "bin" / "python"
WORK = ROOT / "data" / "peers-work"
PATCHES, SIDE_PX, TURNS = 64, 410, 5


class Worker:
    """Process that runs named cases and reports their seconds."""

    def __init__(self, line: list[str], batch: int) -> None:
        environment = os.environ | {"RS_EMBED_REMOTECLIP_BATCH_SIZE": str(batch), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self._read()
        self.peak_mib = 0

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # peers print other lines too
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError(f"{self.process.args!r} ended: {self.process.wait()}")

    def run(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self._read()
        self.peak_mib = int(answer["peak_mib"])
        return answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _workers(batch: int, weights: Path, names: list[str]) -> dict[str, Worker]:
    ours = [sys.executable, "-m", "benchmarks.worker_ours", str(WORK), str(weights)]
    theirs = [str(PEER_PYTHON), str(ROOT / "worker_peers.py")]
    lines = {f"ours {p}": [*ours, p] for p in ("fp32", "bf16", "int8")}
    lines |= {
        who: [*theirs, who, str(WORK), str(weights), str(batch)] for who in ("rs-embed", "open_clip", "transformers")
    }
    return {name: Worker(lines[name], batch) for name in names}


def _compare(batch: int, weights: Path, names: list[str], what: str) -> list[str]:
    """Run each worker once per round, in rotating order, and return the medians of the ratios within a round."""
    workers = _workers(batch, weights, names)
    for worker in workers.values():
        worker.run(what)
        worker.run(what)
    rounds = []
    for turn in range(TURNS):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        rounds.append({name: workers[name].run(what) for name in order})
    peaks = {name: worker.peak_mib for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    rows = []
    for name in names:
        rate = PATCHES / statistics.median(r[name] for r in rounds)
        ratio = statistics.median(r["rs-embed"] / r[name] for r in rounds)
        rows.append(f"| {what}, batch {batch} | {name} | {rate:.1f} | **{ratio:.2f}** | {peaks[name]} |")
        print(rows[-1], flush=True)
    return rows


def _alike() -> str:
    """Return the least cosine of our vectors with the peers' on the same pixels, as text."""

    def cosine(one: str, other: str) -> float:
        a, b = (np.load(WORK / f"{name}.npy").reshape(PATCHES, -1) for name in (one, other))
        return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())

    pairs = ("open_clip", "open_clip-pooled"), ("rs-embed", "rs-embed-pooled")
    parts = [f"{name} {cosine('ours-fp32-pooled', file):.6f}" for name, file in pairs]
    parts += [f"our {p} {cosine('ours-fp32-pooled', f'ours-{p}-pooled'):.6f}" for p in ("bf16", "int8")]
    return f"least cosine of our float32 vectors with those of: {', '.join(parts)} (random weights)"


def _cold(weights: Path) -> str:
    """Return the seconds of new processes up to one vector, ours and rs-embed's alternating, as text."""
    one = "import sys, numpy as np; np.save(sys.argv[1], np.load(sys.argv[2])[:1])"
    subprocess.run(
        [sys.executable, "-c", one, str(WORK / "cold" / "patches.npy"), str(WORK / "patches.npy")], check=True
    )
    lines = {
        "ours": [sys.executable, "-m", "benchmarks.worker_ours", str(WORK / "cold"), str(weights), "fp32"],
        "rs-embed": [
            str(PEER_PYTHON),
            str(ROOT / "worker_peers.py"),
            "rs-embed",
            str(WORK / "cold"),
            str(weights),
            "8",
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    peaks: dict[str, int] = {}
    for turn in range(4):
        for name, line in lines.items() if turn % 2 else reversed(lines.items()):
            started = time.perf_counter()
            worker = Worker(line, 8)
            worker.run("pooled")
            seconds[name].append(time.perf_counter() - started)
            peaks[name] = worker.peak_mib
            worker.close()
    ours, theirs = (statistics.median(seconds[name]) for name in lines)
    return (
        f"one cold embedding: ours {ours:.1f} s and {peaks['ours']} MiB, rs-embed 0.3.1 {theirs:.1f} s and "
        f"{peaks['rs-embed']} MiB: **{theirs / ours:.1f}** times as fast"
    )


def report() -> list[str]:
    """Return the lines of RESULTS-peers.md."""
    (WORK / "cold").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(WORK / "patches.npy", rng.integers(1, 5000, (PATCHES, 3, SIDE_PX, SIDE_PX)).astype(np.uint16))
    weights = random_checkpoint()
    everyone = ["rs-embed", "ours fp32", "ours bf16", "ours int8", "open_clip", "transformers"]
    rows = _compare(32, weights, everyone, "pooled")
    alike = _alike()
    rows += _compare(32, weights, ["rs-embed", "ours fp32", "ours bf16", "ours int8"], "grid")
    rows += _compare(8, weights, ["rs-embed", "ours fp32", "ours int8"], "pooled")
    return [
        f"`make bench-peers`, {date.today()}, {machine.describe()}; Python 3.11 (ours) and 3.12 (the peers).",
        f"{PATCHES} patches of {SIDE_PX} x {SIDE_PX} px, uint16 DN to vectors, ViT-B/32 of random weights; rs-embed "
        "0.3.1 patched as in `worker_peers.py`;",
        "the sides alternated; ratios are medians over rounds; a batch of 8 is the default on a CPU.",
        "",
        "| case | library | images/s | times rs-embed | peak MiB |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"* {_cold(weights)}",
        f"* {alike}",
    ]


def main() -> None:
    if not PEER_PYTHON.exists():
        sys.exit("the peers are not installed: make bench-peers")
    (ROOT / "RESULTS-peers.md").write_text("\n".join(report()) + "\n")
    quote.main()


if __name__ == "__main__":
    main()
