"""Benchmarks: `python -m benchmarks [NAME …]`. Without names, all run, and `benchmarks/RESULTS.md` is written."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import date
from importlib import import_module
from pathlib import Path

from benchmarks import machine, quote

COMPARISONS = ("composite", "pixels", "cold_start", "batch", "stac")
"""Benchmarks that alternate with a baseline and give ratios."""
REPORTS = (
    *("cold_start", "network", "precision", "timeline", "export", "throughput"),
    *("search", "whurs19", "eurosat_search", "presence", "heatmap"),
)
"""Benchmarks that print lines; each runs in a separate process."""

_APART = "## Measured apart"


def main() -> None:
    wanted = sys.argv[1:] or COMPARISONS
    unknown = set(wanted) - set(COMPARISONS)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    found = [comparison for name in wanted for comparison in import_module(f"benchmarks.bench_{name}").run()]
    for comparison in found:
        print(comparison)
    if set(wanted) != set(COMPARISONS):
        return
    rows = [f"| {c.name} | {c.ours_s * 1e3:.0f} | {c.theirs_s * 1e3:.0f} | **{c.ratio:.2f}** |" for c in found]
    lines = [
        f"{date.today()}, {machine.describe()};",
        f"Python {platform.python_version()}; both sides alternated; the ratio is the median over turns.",
        "",
        "| case: baseline | ours, ms | baseline, ms | times as fast |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Output of `python -m benchmarks.bench_NAME`, for {', '.join(REPORTS)}:",
        "",
        *(f"* {line}" for name in REPORTS for line in _lines_of(f"benchmarks.bench_{name}")),
        "",
        "Comparisons with peers are in [RESULTS-peers.md](RESULTS-peers.md) (`make bench-peers`).",
    ]
    results = Path(__file__).with_name("RESULTS.md")
    _, apart, kept = results.read_text(encoding="utf-8").partition(_APART)  # that section is written by hand
    results.write_text("\n".join(lines) + f"\n\n{apart}{kept}", encoding="utf-8")
    quote.main()


def _lines_of(module: str) -> list[str]:
    """Return the output of a benchmark in a separate process, since it configures threads before torch is loaded."""
    print(module, flush=True)
    done = subprocess.run([sys.executable, "-m", module], check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
