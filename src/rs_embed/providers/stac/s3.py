"""Files in the S3 storage of Copernicus Data Space: their addresses, and requests signed with the user's keys."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from hashlib import sha256
from urllib.parse import quote, urlsplit

import aiohttp

from rs_embed import settings
from rs_embed.errors import ProviderError
from rs_embed.providers.http import SignedRequest

_REGION = "default"  # https://documentation.dataspace.copernicus.eu/APIs/S3.html
_UNRESERVED = "-._~"


@dataclass(frozen=True, slots=True)
class S3Signer:
    """Signer of requests to the storage."""

    keys: settings.S3Keys

    @property
    def hint(self) -> str:
        """Advice for a refusal, the end of an error."""
        return ": check CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY, and this machine's clock"

    async def sign(self, client: aiohttp.ClientSession, url: str, *, refused: bool) -> SignedRequest:
        """Return the address, with a signature where it lies in the storage."""
        is_own = url.startswith(f"{_storage()}/")
        return url, signed_headers(url, self.keys, datetime.now(UTC), _REGION) if is_own else {}


def new_signer() -> S3Signer:
    """Return the signer with the keys of the environment; without keys a ProviderError."""
    keys = settings.data_space_keys()
    if keys is None:
        raise ProviderError(
            "cdse: files of Copernicus Data Space are read with S3 keys of your own, and none are set: make them at "
            "https://eodata-s3keysmanager.dataspace.copernicus.eu (a free account is enough) and set "
            "CDSE_S3_ACCESS_KEY and CDSE_S3_SECRET_KEY"
        )
    return S3Signer(keys)


def s3_address(href: str) -> str | None:
    """Return the HTTP address of `s3://bucket/key`; None for another address."""
    parts = urlsplit(href)
    return f"{_storage()}/{parts.netloc}{quote(parts.path, safe='/' + _UNRESERVED)}" if parts.scheme == "s3" else None


def _storage() -> str:
    endpoint = settings.data_space_endpoint()
    return endpoint if "://" in endpoint else f"https://{endpoint}"


def signed_headers(url: str, keys: settings.S3Keys, at: datetime, region: str) -> dict[str, str]:
    """Return the headers of a GET request, by AWS Signature Version 4.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
    """
    parts, moment = urlsplit(url), at.strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": parts.netloc, "x-amz-content-sha256": sha256(b"").hexdigest(), "x-amz-date": moment}
    if keys.session_token:
        headers["x-amz-security-token"] = keys.session_token
    names, scope = ";".join(headers), f"{moment[:8]}/{region}/s3/aws4_request"
    lines = [f"{name}:{value}" for name, value in headers.items()]
    request = "\n".join(["GET", parts.path, "", *lines, "", names, headers["x-amz-content-sha256"]])
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, sha256(request.encode()).hexdigest()])
    signature = _hmac(reduce(_hmac, scope.split("/"), f"AWS4{keys.secret_key}".encode()), text).hex()
    credential = f"Credential={keys.access_key}/{scope}"
    authorization = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return {**headers, "authorization": authorization}


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
