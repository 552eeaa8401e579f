"""Search of a STAC catalog for the scenes around places, each scene once."""

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
from rs_embed.providers.listings import ListingCache, Search
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import drop_duplicates
from rs_embed.providers.stac.catalogs import StacCatalog
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.retry import STAC_SEARCH
from rs_embed.sentinel2 import asset_keys

_ITEMS_PER_PAGE = 100  # larger pages make Earth Search fail
_JITTER_S = 0.3


@dataclass(slots=True)
class Searcher:
    """Client of one catalog; it is opened once, and no search is repeated within minutes."""

    catalog: StacCatalog
    _client: Client | None = None
    _recent: ListingCache = field(default_factory=ListingCache)

    def search(self, search: Search) -> list[Scene]:
        """Return the scenes that match a search, each one once."""
        return self._recent.get(search, self._request)

    def _request(self, search: Search) -> list[Scene]:
        try:
            client = self._client = self._client or self._open()
            found = client.search(  # without cloud cover: some servers answer a query they do not support with nothing
                collections=list(self.catalog.collections),
                bbox=list(search.bounds),
                datetime=f"{search.temporal.start}T00:00:00Z/{search.temporal.end}T00:00:00Z",
                limit=_ITEMS_PER_PAGE,
                fields=_fields(search.bands) if client.conforms_to("FIELDS") else None,
            )
            return drop_duplicates(_scenes(found.items_as_dicts()), self.catalog.collections)
        except (APIError, requests.RequestException, ValueError, KeyError) as error:
            raise ProviderError(self._explain(error)) from None

    def _open(self) -> Client:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings hold whole addresses
        retry = Retry(
            total=STAC_SEARCH.attempts - 1,
            backoff_factor=STAC_SEARCH.first_pause_s,
            backoff_jitter=_JITTER_S,
            status_forcelist=STAC_SEARCH.statuses,
            allowed_methods=None,
            respect_retry_after_header=False,
        )
        timeout_s = STAC_SEARCH.connect_timeout_s, STAC_SEARCH.read_timeout_s
        return Client.open(self.catalog.url, stac_io=StacApiIO(timeout=timeout_s, max_retries=retry))

    def _explain(self, error: Exception) -> str:
        host = urlsplit(self.catalog.url).hostname
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        problem = f"answered {status}" if status else f"cannot be reached or understood ({type(error).__name__})"
        return (
            f"{self.catalog.name}: the catalog {host} {problem}, also when asked again: try later, check the network "
            "or a proxy (HTTPS_PROXY); 'sample' and 'local:<folder>' work without a network"
        )


def _fields(bands: Iterable[str]) -> dict[str, list[str]]:
    """Return the fields of an item that are read; most of an item is assets of other bands."""
    assets = [f"assets.{key}" for band in sorted(bands) for key in asset_keys(band)]
    return {"include": ["id", "type", "collection", "bbox", "geometry", "properties", *assets], "exclude": ["links"]}


def _scenes(items: Iterable[Mapping[str, Any]]) -> Iterator[Scene]:
    for item in items:
        try:
            yield scene_of_item(item, _cog_address)
        except (ProviderError, KeyError, ValueError, TypeError):
            continue  # not a Sentinel-2 item; a catalog may hold others beside them


def _cog_address(href: str) -> str | None:
    """Return the address of a COG over HTTP without its query, which is signed again when it is read."""
    parts = urlsplit(href)
    if parts.scheme not in ("http", "https") or not parts.path.lower().endswith((".tif", ".tiff")):
        return None
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
