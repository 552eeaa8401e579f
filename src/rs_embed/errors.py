"""Errors of the library. Each message has the wrong value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

DISTRIBUTION = "rs-embed-remoteclip"


class RSEmbedError(Exception):
    """Base of all errors of this library.

    Attributes:
        results: set by a batch that stopped early: one slot a request, in order; a finished
            place holds its `Embedding`, a failed one its `EmbeddingFailure`, the others `None`.
    """

    results: Sequence[object] | None = None


class SpecError(RSEmbedError, ValueError):
    """Invalid place, time range, sensor or output."""


class ProviderError(RSEmbedError):
    """Imagery that cannot be fetched."""


class NoImageryError(ProviderError):
    """Place and time range for which the source has no valid pixel."""


class ModelError(RSEmbedError):
    """Request that the model cannot serve."""


class CheckpointError(ModelError):
    """Weights that are missing, incomplete, unsafe or of another network."""


class UnknownModelError(ModelError):
    """Model name that is not in the table of cards."""


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
        raise RSEmbedError(missing_package(module.partition(".")[0], extra=extra)) from None


_IMAGERY_PACKAGES = {"rasterio", "odc", "pyproj", "affine", "shapely"}


def missing_core(error: ModuleNotFoundError) -> RSEmbedError | None:
    """Return our error for a core package that is not installed; None for a module of this package, a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "rs_embed"):
        return None
    kind = ProviderError if package in _IMAGERY_PACKAGES else ModelError
    return kind(missing_package(package))
