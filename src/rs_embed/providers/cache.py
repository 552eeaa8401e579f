"""Cache of patches on disk, one file each, written atomically: processes may share a folder and die at any time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from rs_embed.errors import ProviderError
from rs_embed.grid import epsg_of
from rs_embed.patch import DroppedScene, Patch, SceneRecord
from rs_embed.providers.base import FetchPlan, PatchRequest, Provider
from rs_embed.sentinel2 import is_l1c

_FORMAT = 3  # version of the cache, raised when the same request would give another patch
_SETTLED = timedelta(days=7)  # time in which a catalog may still add scenes of a day
_TRIM_TO = 0.9  # share of the limit that remains after trimming
_PATCHES_PER_TRIM = 256
_ABANDONED_S = 3600.0  # age from which an unfinished file counts as that of a killed process

_log = logging.getLogger("rs_embed")


class CachedProvider:
    """Provider that fetches from another one only the patches that a folder does not hold yet."""

    def __init__(self, provider: Provider, folder: Path, limit_bytes: int) -> None:
        self._provider, self._folder, self._limit_bytes = provider, folder, limit_bytes
        self._written = 0

    @property
    def name(self) -> str:
        """Name of the wrapped provider: the patches are the same."""
        return self._provider.name

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        """Return the plan of the wrapped provider, as if the cache were empty."""
        return self._provider.plan(requests)

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch | ProviderError]]:
        """Yield the patches of the cache, then fetch and keep the others."""
        paths = [self._path(request) for request in requests]
        missing = []
        for position, (path, request) in enumerate(zip(paths, requests, strict=True)):
            if path is not None and (patch := _read(path, request)) is not None:
                yield position, patch
            else:
                missing.append(position)
        if not missing:
            return
        for number, result in self._provider.fetch([requests[i] for i in missing]):
            path = paths[missing[number]]
            if path and isinstance(result, Patch) and not result.lost:  # a fault may be temporary
                self._keep(path, result)
            yield missing[number], result
        self._trim()

    def _path(self, request: PatchRequest) -> Path | None:
        """Return the file of a request's patch; None while its time range may still get scenes."""
        if request.temporal.end > (datetime.now(UTC) - _SETTLED).date().isoformat():
            return None
        digest = hashlib.sha256(_canonical(self.name, request).encode()).hexdigest()
        return self._folder / digest[:2] / f"{digest}.npz"

    def _keep(self, path: Path, patch: Patch) -> None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(part, patch)
            os.replace(part, path)
        except OSError as error:  # a full disk must not end a run that needs no cache
            _log.warning("the patch cache %s cannot be written: %s", self._folder, error)
            with suppress(OSError):
                part.unlink()
        self._written += 1
        if self._written % _PATCHES_PER_TRIM == 0:
            self._trim()

    def _trim(self) -> None:
        """Remove the least recently used patches beyond the limit, and files of killed processes."""
        found = []
        for path in self._folder.glob("??/*.npz*"):
            with suppress(FileNotFoundError):  # another process may trim the folder meanwhile
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        now, total = datetime.now(UTC).timestamp(), sum(size for _, size, _ in found)
        room_needed = total > self._limit_bytes
        for used_at, size, path in sorted(found):
            is_abandoned = path.suffix == ".part" and now - used_at > _ABANDONED_S
            if is_abandoned or (room_needed and total > _TRIM_TO * self._limit_bytes):
                path.unlink(missing_ok=True)
                total -= size


def _canonical(provider: str, request: PatchRequest) -> str:
    """Return the parts of a request that decide the pixels of its patch: not the model, nor `fill_value`."""
    geobox, temporal = request.geobox, request.temporal
    options = ("bands", "cloudy_pct", "composite", "cloud_mask", "max_scenes")
    facts = {
        "format": _FORMAT,
        "provider": provider,
        "grid": [epsg_of(geobox), *geobox.shape, *(float(v) for v in geobox.affine[:6])],
        "start": temporal.start,
        "end": temporal.end,
        **{option: getattr(request.sensor, option) for option in options},
        **({"level": "L1C"} if is_l1c(request.sensor.product) else {}),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def _write(path: Path, patch: Patch) -> None:
    facts = {f.name: getattr(patch, f.name) for f in fields(patch) if f.name not in ("dn", "geobox")}
    with zipfile.ZipFile(path, "x") as archive:
        with archive.open("dn.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, patch.dn, allow_pickle=False)
        archive.writestr("facts.json", json.dumps(facts, default=asdict))


def _read(path: Path, request: PatchRequest) -> Patch | None:
    """Return a patch of the cache; None where it is missing or damaged (the zip file has checksums)."""
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open("dn.npy") as stream:
                dn = np.lib.format.read_array(stream, allow_pickle=False)
            facts = json.loads(archive.read("facts.json"))
        os.utime(path)
        facts |= {name: tuple(facts[name]) for name in ("bands", "warnings")}
        facts |= {"scenes": tuple(SceneRecord(**scene) for scene in facts["scenes"])}
        facts |= {"dropped": tuple(DroppedScene(**scene) for scene in facts["dropped"])}
        return Patch(dn=dn, geobox=request.geobox, **facts)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, ProviderError) as error:
        _log.warning("%s in the patch cache cannot be read and is fetched again (%s)", path.name, error)
        return None
