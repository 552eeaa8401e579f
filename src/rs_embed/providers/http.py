"""Byte ranges over HTTP. Signed addresses exist in this module only: they are neither stored nor part of an error."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import httpx2

from rs_embed.certificates import ssl_context, untrusted
from rs_embed.errors import ProviderError
from rs_embed.retry import HTTP_RANGE, retry_after_s

_MAX_CONNECTIONS = 64
_RENEW_TOKEN_BEFORE_S = 300.0
JOIN_GAP_BYTES = 4096  # largest gap between two ranges that are fetched with one request


class FetchError(ProviderError):
    """A request that failed; its text names the host and the file, never the query of an address."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """One failed attempt, with its HTTP status or network error, and the pause that the server asks for."""

    reason: str
    is_transient: bool
    retry_after_s: float = 0.0

    def __str__(self) -> str:
        return self.reason + (f", and asked to wait {self.retry_after_s:.0f} s" if self.retry_after_s else "")


async def _get(client: httpx2.AsyncClient, url: str, **headers: str) -> httpx2.Response | _Failure:
    """Make one attempt."""
    try:
        response = await client.get(url, headers=headers)
    except httpx2.TransportError as error:
        problem = untrusted(error)
        return _Failure(problem or type(error).__name__, is_transient=problem is None)
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        return _Failure(type(error).__name__, is_transient=False)
    if response.status_code in (200, 206):
        return response
    is_transient = response.status_code in HTTP_RANGE.statuses
    return _Failure(str(response.status_code), is_transient, retry_after_s(response.headers.get("Retry-After")))


@dataclass(slots=True)
class SasTokens:
    """Shared-access tokens of storage containers, reused until shortly before they expire."""

    token_url: str  # address that issues tokens: `<token_url>/<account>/<container>`
    host_suffix: str  # suffix of the hosts whose files need a token
    _known: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)  # token and expiry (epoch seconds)
    _expired: set[str] = field(default_factory=set, repr=False)  # addresses with a signature that was refused

    async def sign(self, client: httpx2.AsyncClient, url: str, *, refused: bool) -> str | _Failure:
        """Return the address with a token where its host needs one, a new one where the last was refused."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host.endswith(self.host_suffix):
            return url
        if parts.query and url not in self._expired:
            if not refused:
                return url  # the catalog has signed it itself
            self._expired.add(url)
            refused = False
        container = f"{host.partition('.')[0]}/{parts.path.strip('/').partition('/')[0]}"
        token, expiry = self._known.get(container, ("", 0.0))
        if refused or expiry - time.time() < _RENEW_TOKEN_BEFORE_S:
            issued = await self._issue(client, container)
            if isinstance(issued, _Failure):
                return issued
            token, _ = self._known[container] = issued
        return urlunsplit(parts._replace(query=token))

    async def _issue(self, client: httpx2.AsyncClient, container: str) -> tuple[str, float] | _Failure:
        answer = await _get(client, f"{self.token_url}/{container}")
        no_token = f"{urlsplit(self.token_url).hostname} gave no token for {container}"
        if isinstance(answer, _Failure):
            return replace(answer, reason=f"{no_token} ({answer.reason})")
        try:
            document = answer.json()
            expiry = datetime.fromisoformat(str(document["msft:expiry"]))
            expiry = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
            return str(document["token"]), expiry.timestamp()
        except (KeyError, TypeError, ValueError) as error:
            return _Failure(f"{no_token} ({type(error).__name__})", is_transient=False)


@dataclass(slots=True, repr=False)  # async-tiff asks for the repr again and again
class RangeReader:
    """Reader of byte ranges, by unsigned addresses: an obspec `GetRangeAsync` and `GetRangesAsync` for async-tiff."""

    client: httpx2.AsyncClient
    in_flight: asyncio.Semaphore
    tokens: SasTokens | None = None
    faults: dict[str, str] = field(default_factory=dict)  # by address, since async-tiff replaces our errors by its own
    beginnings: dict[str, bytes] = field(default_factory=dict)  # of files, read ahead; ranges inside cause no request
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file that the server has told
    _signing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def get_range_async(
        self, path: str, *, start: int, end: int | None = None, length: int | None = None
    ) -> bytes:
        """Fetch the bytes from `start` to `end` (exclusive) of a file, fewer at its end."""
        stop = end if end is not None else start + (length or 0)
        if min(stop, self.sizes.get(path, stop)) <= len(self.beginnings.get(path, b"")):
            return self.beginnings[path][start:stop]
        deadline = time.monotonic() + HTTP_RANGE.deadline_s
        attempt, renew_token = 0, False
        while True:
            attempt += 1
            async with self.in_flight:
                answer = await self._request(path, start, stop, renew_token=renew_token)
            if isinstance(answer, bytes):
                return answer
            renew_token = answer.reason == "403" and self.tokens is not None and not renew_token
            pause_s = 0.0 if renew_token else max(answer.retry_after_s, HTTP_RANGE.pause_s(attempt))
            if not (renew_token or answer.is_transient) or time.monotonic() + pause_s > deadline:
                parts = urlsplit(path)
                self.faults[path] = f"{parts.hostname}{parts.path}: {answer} ({attempt} attempt(s))"
                raise FetchError(self.faults[path])
            await asyncio.sleep(pause_s)

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[bytes]:
        """Fetch several ranges of a file; ranges that are close together share a request."""
        stops = ends if ends is not None else [a + n for a, n in zip(starts, lengths or (), strict=True)]
        ranges = list(zip(starts, stops, strict=True))
        joined: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if joined and start - joined[-1][1] <= JOIN_GAP_BYTES:
                joined[-1] = joined[-1][0], max(stop, joined[-1][1])
            else:
                joined.append((start, stop))
        bodies = await asyncio.gather(*(self.get_range_async(path, start=a, end=b) for a, b in joined))
        begins = [begin for begin, _ in joined]
        found = [(a, b, bisect_right(begins, a) - 1) for a, b in ranges]
        return [bodies[i][a - begins[i] : b - begins[i]] for a, b, i in found]

    async def _request(self, path: str, start: int, stop: int, *, renew_token: bool) -> bytes | _Failure:
        """Make one attempt."""
        url: str | _Failure = path
        if self.tokens is not None:
            async with self._signing:  # one token serves all requests that wait for it
                url = await self.tokens.sign(self.client, path, refused=renew_token)
        if isinstance(url, _Failure):
            return url
        response = await _get(self.client, url, Range=f"bytes={start}-{stop - 1}")
        if isinstance(response, _Failure):
            return response
        body = response.content if response.status_code == 206 else response.content[start:stop]
        file_bytes = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 200:
            file_bytes = str(len(response.content))
        if file_bytes.isdigit():
            self.sizes[path] = int(file_bytes)
        if len(body) < min(stop, self.sizes.get(path, 0)) - start:
            return _Failure("cut short", is_transient=True)
        return body


def new_client() -> httpx2.AsyncClient:
    """Return a client that keeps connections open and follows redirects."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs whole addresses, tokens included
    timeout = httpx2.Timeout(HTTP_RANGE.read_timeout_s, connect=HTTP_RANGE.connect_timeout_s)
    limits = httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
    return httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=True, verify=ssl_context())
