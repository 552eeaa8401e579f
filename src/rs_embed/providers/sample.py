"""Real Sentinel-2 imagery in the package: six patches of BigEarthNet, 1,200 m a side (`sample_data/README.md`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from rs_embed.providers.archive import ArchiveProvider
from rs_embed.providers.scenes import BandFile, Scene

_FOLDER = Path(__file__).with_name("sample_data")
_BANDS_OF_RESOLUTION = {10: ("B2", "B3", "B4", "B8"), 20: ("B5", "B6", "B7", "B8A", "B11", "B12"), 60: ("B1", "B9")}
"""Bands in the order of each patch's three files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample patch; `PointBuffer(s.lon, s.lat, s.buffer_m)` and `TemporalSpec.range(s.start, s.end)` fetch it."""

    id: str
    lon: float
    lat: float
    buffer_m: float  # half the side, in metres
    width_px: int
    height_px: int
    date: str  # day of sensing, UTC
    start: str  # first day of the month of sensing
    end: str  # first day of the month after it
    labels: tuple[str, ...]  # CORINE land cover of the patch (BigEarthNet's 43 classes)


def list_samples() -> list[Sample]:
    """Return the places, dates and labels of the imagery that `backend="sample"` serves.

    Examples:
        >>> from rs_embed import list_samples
        >>> samples = list_samples()
        >>> len(samples), samples[0].width_px, samples[0].date
        (6, 120, '2017-06-13')
    """
    return [
        Sample(**{f.name: row[f.name] for f in fields(Sample)} | {"labels": tuple(row["labels"])})
        for row in _read_table()
    ]


@lru_cache(maxsize=1)
def open_sample() -> ArchiveProvider:
    """Return the provider of the sample patches."""
    return ArchiveProvider("sample", "bigearthnet-common", [_scene(row) for row in _read_table()])


@lru_cache(maxsize=1)
def _read_table() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((_FOLDER / "samples.json").read_text(encoding="utf-8"))
    return rows


def _scene(row: dict[str, Any]) -> Scene:
    return Scene(
        id=row["id"],
        acquired=datetime.fromisoformat(row["acquired"]),
        bounds=tuple(row["bounds"]),
        files={
            band: BandFile(str(_FOLDER / f"{row['id']}_{resolution}m.tif"), index)
            for resolution, bands in _BANDS_OF_RESOLUTION.items()
            for index, band in enumerate(bands, start=1)
        },
        names=(row["product"],),
    )
