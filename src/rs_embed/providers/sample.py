"""Real Sentinel-2 L2A imagery that installs with the package: six patches of BigEarthNet, 1,200 m a side.

Source: the package `bigearthnet-common` (Apache-2.0); contains modified Copernicus Sentinel data 2017-2018.
Its submodules write to the user's folder when imported, so only its data file is read.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources

from rasterio.io import MemoryFile

from rs_embed.errors import ProviderError, missing_package
from rs_embed.grid import transformer
from rs_embed.providers.archive import ArchiveProvider
from rs_embed.providers.scenes import BandFile, Scene
from rs_embed.sentinel2 import canonical_band

_PACKAGE, _FILE = "bigearthnet_common", "BigEarthNet-S2-Example.tar.bz2"
_EPSG = re.compile(r'AUTHORITY\["EPSG","(\d+)"\]\]$')
BUFFER_M = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample patch; `PointBuffer(s.lon, s.lat, s.buffer_m)` and `TemporalSpec.range(s.start, s.end)` fetch it."""

    id: str
    lon: float
    lat: float
    buffer_m: float
    """Half the side, metres."""
    width_px: int
    height_px: int
    date: str
    """Day of sensing, UTC."""
    start: str
    """First day of a range that holds it."""
    end: str
    """Day after the last of that range."""
    labels: tuple[str, ...]
    """CORINE land cover of the patch (BigEarthNet's 43 classes)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    sample: Sample
    scene: Scene
    memory: tuple[MemoryFile, ...]
    """Keeps the files that `scene` points to alive."""


def list_samples() -> list[Sample]:
    """Places, dates and labels of the imagery that installs with the package; `backend="sample"` serves it."""
    return [entry.sample for entry in _entries()]


def open_sample() -> ArchiveProvider:
    """The samples as an archive."""
    return ArchiveProvider("sample", "bigearthnet-common", tuple(e.scene for e in _entries()))


@lru_cache(maxsize=1)
def _entries() -> tuple[_Entry, ...]:
    try:
        data = resources.files(_PACKAGE).joinpath(_FILE).read_bytes()
    except ModuleNotFoundError as error:
        raise ProviderError(missing_package("bigearthnet-common")) from error
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:bz2") as archive:
        members = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        contents = {name: file.read() for name, file in members.items() if file is not None}
    described = sorted(name for name in contents if name.endswith("_labels_metadata.json"))
    return tuple(_entry(name, contents) for name in described)


def _entry(described: str, contents: dict[str, bytes]) -> _Entry:
    folder, prefix = described.rsplit("/", 1)[0], described.removesuffix("_labels_metadata.json")
    facts = json.loads(contents[described])
    bands = {
        band: MemoryFile(data)
        for name, data in contents.items()
        if name.startswith(f"{prefix}_B") and (band := canonical_band(name.removesuffix(".tif").rsplit("_", 1)[1]))
    }
    sample, bounds = _place(folder.rsplit("/", 1)[1], facts)
    scene = Scene(
        id=sample.id,
        acquired=datetime.fromisoformat(facts["acquisition_date"]).replace(tzinfo=UTC),
        bounds=bounds,
        files={band: BandFile(memory.name) for band, memory in bands.items()},
        names=(facts["tile_source"],),
    )
    return _Entry(sample, scene, tuple(bands.values()))


def _place(name: str, facts: dict[str, object]) -> tuple[Sample, tuple[float, float, float, float]]:
    corners, day = facts["coordinates"], str(facts["acquisition_date"])[:10]
    epsg = _EPSG.search(str(facts["projection"]))
    if not isinstance(corners, dict) or epsg is None:
        raise ProviderError(f"the sample {name} of bigearthnet-common is not as expected")
    left, top, right, bottom = (float(corners[k]) for k in ("ulx", "uly", "lrx", "lry"))
    to_lonlat = transformer(int(epsg[1]), 4326)
    lon, lat = to_lonlat.transform((left + right) / 2, (bottom + top) / 2)
    x, y = to_lonlat.transform([left, left, right, right], [bottom, top, bottom, top])
    year, month = int(day[:4]), int(day[5:7])
    sample = Sample(
        id=name,
        lon=round(lon, 6),
        lat=round(lat, 6),
        buffer_m=BUFFER_M,
        width_px=round((right - left) / 10),
        height_px=round((top - bottom) / 10),
        date=day,
        start=f"{year}-{month:02d}-01",
        end=f"{year + month // 12}-{month % 12 + 1:02d}-01",
        labels=tuple(facts["labels"]) if isinstance(facts["labels"], list) else (),
    )
    return sample, (min(x), min(y), max(x), max(y))
