"""The table of backends: resolves a name to its provider."""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path

from rs_embed import settings
from rs_embed.errors import ProviderError, naming_missing
from rs_embed.providers.base import Provider

BACKENDS = (
    "sample",
    "local:<folder or STAC catalog>",
    "earth-search",
    "planetary-computer",
    "cdse",
    "gee",
    "stac:<api url>#<collection>",
)
_OFFSET_OPTION = "?offset="


@naming_missing()
def resolve(backend: str | Provider, cache_dir: Path | None = None) -> Provider:
    """Return the provider of one of `BACKENDS` or `"auto"`, with a cache for patches fetched over a network."""
    if not isinstance(backend, str):
        if isinstance(backend, Provider):
            return backend
        raise ProviderError(f"backend must be a name or an object with name, fetch and plan, got {backend!r}")
    name = settings.default_backend() if backend == "auto" else backend
    if name.partition("?")[0] in ("earth-search", "planetary-computer", "cdse") or name.startswith("stac:"):
        return _cached(_open_stac(name), cache_dir or settings.cache_dir())
    if name.partition(":")[0] == "gee":
        return _cached(_open_gee(name), cache_dir or settings.cache_dir())
    if cache_dir is not None:
        raise ProviderError(f"backend {name!r} reads no network: leave out the cache {cache_dir}")
    if name == "sample":
        from rs_embed.providers.sample import open_sample

        return open_sample()
    if name.startswith("local:") and len(name) > len("local:"):
        from rs_embed.providers.local.provider import LocalProvider

        return LocalProvider(name.removeprefix("local:"))
    meaning = f" (what 'auto' means; {settings.BACKEND} changes it)" if backend == "auto" else ""
    guess = f" (did you mean {close!r}?)" if (close := _guess(name)) else ""
    raise ProviderError(f"unknown backend {name!r}{meaning}{guess}; usable: {', '.join(BACKENDS)}")


def _guess(name: str) -> str | None:
    """Return the backend that a wrong name may mean: a folder, the address of a catalog, or a name with a slip."""
    if name and Path(name).expanduser().exists():
        return f"local:{name}"
    if name.startswith(("http://", "https://")):
        return f"stac:{name}" if "#" in name else f"stac:{name}#<collection>"
    by_word = {known.partition(":")[0]: known for known in BACKENDS}
    close = difflib.get_close_matches(name.lower().replace("_", "-").rstrip(":"), by_word, n=1)
    return by_word[close[0]] if close else None


def _cached(provider: Provider, folder: Path | None) -> Provider:
    if folder is None:
        return provider
    from rs_embed.providers.cache import CachedProvider

    return CachedProvider(provider, folder, settings.cache_limit_bytes())


@lru_cache(maxsize=8)
def _open_stac(name: str) -> Provider:
    """Return one provider per catalog, which remembers its searches, tokens and checked offsets."""
    from rs_embed.providers.stac.provider import StacProvider

    catalog, _, option = name.partition(_OFFSET_OPTION)
    if _OFFSET_OPTION in name and option not in ("item", "pixels"):
        raise ProviderError(f"backend {name!r}: offset must be 'item' or 'pixels', got {option!r}")
    return StacProvider(catalog, offset="pixels" if option == "pixels" else "item")


@lru_cache(maxsize=8)
def _open_gee(name: str) -> Provider:
    """Return one provider per project, which remembers its listings."""
    from rs_embed.providers.gee.provider import EarthEngineProvider

    return EarthEngineProvider(name.removeprefix("gee").removeprefix(":") or None)
