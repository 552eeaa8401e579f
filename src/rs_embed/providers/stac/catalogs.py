"""STAC catalogs: the known ones, and any other API by its URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit, urlunsplit

from rs_embed.errors import ProviderError


@dataclass(frozen=True, slots=True, kw_only=True)
class StacCatalog:
    """One STAC API and the collections that are searched in it."""

    name: str
    url: str = field(repr=False)  # the API's landing page; repr leaves it out, since it may hold a credential
    collections: tuple[str, ...]  # of Sentinel-2 L2A; a scene that is in several is taken from the first one
    sas_token_url: str | None = None  # issues tokens at `<sas_token_url>/<account>/<container>`; None for public files
    signed_hosts: str = ".blob.core.windows.net"  # suffix of the hosts whose files need a token
    has_s3_files: bool = False  # True where files have s3 addresses, which are read with keys of the user


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
DATA_SPACE = StacCatalog(
    name="cdse",
    url="https://stac.dataspace.copernicus.eu/v1",
    collections=("sentinel-2-l2a",),
    has_s3_files=True,
)
CATALOGS = {catalog.name: catalog for catalog in (EARTH_SEARCH, PLANETARY_COMPUTER, DATA_SPACE)}


def find_catalog(catalog: str, collection: str | Sequence[str] | None = None) -> StacCatalog:
    """Return a known catalog by its name, or the catalog at an API's URL or `"stac:<api url>#<collection>"`."""
    collections = (collection,) if isinstance(collection, str) else tuple(collection or ())
    if catalog in CATALOGS:
        known = CATALOGS[catalog]
        return replace(known, collections=collections or known.collections)
    url, _, fragment = catalog.removeprefix("stac:").partition("#")
    collections = collections or ((fragment,) if fragment else ())
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not collections:
        raise ProviderError(
            f"catalog {_without_credentials(url)!r} must be {', '.join(CATALOGS)}, or an http or https address with a "
            "collection, such as stac:<api url>#<collection>"
        )
    name = f"stac:{_without_credentials(url)}#{','.join(collections)}"
    return StacCatalog(name=name, url=url, collections=collections)


def _without_credentials(url: str) -> str:
    """Return a URL without user, password, query and fragment."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname or ''}{port}", parts.path, "", ""))
