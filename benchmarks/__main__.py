"""`python -m benchmarks [NAME …]`: run them all, or those named, and write `benchmarks/RESULTS.md`."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

NAMES = ("composite", "cold_start", "batch", "stac")
_REPORTED = (
    "Network, overlap, export, search (`python -m benchmarks.bench_network`, `bench_timeline`, …); the peers are in "
    "[RESULTS-peers.md](RESULTS-peers.md):"
)
REPORTS = ("network", "timeline", "export", "throughput", "search")


def main() -> None:
    wanted = sys.argv[1:] or NAMES
    unknown = set(wanted) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    found = [comparison for name in wanted for comparison in import_module(f"benchmarks.bench_{name}").run()]
    for comparison in found:
        print(comparison)
    if set(wanted) == set(NAMES):
        rows = [f"| {c.name} | {c.ours_s * 1e3:.0f} | {c.theirs_s * 1e3:.0f} | **{c.ratio:.2f}** |" for c in found]
        head = [
            f"{date.today()}, {os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()};",
            "the two sides took turns; the ratio is the median over turns.",
            "",
            "| what, against what | ours, ms | theirs, ms | times as fast |",
            "|---|---|---|---|",
        ]
        reports = [line for name in REPORTS for line in _lines_of(f"benchmarks.bench_{name}")]
        rows += [
            "",
            _REPORTED,
            "",
            *(f"* {r}" for r in reports),
        ]
        Path(__file__).with_name("RESULTS.md").write_text("\n".join([*head, *rows]) + "\n")


def _lines_of(module: str) -> list[str]:
    """What a benchmark prints, in a process of its own: it sets how threads wait before torch is loaded."""
    command = [sys.executable, "-m", module]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


if __name__ == "__main__":
    main()
