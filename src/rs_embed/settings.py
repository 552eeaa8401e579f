"""All environment variables of the library, read when they are used."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from rs_embed.errors import RSEmbedError

BACKEND = "RS_EMBED_BACKEND"
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True, slots=True)
class Count:
    """Environment variable that holds a whole number of at least 1."""

    variable: str
    default: int

    def __call__(self) -> int:
        """Return its value, or the default where it is not set."""
        text = os.environ.get(self.variable, "").strip()
        try:
            value = int(text) if text else self.default
        except ValueError:
            value = 0
        if value < 1:
            raise RSEmbedError(
                f"{self.variable}={text!r} is not a whole number of at least 1; unset it for {self.default}"
            )
        return value


fetch_workers = Count("RS_EMBED_REMOTECLIP_FETCH_WORKERS", 8)
"""Number of requests that a provider may have in flight."""
faults_in_a_row = Count("RS_EMBED_STOP_AFTER_FAULTS", 32)
"""Number of places in a row that may fail with a fault of their source before an export stops."""
_cache_gb = Count("RS_EMBED_CACHE_GB", 20)


def batch_size(device_type: str, images: int = 0) -> int:
    """Return the number of chips in one forward pass (default 8 on a CPU, 64 on CUDA, there 256 for a large job)."""
    default = 8 if device_type != "cuda" else 256 if images >= 1024 else 64
    return Count("RS_EMBED_REMOTECLIP_BATCH_SIZE", default)()


def default_backend() -> str:
    """Return the backend that `"auto"` stands for."""
    return os.environ.get(BACKEND, "").strip() or "earth-search"


def cache_dir() -> Path | None:
    """Return the folder where fetched patches are kept; None when they are not kept."""
    value = os.environ.get("RS_EMBED_CACHE_DIR", "").strip()
    return Path(value).expanduser() if value else None


def cache_limit_bytes() -> int:
    """Return the size to which that folder may grow, in bytes (default 20 GB)."""
    return _cache_gb() * 10**9


@dataclass(frozen=True, slots=True)
class S3Keys:
    """Access to an S3 storage."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)  # empty for keys that last


def data_space_keys() -> S3Keys | None:
    """Return the keys for Copernicus Data Space, its own variables before those of AWS; None where none are set."""
    for access, secret, token in (
        ("CDSE_S3_ACCESS_KEY", "CDSE_S3_SECRET_KEY", ""),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ):
        keys = [os.environ.get(variable, "").strip() for variable in (access, secret)]
        if all(keys):
            return S3Keys(keys[0], keys[1], os.environ.get(token, "").strip())
        if any(keys):
            raise RSEmbedError(f"{access} and {secret} belong together, and only one of them is set: set both")
    return None


def data_space_endpoint() -> str:
    """Return the host of Copernicus Data Space's storage, or an address with its scheme."""
    return os.environ.get("CDSE_S3_ENDPOINT", "").strip().rstrip("/") or "eodata.dataspace.copernicus.eu"


@dataclass(frozen=True, slots=True)
class CaBundle:
    """File (PEM) or folder of the certificate authorities to trust, and the variable that names it."""

    variable: str
    path: Path


def ca_bundle() -> CaBundle | None:
    """Return the certificate authorities that hold for every connection; None for those that each client has.

    Each client reads another one of these variables, so that none of them would hold for all.
    """
    for variable in _CA_VARIABLES:
        if value := os.environ.get(variable, "").strip():
            path = Path(value).expanduser()
            if not path.exists():
                raise RSEmbedError(
                    f"{variable}={value!r} does not exist: name a file of certificates (PEM), or unset it"
                )
            return CaBundle(variable, path)
    return None


def https_proxy() -> str | None:
    """Return host and port of the proxy for HTTPS, without its password; None where there is none."""
    parts = urlsplit(getproxies().get("https", ""))
    return parts.netloc.rpartition("@")[2] or parts.path or None


def hub_cache_dir() -> Path | None:
    """Return the hub client's cache folder, or None for the client's default.

    The client no longer reads `HUGGINGFACE_HOME`, an old name, so we always pass the folder.
    """
    for variable, child in (
        ("HF_HUB_CACHE", None),
        ("HUGGINGFACE_HUB_CACHE", None),
        ("HF_HOME", "hub"),
        ("HUGGINGFACE_HOME", "hub"),
    ):
        value = os.environ.get(variable, "").strip()
        if value:
            folder = Path(value).expanduser()
            return folder / child if child else folder
    return None
