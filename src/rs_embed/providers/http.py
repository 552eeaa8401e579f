"""Byte ranges over HTTP. Signed addresses exist in this module only: they are neither stored nor part of an error."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from yarl import URL

from rs_embed.answers import drips, redirect_fault
from rs_embed.certificates import ssl_context, untrusted
from rs_embed.errors import FetchError
from rs_embed.providers.ranges import JOIN_GAP_BYTES, ByteReader
from rs_embed.retry import HTTP_RANGE, retry_after_s

_MAX_CONNECTIONS = 64
_RENEW_TOKEN_BEFORE_S = 300.0
_MAX_REDIRECTS = 5
_TOKEN_BYTES = 1 << 16  # longest answer of a service that issues tokens
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_READ_AHEAD_BYTES = 1 << 20  # of one answer, before its connection is made to wait


@dataclass(frozen=True, slots=True)
class _Failure:
    """One failed attempt, with its HTTP status or network error, and the pause that the server asks for."""

    reason: str
    is_transient: bool
    retry_after_s: float = 0.0

    def __str__(self) -> str:
        return self.reason + (f", and asked to wait {self.retry_after_s:.0f} s" if self.retry_after_s else "")


class _UnreadableError(Exception):
    """An answer that is not followed or not read."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """The part of an answer that was wanted."""

    body: bytes
    file_bytes: int | None  # size of the file, where the server tells it


async def _get(
    client: aiohttp.ClientSession, url: str, start: int = 0, stop: int = _TOKEN_BYTES, **headers: str
) -> _Answer | _Failure:
    """Make one attempt for the bytes from `start` to `stop`, and read no more than these."""
    wanted = {"Accept-Encoding": "identity", **headers}
    try:
        address = URL(url, encoded=True)  # as it is given: a signature holds for these very letters
        async with client.get(address, headers=wanted, max_redirects=_MAX_REDIRECTS) as response:
            if response.status in (200, 206):
                return await _read(response, start, stop)
            is_transient = response.status in HTTP_RANGE.statuses
            return _Failure(str(response.status), is_transient, retry_after_s(response.headers.get("Retry-After")))
    except _UnreadableError as error:
        return _Failure(str(error), is_transient=False)
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects) as error:
        return _Failure(type(error).__name__, is_transient=False)
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = untrusted(error)
        return _Failure(problem or type(error).__name__, is_transient=problem is None)
    except ValueError:  # of yarl
        return _Failure("not an address", is_transient=False)


async def _read(response: aiohttp.ClientResponse, start: int, stop: int) -> _Answer | _Failure:
    """Read the wanted bytes of an answer: those of a range, or those within a whole file."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _UnreadableError("its answer is compressed, although a plain one was asked for")
    position, size = 0, response.headers.get("Content-Length", "")
    if response.status == 206:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        position, size = (int(told[1]), told[2]) if told else (start, "")
        if position != start:
            return _Failure("another range than the one asked for", is_transient=True)
    announced = sys.maxsize if response.content_length is None else response.content_length
    began_s, received = time.monotonic(), 0
    parts: list[bytes] = []  # joined once: megabytes that grow are copied again and again
    async for chunk in response.content.iter_any():
        parts.append(chunk[max(0, start - position) : max(0, stop - position)])
        position += len(chunk)
        received += len(chunk)
        if position >= stop and received < announced:
            break  # an answer that ends here is read to its end, which keeps the connection
        elapsed_s = time.monotonic() - began_s
        if drips(received, elapsed_s, HTTP_RANGE.deadline_s):
            return _Failure(f"only {received} bytes in {elapsed_s:.0f} s", is_transient=False)
    file_bytes = int(size) if size.isdecimal() else None
    if file_bytes is None and response.status == 200 and position < stop:
        file_bytes = position
    return _Answer(b"".join(parts), file_bytes)


SignedRequest = tuple[str, dict[str, str]]  # address and headers


class Signer(Protocol):
    """A way to make a request that is answered."""

    @property
    def hint(self) -> str:
        """Advice for a refusal, the end of an error."""

    async def sign(self, client: aiohttp.ClientSession, url: str, *, refused: bool) -> SignedRequest | _Failure:
        """Return the request for an address; `refused` is True where the server has answered 403 to the last one."""


