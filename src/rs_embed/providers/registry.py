"""From a backend's name to its provider."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rs_embed import settings
from rs_embed.errors import ProviderError
from rs_embed.providers.base import Provider

BACKENDS = (
    "sample",
    "local:<folder or STAC catalog>",
    "earth-search",
    "planetary-computer",
    "gee",
    "stac:<api url>#<collection>",
)

OFFSET_OPTION = "?offset="


def resolve(backend: str | Provider, cache_dir: Path | None = None) -> Provider:
    """The provider that a backend's name means; an object that is a provider is itself.

    Args:
        backend: the name.
        cache_dir: keep patches that come over a network there; `RS_EMBED_CACHE_DIR` when None.

    Raises:
        ProviderError: for a name that is none, with the names that are, or a cache where there is no network.
    """
    if not isinstance(backend, str):
        if isinstance(backend, Provider):
            return backend
        raise ProviderError(f"backend must be a name or an object with name, fetch and plan, got {backend!r}")
    name = settings.default_backend() if backend == "auto" else backend
    if name.partition("?")[0] in ("earth-search", "planetary-computer") or name.startswith("stac:"):
        return _cached(_open_stac(name), cache_dir or settings.cache_dir())
    if name == "gee" or name.startswith("gee:"):
        return _cached(_open_gee(name), cache_dir or settings.cache_dir())
    if cache_dir is not None:
        raise ProviderError(f"backend {name!r} reads no network: leave out the cache {cache_dir}")
    if name == "sample":
        from rs_embed.providers.sample import open_sample

        return open_sample()
    if name.startswith("local:") and len(name) > len("local:"):
        from rs_embed.providers.local import LocalProvider

        return LocalProvider(name.removeprefix("local:"))
    raise ProviderError(_unknown(name, asked=backend))


def _cached(provider: Provider, folder: Path | None) -> Provider:
    if folder is None:
        return provider
    from rs_embed.providers.cache import CachedProvider

    return CachedProvider(provider, folder, settings.cache_limit_bytes())


@lru_cache(maxsize=8)
def _open_stac(name: str) -> Provider:
    """One provider a catalog: it remembers what it searched, its tokens, and what it learnt of scenes."""
    from rs_embed.providers.stac.provider import StacProvider

    catalog, _, option = name.partition(OFFSET_OPTION)
    if OFFSET_OPTION in name and option not in ("item", "pixels"):
        raise ProviderError(f"backend {name!r}: offset must be 'item' or 'pixels', got {option!r}")
    return StacProvider(catalog, offset="pixels" if option == "pixels" else "item")


@lru_cache(maxsize=8)
def _open_gee(name: str) -> Provider:
    """One provider a project: it remembers what it listed."""
    from rs_embed.providers.gee.provider import EarthEngineProvider

    return EarthEngineProvider(name.removeprefix("gee").removeprefix(":") or None)


def _unknown(name: str, asked: str) -> str:
    meaning = f" (what 'auto' means; {settings.BACKEND} changes it)" if asked == "auto" else ""
    return f"unknown backend {name!r}{meaning}; usable: {', '.join(BACKENDS)}"
