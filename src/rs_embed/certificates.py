"""Certificates: one CA bundle for every client, and words for a certificate that is not trusted.

`settings.ca_bundle` decides. httpx2 and aiohttp take `ssl_context()`, requests a `TrustingAdapter`.
"""

from __future__ import annotations

import re
import ssl
from functools import lru_cache
from typing import Any

import httpx2
import requests
from requests.adapters import HTTPAdapter

from rs_embed import settings
from rs_embed.errors import RSEmbedError

_UNTRUSTED = re.compile(r"certificate verify failed:?\s*([^(\n]*)|SSL certificate problem:\s*([^(\n]*)", re.IGNORECASE)


def ssl_context() -> ssl.SSLContext:
    """Return the context of httpx2's and aiohttp's clients; reading certificates takes 20 ms, so it is kept."""
    return _ssl_context(settings.ca_bundle())


@lru_cache(maxsize=4)
def _ssl_context(bundle: settings.CaBundle | None) -> ssl.SSLContext:
    if bundle is None:
        return httpx2.create_ssl_context()
    try:
        if bundle.path.is_dir():
            return ssl.create_default_context(capath=bundle.path)
        return ssl.create_default_context(cafile=bundle.path)
    except (OSError, ValueError) as error:
        raise RSEmbedError(
            f"{bundle.variable}={str(bundle.path)!r} holds no certificate that can be read ({error}): name a file of "
            "certificates (PEM), or unset it"
        ) from None


class TrustingAdapter(HTTPAdapter):
    """Adapter of a requests session, which knows only two of the variables itself."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request, and check the server's certificate against the CA bundle."""
        bundle = settings.ca_bundle()
        trusted = str(bundle.path) if bundle and verify else verify
        return super().send(request, stream, timeout, trusted, cert, proxies)


def untrusted(error: object) -> str | None:
    """Return the fault of a certificate that an error of a client tells, with the remedy; None for other errors."""
    match = _UNTRUSTED.search(str(error))
    if match is None:
        return None
    reason = (match[1] or match[2] or "unknown authority").strip()
    bundle = settings.ca_bundle()
    checked = f" by {bundle.variable}={str(bundle.path)!r}" if bundle else ""
    variable = bundle.variable if bundle else "SSL_CERT_FILE"
    return f"its certificate is not trusted{checked} ({reason}): set {variable} to the CA bundle (PEM) of your network"
