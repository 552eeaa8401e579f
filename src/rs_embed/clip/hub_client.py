"""The hub's own client, whose answers are bounded in size and time; https://pypi.org/project/huggingface-hub."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import _http

from rs_embed.answers import Bounds, redirect_fault
from rs_embed.background import within
from rs_embed.certificates import ssl_context
from rs_embed.errors import CheckpointError
from rs_embed.retry import HUB

T = TypeVar("T")

NO_HUB = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # the client's, for answers of another shape
_SMALL_BYTES = 1 << 20  # bodies of redirects and errors
_PLAIN_NAME = re.compile(r'[\w."/-]{1,200}')


class UnreadableDownloadError(httpx2.RequestError):
    """Answer that is not followed or not read to its end; the text is a predicate of the hub."""


@dataclass(slots=True)
class _BoundedStream(httpx2.SyncByteStream):
    """Body of an answer, which ends with an error where it leaves its bounds."""

    stream: httpx2.SyncByteStream
    bounds: Bounds
    _began_s: float = field(default_factory=time.monotonic)

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        for chunk in self.stream:
            received += len(chunk)
            if fault := self.bounds.fault(received, self._began_s):
                raise UnreadableDownloadError(fault)
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()


@dataclass(slots=True)
class _Exchange:
    """Limit of the call that is being made, and since when it waits for the beginning of an answer."""

    limit_bytes: int
    asked_s: float | None = None

    @property
    def is_late(self) -> bool:
        """True where the answer should have begun."""
        return self.asked_s is not None and time.monotonic() - self.asked_s > HUB.deadline_s


_exchange: ContextVar[_Exchange] = ContextVar("_exchange")


def ask(call: Callable[[], T], limit_bytes: int, to_error: Callable[[Exception], CheckpointError]) -> T:
    """Return the result of a call of the client, each of whose answers has at most so many bytes; its errors are ours.

    An answer must begin within 30 s, and then come at 8 kB a second.
    """
    _prepare_client()
    exchange = _Exchange(limit_bytes)
    token = _exchange.set(exchange)
    try:
        return within(HUB.deadline_s / 2, call, lambda: exchange.is_late)
    except (errors.HfHubHTTPError, errors.HTTPError, errors.HFValidationError, OSError, *NO_HUB) as error:  # type: ignore[attr-defined]
        raise to_error(error) from None
    finally:
        _exchange.reset(token)


def _prepare_client() -> None:
    """Bound the client, and make it trust the CA bundle of the environment: it reads SSL_CERT_FILE alone itself."""
    constants.HF_HUB_DISABLE_XET = True  # its second way of downloading has connections of its own
    if _http._GLOBAL_CLIENT_FACTORY is _http.default_client_factory:  # a caller's own client stays
        before = [_http.hf_request_event_hook, _start]
        hooks: dict[str, list[Callable[..., Any]]] = {"request": before, "response": [_bound]}
        huggingface_hub.set_client_factory(
            partial(httpx2.Client, event_hooks=hooks, follow_redirects=True, timeout=None, verify=ssl_context())
        )


def _start(request: httpx2.Request) -> None:
    request.headers["Accept-Encoding"] = "identity"
    if (exchange := _exchange.get(None)) is not None:
        exchange.asked_s = time.monotonic()


def _bound(response: httpx2.Response) -> None:
    """Refuse an answer by its headers, or limit its body."""
    if (exchange := _exchange.get(None)) is None:  # a call by somebody else
        return
    exchange.asked_s = None
    fault = redirect_fault(str(response.url), response.headers.get("Location", ""))
    if response.headers.get("Content-Encoding", "identity") != "identity":
        fault = "sends a compressed answer, although a plain one was asked for"
    for name in ("X-Repo-Commit", "ETag", "X-Linked-Etag"):  # names of files in the cache
        value = response.headers.get(name, "")
        if value and (".." in value or not _PLAIN_NAME.fullmatch(value)):
            fault = f"names a file {value[:40]!r}"
    if fault is not None:
        raise UnreadableDownloadError(fault)
    limit = exchange.limit_bytes if response.status_code in (200, 206) else _SMALL_BYTES
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _BoundedStream(response.stream, Bounds(limit, HUB.deadline_s, is_long=True))
