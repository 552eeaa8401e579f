"""Versions of the packages that influence the numbers."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Return the versions of the packages that influence the numbers."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("rs-embed-remoteclip", "torch", "numpy", "pillow", "rasterio"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # run from a source folder
    return found
