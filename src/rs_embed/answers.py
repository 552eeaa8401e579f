"""Bounds on the answers of servers: their size, their time, and where they lead. The hub client has its own reader."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3

_CHUNK_BYTES = 1 << 16
_LEAST_BYTES_A_S = 8192  # a long answer that comes more slowly is given up once its time has passed


class UnreadableAnswerError(requests.RequestException):
    """Answer to requests that is not followed or not read to its end; the text is a predicate of the server."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one answer."""

    limit_bytes: int
    seconds: float
    is_long: bool = False
    """True for a download, which may take as long as it likes while it comes at 8 kB a second."""

    def fault(self, received: int, began_s: float) -> str | None:
        """Return what is wrong with an answer of which some bytes have come; None while it is within the limits."""
        if received > self.limit_bytes:
            return f"sends an answer of over {_size(self.limit_bytes)}"
        elapsed_s = time.monotonic() - began_s
        if not (drips(received, elapsed_s, self.seconds) if self.is_long else elapsed_s > self.seconds):
            return None
        if self.is_long:
            return f"has sent {received:,} bytes within {elapsed_s:.0f} s"
        return f"has not sent its answer within {self.seconds:.0f} s"


def drips(received: int, elapsed_s: float, seconds: float) -> bool:
    """Tell if a long answer is given up: it comes too slowly once so many seconds have passed."""
    return elapsed_s > seconds and received < elapsed_s * _LEAST_BYTES_A_S


def _size(limit_bytes: int) -> str:
    return f"{limit_bytes >> 20} MB" if limit_bytes >= 1 << 20 else f"{limit_bytes:,} bytes"


def may_redirect(scheme: str, target: str) -> bool:
    """Tell if a redirect from one scheme to another is followed: never to less than HTTPS from HTTPS, nor to a file."""
    return target == "https" or (target == "http" and scheme == "http")


def redirect_fault(url: str, location: str) -> str | None:
    """Return why a redirect is not followed; None for one that is."""
    origin, target = urlsplit(url).scheme, urlsplit(location).scheme
    followed = not target or may_redirect(origin, target)
    return None if followed else f"redirects from {origin} to {target}, which is not followed"


def read_answer(response: requests.Response, bounds: Bounds) -> None:
    """Read an answer in a hook of requests, in bounded time and memory, and refuse a redirect to less than HTTPS."""
    fault = redirect_fault(response.url, response.headers.get("Location", "")) if response.is_redirect else None
    body, began_s = bytearray(), time.monotonic()
    while fault is None:
        try:
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=True)  # without waiting for a whole chunk
        except urllib3.exceptions.DecodeError as error:
            raise requests.exceptions.ContentDecodingError(error) from error
        except urllib3.exceptions.HTTPError as error:  # as requests itself says it
            raise requests.exceptions.ChunkedEncodingError(error) from error
        if not chunk:
            break
        body += chunk
        fault = bounds.fault(len(body), began_s)
    if fault is not None:
        response.close()
        raise UnreadableAnswerError(fault)
    response._content = bytes(body)  # what `Response.content` keeps once it has read everything
