"""Every error the library raises on purpose: the value that was wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

DISTRIBUTION = "rs-embed-remoteclip"


class RSEmbedError(Exception):
    """Base of all errors of this library.

    Attributes:
        results: set by a batch that stopped early: one slot a request, in order; a finished
            place holds its `Embedding`, a failed one its `EmbeddingFailure`, the others `None`.
    """

    results: Sequence[object] | None = None


class SpecError(RSEmbedError, ValueError):
    """A place, time range, sensor or output that cannot exist."""


class ProviderError(RSEmbedError):
    """Imagery could not be had."""


class NoImageryError(ProviderError):
    """The source answered, and has no valid pixel for this place and time range."""


class ModelError(RSEmbedError):
    """The model cannot do what was asked with what it was given."""


class CheckpointError(ModelError):
    """Weights that are missing, incomplete, unsafe or of another network."""


class UnknownModelError(ModelError):
    """No model card has this name."""


def pip_line(extra: str | None = None) -> str:
    """The pip command that brings a missing package, as a user would type it."""
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else f"pip install {DISTRIBUTION}"


def missing_package(package: str, *, extra: str | None = None) -> str:
    """Message for a package that cannot be imported, with its remedy."""
    kind = f"the optional package {package!r}" if extra else f"the package {package!r}"
    return f"{kind} cannot be imported; install it with: {pip_line(extra)}"


_IMAGERY_PACKAGES = {"rasterio", "odc", "pyproj", "affine", "shapely"}


def missing_core(error: ModuleNotFoundError) -> RSEmbedError | None:
    """Our error for a core package that is not installed; None when the missing module is our own, a defect."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "rs_embed"):
        return None
    kind = ProviderError if package in _IMAGERY_PACKAGES else ModelError
    return kind(missing_package(package))
