"""Guards of the service: hosts it answers for, pages that may write, and connections limited in number and time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rs_embed.errors import visible

CONNECTIONS = 200
"""Connections from which on requests are answered with 503; twice as many are not accepted at all."""
_BODY_BYTES = 65_536
_IDLE_S = 10.0
"""Seconds after which a connection is closed whose client neither sent a request nor read of its response."""


class HostCheck:
    """Middleware that refuses requests for a host of another name, and writing by pages from elsewhere.

    A page from elsewhere can let its own name point at this machine (DNS rebinding), and its scripts could then read
    every place. The name in the request gives it away. An address, `localhost` and the machine's own name are fine.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":  # the start and the end of the service
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            named = visible(host)[:100]
            refusal = 400, f"this service does not answer for the host {named!r}: start it with --allow-host NAME"
        elif scope["method"] == "POST" and origin is not None and origin not in _origins(host):
            named = visible(origin)[:100]
            refusal = 403, f"a page of {named!r} must not write here: open this service's own page"
        elif scope["method"] == "POST" and not _is_short(headers):
            refusal = 413, f"a request says its length, {_BODY_BYTES:,} bytes at most: mark fewer places"
        else:
            await self._app(scope, receive, send)
            return
        status, detail = refusal
        await JSONResponse({"detail": detail}, status_code=status)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self._names or "*" in self._names or _is_address(name)


def _origins(host: str) -> tuple[str, str]:
    """Return the origins of a page that this service itself sent, directly or through a proxy with a certificate."""
    return f"http://{host}", f"https://{host}"


def _is_short(headers: Headers) -> bool:
    """Return True for a body that may be read into memory: one that comes whole, and whose length is known."""
    length = headers.get("content-length", "")
    return length.isdecimal() and int(length[:20]) <= _BODY_BYTES and "transfer-encoding" not in headers


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class BoundedConnection(H11Protocol):
    """HTTP connection that is given up once its client does nothing for a while."""

    _timer: asyncio.TimerHandle | None = None
    _seen: tuple[object, int] | None = None

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > 2 * CONNECTIONS:
            transport.abort()
        else:
            self._timer = self.loop.call_later(_IDLE_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection that has ended."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        """Close a connection on which nothing has moved since the last check, unless a response is being computed."""
        unread = self.transport.get_write_buffer_size()
        computing = self.cycle is not None and not self.cycle.response_complete and not unread
        now = self.cycle, unread
        if now == self._seen and not computing:
            self.transport.abort()
            return
        self._seen = now
        self._timer = self.loop.call_later(_IDLE_S, self._check)
