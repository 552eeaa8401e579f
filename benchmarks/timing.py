"""Fair timing on a noisy machine: both sides alternate, and the ratio within each turn counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of our time with a baseline's; ratios over 1 mean that ours is faster."""

    name: str
    ours_s: float
    theirs_s: float
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        ours, theirs = self.ours_s * 1e3, self.theirs_s * 1e3
        return f"{self.name:<58} ours {ours:9.1f} ms   theirs {theirs:9.1f} ms   x{self.ratio:.2f} ({spread})"


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], turns: int = 7, *, warm: bool = True
) -> Comparison:
    """Run both sides once to warm up, then alternately; each goes first in every other turn."""
    if warm:
        ours(), theirs()
    pairs = []
    for turn in range(turns):
        sides = (ours, theirs) if turn % 2 == 0 else (theirs, ours)
        seconds = {side: seconds_of(side) for side in sides}
        pairs.append((seconds[ours], seconds[theirs]))
    ours_s, theirs_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Comparison(name, ours_s, theirs_s, tuple(b / a for a, b in pairs))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
