"""Progress of an export run: counts, rates, and the events that a listener receives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict, TypeVar

from rs_embed import settings
from rs_embed.errors import NoImageryError, ProviderError, RSEmbedError, UnusableImageryError
from rs_embed.export.plans import PartitionCounts

T = TypeVar("T")

_LISTED_FAILURES = 20
_LISTED_SLOWEST = 3


class ProgressEvent(TypedDict):
    """Counts and rate of a run, about once a second and once in the end."""

    event: Literal["progress", "finished"]
    done: int
    failed: int
    no_imagery: int
    lost: int
    total: int
    per_s: float
    eta_s: float | None
    seconds: float
    waiting_for: NotRequired[dict[str, float]]
    """Seconds spent in "fetch", "embed" and "write", where the stages run in this process."""
    bottleneck: NotRequired[str]
    """Stage that took most of the time."""


class WaitingEvent(TypedDict):
    """Notice that a run cannot go on at the moment."""

    event: Literal["waiting"]
    partitions: list[int]
    why: str


class PlanningEvent(TypedDict):
    """State of the work before the first place: chips that are cut, or rows that are planned."""

    event: Literal["cutting", "planning"]
    done: int
    total: int


ExportEvent = ProgressEvent | WaitingEvent | PlanningEvent
ProgressListener = Callable[[ExportEvent], None]


def is_fault(result: object) -> bool:
    """Return True for an error of the source, which may be gone at another time."""
    return isinstance(result, ProviderError) and not isinstance(result, (NoImageryError, UnusableImageryError))


@dataclass(slots=True)
class FaultLimit:
    """Limit on the places in a row whose source fails: a dead host or an expired token ends a run."""

    in_a_row: int = 0

    def count(self, faults: int, answers: int, example: object) -> None:
        """Count places in the order in which they were fetched; raise where the limit is reached."""
        limit = settings.faults_in_a_row
        self.in_a_row = faults + (0 if answers else self.in_a_row)
        if self.in_a_row >= limit():
            raise ProviderError(
                f"the run stopped, since the source failed for {self.in_a_row} places in a row: {example}. Once it "
                "answers, the same command goes on, with --retry-failed also for the places that failed; "
                f"{limit.variable}=1000000 goes on regardless"
            )


@dataclass(slots=True)
class Progress:
    """Counts and times of a run."""

    total: int
    finished_before: int = 0  # by earlier runs, which do not count for the rate
    staged: bool = True  # the stages run in this process, so that their times are known
    done: int = 0
    failed: int = 0
    no_imagery: int = 0
    lost: int = 0  # of those done, places that lack scenes which could not be read
    faults: int = 0  # of those failed, places whose source failed
    wait_s: float = 0.0
    write_s: float = 0.0
    started_s: float = field(default_factory=time.perf_counter)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    """Ids of the slowest places, with the seconds from the start of their partition to the vector."""
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """Number of places with a result, failures included."""
        return self.done + self.failed + self.no_imagery

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started_s

    def event(self, name: Literal["progress", "finished"] = "progress") -> ProgressEvent:
        """Return the state of the run as an event."""
        seconds = self.seconds
        rate = (self.finished - self.finished_before) / seconds if seconds > 0 else 0.0
        event: ProgressEvent = {
            "event": name,
            "done": self.done,
            "failed": self.failed,
            "no_imagery": self.no_imagery,
            "lost": self.lost,
            "total": self.total,
            "per_s": round(rate, 3),
            "eta_s": round((self.total - self.finished) / rate, 1) if rate else None,
            "seconds": round(seconds, 1),
        }
        if self.staged:
            embed_s = max(0.0, seconds - self.wait_s - self.write_s)
            stages = {"fetch": self.wait_s, "embed": embed_s, "write": self.write_s}
            event["waiting_for"] = {stage: round(spent, 2) for stage, spent in stages.items()}
            event["bottleneck"] = max(stages, key=stages.__getitem__)
        return event

    def count_vector(self, name: str, seconds: float, *, lost: bool) -> None:
        """Count a place that was embedded so many seconds after its partition was started."""
        self.done, self.lost = self.done + 1, self.lost + lost
        self.slowest = sorted([*self.slowest, (seconds, name)], reverse=True)[:_LISTED_SLOWEST]

    def count_failure(self, name: str, error: RSEmbedError, *, had_vector: bool = False) -> None:
        """Count a place that failed; one that had a vector keeps it."""
        if had_vector:
            self.done, self.lost = self.done + 1, self.lost + 1
        elif isinstance(error, NoImageryError):
            self.no_imagery += 1
        else:
            self.failed += 1
        self.faults += is_fault(error)
        if len(self.failures) < _LISTED_FAILURES:
            self.failures.append((name, str(error)))

    def count_partition(self, counts: PartitionCounts) -> None:
        """Count the places of a partition that is finished already."""
        self.done += counts.ok + counts.partial
        self.failed += counts.failed
        self.no_imagery += counts.no_imagery
        self.lost += counts.lost

    def merge(self, other: Progress) -> None:
        """Add the counts of one partition that ran in another process."""
        self.done += other.done
        self.failed += other.failed
        self.no_imagery += other.no_imagery
        self.lost += other.lost
        self.failures = [*self.failures, *other.failures][:_LISTED_FAILURES]
        self.slowest = sorted([*self.slowest, *other.slowest], reverse=True)[:_LISTED_SLOWEST]

    def time_waits(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the same items, and add the time spent waiting for them to `wait_s`."""
        started = time.perf_counter()
        for item in items:
            self.wait_s += time.perf_counter() - started
            yield item
            started = time.perf_counter()
        self.wait_s += time.perf_counter() - started
