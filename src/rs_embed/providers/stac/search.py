"""STAC catalogs: which there are, and the scenes that they have around a place, each one once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from urllib3 import Retry

from rs_embed.errors import ProviderError
from rs_embed.providers.archive import Scene
from rs_embed.providers.duplicates import unique
from rs_embed.providers.http import SasTokens
from rs_embed.providers.listings import Bounds, Listing, Recent
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.sentinel2 import asset_keys
from rs_embed.specs import TemporalSpec

_PAGE = 100
"""Items a page; larger pages crash Earth Search."""
_TIMEOUT_S = (4.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StacCatalog:
    """One STAC API."""

    name: str
    """How metadata and errors call it."""
    url: str
    collections: tuple[str, ...]
    """Where a scene is in several, the first one counts."""
    sas_token_url: str | None = None
    """Where read tokens are asked for; None where files are open."""
    signed_hosts: str = ".blob.core.windows.net"
    """Ending of the hosts that want a token."""

    def tokens(self, known: dict[str, tuple[str, float]]) -> SasTokens | None:
        """Tokens for one sweep, with those that are known already; None where none are needed."""
        return SasTokens(self.sas_token_url, self.signed_hosts, known) if self.sas_token_url else None


EARTH_SEARCH = StacCatalog(
    name="earth-search",
    url="https://earth-search.aws.element84.com/v1",
    collections=("sentinel-2-c1-l2a", "sentinel-2-l2a"),
)
PLANETARY_COMPUTER = StacCatalog(
    name="planetary-computer",
    url="https://planetarycomputer.microsoft.com/api/stac/v1",
    collections=("sentinel-2-l2a",),
    sas_token_url="https://planetarycomputer.microsoft.com/api/sas/v1/token",
)
CATALOGS = {catalog.name: catalog for catalog in (EARTH_SEARCH, PLANETARY_COMPUTER)}


def parse_backend(backend: str) -> StacCatalog:
    """`"stac:<api url>#<collection>"` as a catalog; what could be a credential in the address stays out of its name.

    Raises:
        ProviderError: when it is not of that form.
    """
    url, _, collection = backend.removeprefix("stac:").partition("#")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not collection:
        raise ProviderError(f"backend {_shown(url)!r} must be stac:<api url>#<collection>, with http or https")
    return StacCatalog(name=f"stac:{_shown(url)}#{collection}", url=url, collections=(collection,))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname or ''}{port}", parts.path, "", ""))


@dataclass(slots=True)
class Searcher:
    """Searches one catalog; opens it once, and asks nothing twice within minutes."""

    catalog: StacCatalog
    _client: Client | None = None
    _recent: Recent = field(default_factory=Recent)

    def search(self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str]) -> list[Scene]:
        """All scenes of the catalog's collections in a box and time range, each one once.

        Clouds are filtered later, here: the error of an empty answer says how many scenes the filter took, and
        some servers answer a query that they do not know with nothing.

        Raises:
            ProviderError: when the catalog cannot be reached or understood.
        """
        known = self._recent.find(bounds, temporal, bands)
        if known is not None:
            return known
        return self._recent.keep(Listing(bounds, temporal, bands, self._ask(bounds, temporal, bands)))

    def _ask(self, bounds: Bounds, temporal: TemporalSpec, bands: frozenset[str]) -> list[Scene]:
        try:
            client = self._client = self._client or self._open()
            found = client.search(
                collections=list(self.catalog.collections),
                bbox=list(bounds),
                datetime=f"{temporal.start}T00:00:00Z/{temporal.end}T00:00:00Z",
                limit=_PAGE,
                fields=_fields(bands) if client.conforms_to("FIELDS") else None,
            )
            return unique(_scenes(found.items_as_dicts()), self.catalog.collections)
        except (APIError, requests.RequestException, ValueError, KeyError) as error:
            raise ProviderError(self._fault(error)) from None

    def _open(self) -> Client:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of retries with whole addresses
        retry = Retry(
            total=2,
            backoff_factor=0.5,
            backoff_jitter=0.3,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            respect_retry_after_header=False,
        )
        return Client.open(self.catalog.url, stac_io=StacApiIO(timeout=_TIMEOUT_S, max_retries=retry))

    def _fault(self, error: Exception) -> str:
        host = urlsplit(self.catalog.url).hostname
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        what = f"answered {status}" if status else f"cannot be reached or understood ({type(error).__name__})"
        return (
            f"{self.catalog.name}: the catalog {host} {what}, also when asked again: try later, check the network or a "
            "proxy (HTTPS_PROXY); 'sample' and 'local:<folder>' work without a network"
        )


def _fields(bands: Iterable[str]) -> dict[str, list[str]]:
    """Only what is read of an item: it is mostly assets of other bands."""
    assets = [f"assets.{key}" for band in sorted(bands) for key in asset_keys(band)]
    return {"include": ["id", "type", "collection", "bbox", "geometry", "properties", *assets], "exclude": ["links"]}


def _scenes(items: Iterable[Mapping[str, Any]]) -> Iterator[Scene]:
    for item in items:
        try:
            yield scene_of_item(item, _cog_address)
        except (ProviderError, KeyError, ValueError, TypeError):
            continue  # not a Sentinel-2 item; a catalog may hold others beside them


def _cog_address(href: str) -> str | None:
    """An address that can be read by ranges, without a query: what is signed is signed when it is read."""
    parts = urlsplit(href)
    if parts.scheme not in ("http", "https") or not parts.path.lower().endswith((".tif", ".tiff")):
        return None
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
