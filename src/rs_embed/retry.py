"""Retry policies: what this package asks for again, how often, how long and with which pauses.

| policy         | asked for again                    | attempts | pause before the next            | time limit |
|----------------|------------------------------------|----------|----------------------------------|------------|
| `HTTP_RANGE`   | broken connection, `BUSY` statuses | any      | 0.4 s doubling to 4, Retry-After | 15 s       |
| `COG_BLOCK`    | a block or header that is corrupt  | 5        | none                             | -          |
| `STAC_SEARCH`  | broken connection, `BUSY` statuses | 3        | up to 0.5 s, then 1; Retry-After | 60 s       |
| `HUB`          | nothing; its client repeats reads  | 1        | -                                | 4 s, 30 s  |
| `EARTH_ENGINE` | an answer that is not as announced | 3        | up to 1 s, doubling              | 360 s each |

Pauses are random within their length, so that many processes do not return at once. Statuses that are not listed, such
as 403 and 404, are final. A pause that a server asks for (`Retry-After`) is kept, and counts as no attempt; one that
leads beyond the time limit is not begun, and the error names it. An answer that drips is given up: a range or a token
after 15 s at under 8 kB a second, a page of a catalog after 30 s, an answer of the hub after 30 s without a beginning
or at under 8 kB a second, one of Earth Engine after 360 s; its client may repeat a call for 30 minutes.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of a server that may answer later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Limits of one kind of request."""

    attempts: int = sys.maxsize
    """Largest number of attempts; where it is not given, the deadline is the limit."""
    first_pause_s: float = 0.0
    """Length of the pause after the first attempt; each further pause is twice as long."""
    longest_pause_s: float = 4.0
    shortest_share: float = 0.0
    """Share of a pause that is never left out; the rest is random."""
    deadline_s: float = float("inf")
    """Time for all attempts together."""
    connect_timeout_s: float = 4.0
    read_timeout_s: float = 8.0
    statuses: frozenset[int] = BUSY

    def pause_s(self, attempt: int) -> float:
        """Return a random pause after an attempt, the first of which is 1, in seconds."""
        longest = min(self.first_pause_s * 2.0 ** (attempt - 1), self.longest_pause_s)
        return longest * random.uniform(self.shortest_share, 1.0)


def retry_after_s(header: str | None) -> float:
    """Return the pause that a `Retry-After` header asks for (seconds, or an HTTP date), 0 where it asks for none."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


HTTP_RANGE = RetryPolicy(first_pause_s=0.4, shortest_share=0.5, deadline_s=15.0)
COG_BLOCK = RetryPolicy(attempts=5)  # with 2 % of answers corrupt, three were too few for 20,000 blocks
STAC_SEARCH = RetryPolicy(attempts=3, first_pause_s=0.5, deadline_s=60.0, read_timeout_s=10.0)
HUB = RetryPolicy(attempts=1, read_timeout_s=4.0, deadline_s=30.0)  # an unreachable hub is an error within 10 s
EARTH_ENGINE = RetryPolicy(attempts=3, first_pause_s=1.0, read_timeout_s=360.0, deadline_s=1800.0)
