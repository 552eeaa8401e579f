"""Errors of the library. Each message has the wrong value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

DISTRIBUTION = "rs-embed-remoteclip"


def visible(text: str) -> str:
    """Return a text with every control character spelled out, so that it cannot steer a terminal or reorder a line.

    Ids, names and other foreign strings go through here before they are printed. Zero-width and direction marks and
    lone surrogates count as control characters too; a line break becomes `\\n`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else c.encode("unicode_escape").decode() for c in text)


_SPACES = frozenset("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000")
"""Spaces other than the usual one, which Python does not call printable."""


_LINE_BREAK = re.compile(r"\s*\n\s*")


class RSEmbedError(Exception):
    """Base of all errors of this library.

    Attributes:
        results: set by a batch that stopped early: one slot a request, in order; a finished
            place holds its `Embedding`, a failed one its `EmbeddingFailure`, the others `None`.

    Examples:
        >>> from rs_embed import RSEmbedError, open_dataset
        >>> try:
        ...     open_dataset("no-such-folder")
        ... except RSEmbedError as error:
        ...     print(error)
        no-such-folder is no dataset: it has no .rs-embed/manifest.json
    """

    results: Sequence[object] | None = None

    def __str__(self) -> str:
        """Return the message in one line; what it quotes cannot steer a terminal."""
        return visible(_LINE_BREAK.sub(" ", super().__str__()))


class SpecError(RSEmbedError, ValueError):
    """Invalid place, time range, sensor or output.

    Examples:
        >>> from rs_embed import PointBuffer
        >>> PointBuffer(13.72, 48.22, buffer_m=-1)
        Traceback (most recent call last):
        rs_embed.errors.SpecError: buffer_m must be greater than 0 metres, got -1 (it is half the side)
    """


class ProviderError(RSEmbedError):
    """Imagery that cannot be fetched.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, fetch_patch
        >>> june = TemporalSpec.range("2022-06-01", "2022-07-01")
        >>> fetch_patch(PointBuffer(13.72, 48.22, 600), june, backend="local:no-such-folder")
        Traceback (most recent call last):
        rs_embed.errors.ProviderError: local:no-such-folder: no such folder or STAC file
    """


class NoImageryError(ProviderError):
    """Place and time range for which the source has no valid pixel.

    Examples:
        >>> from rs_embed import NoImageryError, PointBuffer, TemporalSpec, fetch_patch
        >>> try:
        ...     fetch_patch(PointBuffer(0, 0, 600), TemporalSpec.range("2022-06-01", "2022-07-01"), backend="sample")
        ... except NoImageryError as error:
        ...     print(error)
        sample: ...
    """


class FetchError(ProviderError):
    """File that cannot be read; the text names the host and the file, never the query of an address."""


class UnusableImageryError(FetchError):
    """Imagery that was reached and cannot be used: asking again gives the same."""


class ModelError(RSEmbedError):
    """Request that the model cannot serve.

    Examples:
        >>> from rs_embed import PointBuffer, get_embedding
        >>> get_embedding("clip_eurosat_s2rgb", spatial=PointBuffer(13.72, 48.22, 600), backend="sample")
        Traceback (most recent call last):
        rs_embed.errors.ModelError: clip_eurosat_s2rgb needs temporal=TemporalSpec.range(...), got no temporal
    """


class CheckpointError(ModelError):
    """Weights that are missing, incomplete, unsafe or of another network.

    Examples:
        >>> from rs_embed import embed_text
        >>> embed_text("clip_eurosat_s2rgb", "lake", checkpoint="/no/such/file.safetensors")
        Traceback (most recent call last):
        rs_embed.errors.CheckpointError: checkpoint '/no/such/file.safetensors' is no file or folder that exists...
    """


class UnknownModelError(ModelError):
    """Model name that is not in the table of cards.

    Examples:
        >>> from rs_embed import describe_model
        >>> describe_model("remotclip")
        Traceback (most recent call last):
        rs_embed.errors.UnknownModelError: unknown model 'remotclip' (did you mean 'remoteclip'?); known: ...
    """


def pip_line(extra: str | None = None) -> str:
    """Return the pip command that installs a missing package."""
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"


def missing_package(package: str, *, extra: str | None = None) -> str:
    """Return the message for a package that cannot be imported, with the remedy."""
    kind = f"the optional package {package!r}" if extra else f"the package {package!r}"
    return f"{kind} cannot be imported; install it with: {pip_line(extra)}"


def import_extra(module: str, *, extra: str) -> Any:
    """Import and return a module of an optional package; a missing one is an error with the pip line."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        package = module.partition(".")[0]
        raise _kind(package)(missing_package(package, extra=extra)) from None


_EXTRAS = {"ee": "gee", "zarr": "zarr", "faiss": "search", "fastapi": "web", "uvicorn": "web", "ray": "ray"}
_EXTRAS |= dict.fromkeys(("geopandas", "pyogrio", "lonboard"), "notebook")
"""Packages that an extra brings; all others are the core's."""
_IMAGERY_PACKAGES = {
    *("rasterio", "odc", "pyproj", "affine", "shapely", "pystac", "pystac_client", "async_tiff", "isal"),
    *("aiohttp", "yarl", "requests", "ee", "h5netcdf", "h5py"),
}


def _kind(package: str) -> type[RSEmbedError]:
    return ProviderError if package in _IMAGERY_PACKAGES else ModelError


def missing_core(error: ModuleNotFoundError) -> RSEmbedError | None:
    """Return our error for a package that is not installed; None for a module of this package, a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "rs_embed"):
        return None
    return _kind(package)(missing_package(package, extra=_EXTRAS.get(package)))


@contextmanager
def naming_missing() -> Iterator[None]:
    """Turn a package that cannot be imported into our error; as a decorator it does so for a whole function."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_core(error) or error from error
