"""Byte ranges over HTTP: retried with jitter where that can help, signed where the host wants it, bounded in time.

`RangeReader` has obspec's two verbs, so that a TIFF reader takes it as its store. Signed addresses live here and
nowhere else: they are neither stored nor named in an error.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import urlsplit

import httpx2

from rs_embed.errors import ProviderError

GIVE_UP_S = 15.0
"""All attempts for one answer together."""
CONNECT_S, READ_S = 4.0, 8.0
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_FIRST_PAUSE_S = 0.2
_RENEW_BEFORE_S = 300.0
GAP_BYTES = 4096
"""Ranges this near to each other are asked for together."""


class FetchError(ProviderError):
    """An answer that could not be had; says the host and the file, never the query of an address."""


@dataclass(slots=True)
class SasTokens:
    """Shared-access tokens of one host's containers, reused until shortly before they end."""

    token_url: str
    """Where tokens are asked for: `<token_url>/<account>/<container>`."""
    host_suffix: str
    known: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)
    """Container to its token and when it ends; shared by the sweeps of a run."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def sign(self, client: httpx2.AsyncClient, url: str, *, renew: bool) -> str:
        """The address with a token, where its host takes one.

        Raises:
            FetchError: when no token can be had.
        """
        parts = urlsplit(url)
        if not (parts.hostname or "").endswith(self.host_suffix):
            return url
        place = f"{(parts.hostname or '').partition('.')[0]}/{parts.path.strip('/').partition('/')[0]}"
        async with self._lock:
            token, ends = self.known.get(place, ("", 0.0))
            if renew or ends - time.time() < _RENEW_BEFORE_S:
                token, ends = await self._ask(client, place)
                self.known[place] = token, ends
        return f"{url}?{token}"

    async def _ask(self, client: httpx2.AsyncClient, place: str) -> tuple[str, float]:
        host = urlsplit(self.token_url).hostname
        try:
            answer = await client.get(f"{self.token_url}/{place}")
            answer.raise_for_status()
            found = answer.json()
            return str(found["token"]), _seconds(str(found["msft:expiry"]))
        except (httpx2.HTTPError, KeyError, ValueError) as error:
            raise FetchError(f"{host} gave no token for {place} ({type(error).__name__})") from None


def _seconds(text: str) -> float:
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True, repr=False)
class RangeReader:
    """Reads byte ranges of files by their plain addresses.

    Without a repr of its fields: the TIFF reader asks for it again and again.
    """

    client: httpx2.AsyncClient
    in_flight: asyncio.Semaphore
    tokens: SasTokens | None = None
    faults: dict[str, str] = field(default_factory=dict)
    """The last fault of each address, for a caller whose own error does not say it."""
    heads: dict[str, bytes] = field(default_factory=dict)
    """Beginnings of files that were read ahead; what lies in them is not asked for again."""

    async def read_ahead(self, path: str, length: int) -> None:
        """Read the beginning of a file, and keep it until it is dropped from `heads`.

        Raises:
            FetchError: as `get_range_async`.
        """
        self.heads[path] = await self.get_range_async(path, start=0, length=length)

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Bytes `start` to `end` (not included) of a file, fewer at its end.

        Raises:
            FetchError: naming host, file and what was tried.
        """
        stop = end if end is not None else start + (length or 0)
        if stop <= len(self.heads.get(path, b"")):
            return self.heads[path][start:stop]
        began, pause, attempt, renew = time.monotonic(), _FIRST_PAUSE_S, 0, False
        while True:
            attempt += 1
            async with self.in_flight:
                fault, body, wait_s = await self._ask(path, start, stop, renew)
            if body is not None:
                return body
            renew = fault == "403" and self.tokens is not None and not renew
            left = GIVE_UP_S - (time.monotonic() - began)
            pause = min(2 * pause, 4.0)
            wait_s = max(wait_s, pause * random.uniform(0.5, 1.0))
            if not (renew or _may_pass(fault)) or wait_s > left:
                self.faults[path] = f"{_name(path)}: {fault} ({attempt} attempt(s))"
                raise FetchError(self.faults[path])
            await asyncio.sleep(0 if renew else wait_s)

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Several ranges of a file; those that lie next to each other come with one request."""
        stops = ends if ends is not None else [a + n for a, n in zip(starts, lengths or (), strict=True)]
        wanted = list(zip(starts, stops, strict=True))
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(wanted):
            if joined and start - joined[-1][1] <= GAP_BYTES:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        bodies = await asyncio.gather(*(self.get_range_async(path, start=a, end=b) for a, b in joined))
        return [_cut(start, stop, joined, bodies) for start, stop in wanted]

    async def _ask(self, path: str, start: int, stop: int, renew: bool) -> tuple[str, bytes | None, float]:
        """One attempt: (fault, body, seconds that the server wants us to wait)."""
        try:
            url = path if self.tokens is None else await self.tokens.sign(self.client, path, renew=renew)
            answer = await self.client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
        except httpx2.TransportError as error:
            return type(error).__name__, None, 0.0
        if answer.status_code not in (200, 206):
            return str(answer.status_code), None, _retry_after(answer)
        body = answer.content if answer.status_code == 206 else answer.content[start:stop]
        expected = min(stop, _total(answer, start, body)) - start
        return ("cut short", None, 0.0) if len(body) < expected else ("", body, 0.0)


def _cut(start: int, stop: int, joined: Sequence[tuple[int, int]], bodies: Sequence[bytes]) -> bytes:
    begin, body = next((a, body) for (a, b), body in zip(joined, bodies, strict=True) if a <= start and stop <= b)
    return body[start - begin : stop - begin]


def new_client() -> httpx2.AsyncClient:
    """A client that keeps connections open and follows redirects."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it writes whole addresses, tokens and all
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
    return httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=True, verify=_ssl_context())


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    """Made once: reading the certificates takes 20 ms."""
    return httpx2.create_ssl_context()


def _may_pass(fault: str) -> bool:
    """Whether another attempt can succeed: not for a file that is not there or not allowed."""
    return not fault.isdigit() or int(fault) in _RETRIED


def _retry_after(answer: httpx2.Response) -> float:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _total(answer: httpx2.Response, start: int, body: bytes) -> int:
    """Length of the whole file, as the answer tells it."""
    told = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(told) if told.isdigit() else start + len(body)


def _name(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}{parts.path}"
