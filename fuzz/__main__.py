"""Run the targets one after the other, each in a process of its own: `python -m fuzz [NAME …] [--seconds N]`."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz.harness import INPUT_S, TARGETS, run

GRACE_S = 120  # for imports, and for making a failing input small


def main() -> None:
    """Exit with 1 if any target failed; its last input is kept."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import fuzz.targets  # noqa: F401  (registers them)

    kept = Path(tempfile.gettempdir()) / "rs-embed-fuzz"
    kept.mkdir(exist_ok=True)
    if options.here:
        [name] = options.names
        print(f"{name}: {run(name, options.seconds, options.seed, kept / f'{name}.pickle'):,} inputs")
        return
    failed = [name for name in options.names or TARGETS if not _passes(name, options.seconds, options.seed)]
    for name in failed:
        print(f"FAILED {name}: python -m fuzz {name} --seed {options.seed}; last input: {kept / f'{name}.pickle'}")
    sys.exit(bool(failed))


def _passes(name: str, seconds: float, seed: int) -> bool:
    command = [sys.executable, "-m", "fuzz", name, "--seconds", str(seconds), "--seed", str(seed), "--here"]
    try:
        return subprocess.run(command, timeout=seconds + INPUT_S + GRACE_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: it hangs in native code")
        return False


main()
