"""Search of a STAC catalog for the scenes around places, each scene once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import requests
from pystac import Link
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from rs_embed.answers import Bounds, UnreadableAnswerError, read_answer
from rs_embed.certificates import TrustingAdapter, untrusted
from rs_embed.errors import ProviderError
from rs_embed.lonlat import parts
from rs_embed.providers.listings import ListingCache, Search
from rs_embed.providers.scenes import Scene
from rs_embed.providers.selection import drop_duplicates
from rs_embed.providers.stac.catalogs import StacCatalog
from rs_embed.providers.stac.items import ODD_ITEM, Locate, scene_of_item
from rs_embed.providers.stac.s3 import s3_address
from rs_embed.retry import STAC_SEARCH, retry_after_s
from rs_embed.sentinel2 import asset_keys

_ITEMS_PER_PAGE = 100  # larger pages make Earth Search fail
_MOST_ITEMS = 50_000  # about twenty years of a degree
_ANSWER_BYTES = 1 << 24  # a page of 100 whole items has about 3 MB
_ANSWER_S = 30.0
_NO_CATALOG = (TypeError, AttributeError, RecursionError)  # the client's, for JSON of another shape or endless depth


class _RefusedError(requests.RequestException):
    """An answer that is an error, with the pause that the server asks for."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(response=response)
        self.status = response.status_code
        self.pause_s = retry_after_s(response.headers.get("Retry-After"))

    def __str__(self) -> str:
        asked = f" and asked to wait {self.pause_s:.0f} s" if self.pause_s else ""
        return f"answered {self.status}{asked}"


class _CatalogConnection(StacApiIO):
    """The client's connection to a catalog, which asks again as `STAC_SEARCH` says."""

    def __init__(self) -> None:
        super().__init__(timeout=(STAC_SEARCH.connect_timeout_s, STAC_SEARCH.read_timeout_s), max_retries=None)
        self.session.mount("https://", TrustingAdapter())
        self.session.hooks["response"] += [_refuse, _read]

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Return the text at an address; the client itself would open any other link as a file of this machine."""
        href = str(source.href if isinstance(source, Link) else source)
        if urlsplit(href).scheme not in ("http", "https"):
            raise UnreadableAnswerError(f"links to {href.partition('?')[0]!r:.80}, which is no address of a catalog")
        return super().read_text(source, *args, **kwargs)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """Return the text of an answer; the last failure is an APIError with its cause as context."""
        deadline = time.monotonic() + STAC_SEARCH.deadline_s
        attempts = 0
        while True:
            try:
                return super().request(href, method, headers, parameters)
            except APIError as error:
                refusal = error.__context__ if isinstance(error.__context__, _RefusedError) else None
                asked_s = refusal.pause_s if refusal else 0.0
                attempts += not asked_s
                pause_s = asked_s or STAC_SEARCH.pause_s(attempts)
                is_final = refusal.status not in STAC_SEARCH.statuses if refusal else untrusted(error) is not None
                is_final |= isinstance(error.__context__, UnreadableAnswerError)
                if is_final or attempts >= STAC_SEARCH.attempts or time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)


def _refuse(response: requests.Response, **_: object) -> None:
    if not response.ok:
        response.close()  # its connection is not used again
        raise _RefusedError(response)


def _read(response: requests.Response, **_: object) -> None:
    read_answer(response, Bounds(_ANSWER_BYTES, _ANSWER_S))


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
            pages = (  # without cloud cover: some servers answer a query they do not support with nothing
                client.search(
                    collections=list(self.catalog.collections),
                    bbox=list(box),
                    datetime=f"{search.temporal.start}T00:00:00Z/{search.temporal.end}T00:00:00Z",
                    limit=_ITEMS_PER_PAGE,
                    fields=_fields(search.bands) if client.conforms_to("FIELDS") else None,
                ).pages_as_dicts()
                for box in parts(search.bounds)  # not every server knows west > east
            )
            locate = _s3_or_http if self.catalog.has_s3_files else file_address
            items = chain.from_iterable(map(_items, pages))
            return drop_duplicates(_scenes(items, locate), self.catalog.collections)
        except (APIError, requests.RequestException, ValueError, KeyError, *_NO_CATALOG) as error:
            raise ProviderError(self._explain(error)) from None

    def _open(self) -> Client:
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # its warnings hold whole addresses
        return Client.open(self.catalog.url, stac_io=_CatalogConnection())

    def _explain(self, error: Exception) -> str:
        cause = error.__context__ or error
        catalog = f"{self.catalog.name}: the catalog {urlsplit(self.catalog.url).hostname}"
        if (distrust := untrusted(cause)) is not None:
            return f"{catalog} cannot be reached: {distrust}"
        refusal = cause if isinstance(cause, _RefusedError) else None
        if refusal and refusal.status not in STAC_SEARCH.statuses:
            return f"{catalog} {refusal}: check its address and its collections {', '.join(self.catalog.collections)}"
        if isinstance(cause, UnreadableAnswerError):
            return f"{catalog} {cause}: check its address"
        return (
            f"{catalog} {refusal or f'cannot be reached or understood ({type(cause).__name__})'}, also when asked "
            "again: try later, check the network or a proxy (HTTPS_PROXY); 'sample' and 'local:<folder>' work without "
            "a network"
        )


def _fields(bands: Iterable[str]) -> dict[str, list[str]]:
    """Return the fields of an item that are read; most of an item is assets of other bands."""
    assets = [f"assets.{key}" for band in sorted(bands) for key in asset_keys(band)]
    return {"include": ["id", "type", "collection", "bbox", "geometry", "properties", *assets], "exclude": ["links"]}


def _items(pages: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the items of all pages, as long as each page has new ones."""
    seen: set[tuple[str, str]] = set()
    for page in pages:
        items = {
            (str(item.get("collection")), str(item.get("id"))): item
            for item in page.get("features") or ()
            if isinstance(item, dict)
        }
        new = {name: item for name, item in items.items() if name not in seen}
        seen |= new.keys()
        yield from new.values()
        if not new and any(link.get("rel") == "next" for link in page.get("links") or ()):
            raise UnreadableAnswerError("links to further pages without further items")
        if len(seen) > _MOST_ITEMS:
            raise UnreadableAnswerError(f"lists over {_MOST_ITEMS:,} items for one degree")


def _scenes(items: Iterable[Mapping[str, Any]], locate: Locate) -> Iterator[Scene]:
    for item in items:
        try:
            yield scene_of_item(item, locate)
        except ODD_ITEM:
            continue  # no time or no position: nothing that a place could need


def file_address(href: str) -> str | None:
    """Return the address of a raster over HTTP as it is given: its query may be a signature. None for another file."""
    parts = urlsplit(href)
    is_raster = parts.scheme in ("http", "https") and parts.path.lower().endswith((".tif", ".tiff", ".jp2"))
    return href if is_raster else None


def _s3_or_http(href: str) -> str | None:
    return file_address(s3_address(href) or href)