@dataclass(slots=True)
class SasTokens:
    """Shared-access tokens of storage containers, reused until shortly before they expire."""

    token_url: str  # address that issues tokens: `<token_url>/<account>/<container>`
    host_suffix: str  # suffix of the hosts whose files need a token
    _known: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)  # token and expiry (epoch seconds)
    _expired: set[str] = field(default_factory=set, repr=False)  # addresses with a signature that was refused

    @property
    def hint(self) -> str:
        """No advice: a token is renewed without the user."""
        return ""

    async def sign(self, client: aiohttp.ClientSession, url: str, *, refused: bool) -> SignedRequest | _Failure:
        """Return the address with a token where its host needs one, a new one where the last was refused."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if not host.endswith(self.host_suffix):
            return url, {}
        if parts.query and url not in self._expired:
            if not refused:
                return url, {}  # the catalog has signed it itself
            self._expired.add(url)
            refused = False
        container = f"{host.partition('.')[0]}/{parts.path.strip('/').partition('/')[0]}"
        token, expiry = self._known.get(container, ("", 0.0))
        if refused or expiry - time.time() < _RENEW_TOKEN_BEFORE_S:
            issued = await self._issue(client, container)
            if isinstance(issued, _Failure):
                return issued
            token, _ = self._known[container] = issued
        return urlunsplit(parts._replace(query=token)), {}

    async def _issue(self, client: aiohttp.ClientSession, container: str) -> tuple[str, float] | _Failure:
        answer = await _get(client, f"{self.token_url}/{container}")
        no_token = f"{urlsplit(self.token_url).hostname} gave no token for {container}"
        if isinstance(answer, _Failure):
            return replace(answer, reason=f"{no_token} ({answer.reason})")
        try:
            document = json.loads(answer.body)
            expiry = datetime.fromisoformat(str(document["msft:expiry"]))
            expiry = expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
            return str(document["token"]), expiry.timestamp()
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            return _Failure(f"{no_token} ({type(error).__name__})", is_transient=False)


@dataclass(slots=True, repr=False)
class RangeReader(ByteReader):
    """Reader of byte ranges over HTTP, by unsigned addresses; ranges that are close together share a request."""

    client: aiohttp.ClientSession
    in_flight: asyncio.Semaphore
    signer: Signer | None = None
    _signing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fetch(self, path: str, start: int, stop: int) -> bytes:
        """Fetch bytes, and ask again while that may help."""
        deadline = time.monotonic() + HTTP_RANGE.deadline_s
        attempt, renew_token = 0, False
        while True:
            attempt += 1
            async with self.in_flight:
                answer = await self._request(path, start, stop, renew_token=renew_token)
            if isinstance(answer, bytes):
                return answer
            renew_token = answer.reason == "403" and self.signer is not None and not renew_token
            pause_s = 0.0 if renew_token else max(answer.retry_after_s, HTTP_RANGE.pause_s(attempt))
            if not (renew_token or answer.is_transient) or time.monotonic() + pause_s > deadline:
                parts, hint = urlsplit(path), self.signer.hint if self.signer and answer.reason == "403" else ""
                self.faults[path] = f"{parts.hostname}{parts.path}: {answer} ({attempt} attempt(s)){hint}"
                raise FetchError(self.faults[path])
            await asyncio.sleep(pause_s)

    async def fetch_several(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Fetch several ranges of a file; ranges that are close together share a request."""
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
        request: SignedRequest | _Failure = (path, {})
        if self.signer is not None:
            async with self._signing:  # one token serves all requests that wait for it
                request = await self.signer.sign(self.client, path, refused=renew_token)
        if isinstance(request, _Failure):
            return request
        url, headers = request
        answer = await _get(self.client, url, start, stop, **headers, Range=f"bytes={start}-{stop - 1}")
        if isinstance(answer, _Failure):
            return answer
        if answer.file_bytes is not None:
            self.sizes[path] = answer.file_bytes
        if len(answer.body) < min(stop, self.sizes.get(path, 0)) - start:
            return _Failure("cut short", is_transient=True)
        return answer.body


def new_client() -> aiohttp.ClientSession:
    """Return a client, within an event loop, that keeps connections open and follows redirects."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_check_redirect)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=ssl_context()),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=HTTP_RANGE.connect_timeout_s, sock_read=HTTP_RANGE.read_timeout_s
        ),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_AHEAD_BYTES,
        trace_configs=[trace],
        trust_env=True,  # proxies
    )


async def _check_redirect(
    session: aiohttp.ClientSession, context: object, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    """Refuse a redirect that leaves HTTP, or HTTPS for HTTP."""
    url = redirect.response.url
    fault = redirect_fault(str(url), str(url.join(URL(redirect.response.headers.get("Location", "")))))
    if fault is not None:
        raise _UnreadableError(fault)
