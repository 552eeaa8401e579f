"""Token grids as one Zarr v3 group with a group for each partition, and in it one for each UTM zone and grid size.

`grids.zarr/part-000012/32633_7x7/tokens` is (place, d, y, x); `x` and `y` hold the centres of each place's footprints
in metres, `transform` its six numbers; the order of places is in the attribute `unique_id`. Conventions: `geoemb:`
(https://github.com/geo-embeddings/embeddings-zarr-convention), `proj:` and `spatial:`.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rs_embed.embedding import GRID_NOTE
from rs_embed.export.request import ExportRequest
from rs_embed.export.sidecars import model_uri
from rs_embed.export.tables import SOURCE_DATA
from rs_embed.files import cannot_write, flush, make_folder, temporary_beside

if TYPE_CHECKING:
    import xarray as xr

_CONVENTIONS = {  # UUID and repository of each Zarr convention that the attributes follow
    "geoemb:": ("61c12cc5-0e28-4056-999a-480cf3fb7e4c", "geo-embeddings/embeddings-zarr-convention"),
    "proj:": ("f17cb550-5864-4468-aeb7-f3180cfb622f", "zarr-experimental/geo-proj"),
    "spatial:": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "zarr-conventions/spatial"),
}

Grids = Mapping[str, "xr.DataArray"]  # `unique_id` to a token grid (d, y, x)


def write_root(path: Path, request: ExportRequest, dim: int) -> None:
    """Make the group of all grids, with the attributes that describe them, unless it exists."""
    import zarr

    if not (path / "zarr.json").exists():
        try:
            zarr.open_group(path, mode="a", zarr_format=3, attributes=_attributes(request, dim))
        except OSError as error:
            raise cannot_write(path, error) from error


def write_grids(path: Path, grids: Grids, scratch: Path) -> None:
    """Write the grids of a partition as the group `path`, atomically; `scratch` is a folder on the same disk.

    The caller holds the partition's lock. A folder cannot replace another in one step: `restore_grids` puts back the
    earlier grids if the process dies between two.
    """
    import zarr

    part, old = temporary_beside(path, make_folder(scratch)), _replaced(path, scratch)
    try:
        restore_grids(path, scratch)
        group = zarr.open_group(part, mode="w", zarr_format=3)
        for name, members in sorted(_stackable(grids).items()):
            _write_group(group.create_group(name), members, grids)
        _sync_all(part)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def restore_grids(path: Path, scratch: Path) -> None:
    """Put back a partition's grids where a process died while it replaced them."""
    old = _replaced(path, scratch)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.replace(old, path)


def _replaced(path: Path, scratch: Path) -> Path:
    return scratch / f"replaced.{path.name}"


def read_grid(path: Path, unique_id: str, name: str) -> xr.DataArray | None:
    """Read the token grid (d, y, x) of one place with its coordinates; None if the partition does not have it."""
    import xarray as xr
    import zarr

    if not path.exists():
        return None
    groups: dict[str, Any] = dict(zarr.open_group(path, mode="r").groups())
    for group in groups.values():
        order = list(group.attrs["unique_id"])
        if unique_id in order:
            i = order.index(unique_id)
            tokens, y, x, transform = (np.asarray(group[array][i]) for array in ("tokens", "y", "x", "transform"))
            attrs = {"crs": group.attrs["proj:code"], "transform": transform.tolist(), "note": GRID_NOTE}
            return xr.DataArray(tokens, dims=("d", "y", "x"), coords={"y": y, "x": x}, name=name, attrs=attrs)
    return None


def _stackable(grids: Grids) -> dict[str, list[str]]:
    """Return the ids by zone and grid size, as names of groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for unique_id, grid in grids.items():
        _, rows, cols = grid.shape
        groups[f"{str(grid.attrs['crs']).removeprefix('EPSG:')}_{rows}x{cols}"].append(unique_id)
    return groups


def _write_group(group: Any, members: Sequence[str], grids: Grids) -> None:
    some = [grids[unique_id] for unique_id in members]
    dim, rows, cols = some[0].shape
    group.attrs.update({"unique_id": list(members), "proj:code": some[0].attrs["crs"], "note": GRID_NOTE})
    group.attrs.update({"spatial:dimensions": ["y", "x"], "spatial:shape": [rows, cols]})
    arrays = {
        "tokens": (np.stack(some).astype(np.float32), ("place", "d", "y", "x"), (1, dim, rows, cols)),
        "y": (np.stack([g["y"].values for g in some]), ("place", "y"), (len(some), rows)),
        "x": (np.stack([g["x"].values for g in some]), ("place", "x"), (len(some), cols)),
        "transform": (np.array([g.attrs["transform"] for g in some]), ("place", "affine"), (len(some), 6)),
    }
    for name, (values, dims, chunks) in arrays.items():
        stored = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks, dimension_names=dims)
        stored[...] = values


def _attributes(request: ExportRequest, dim: int) -> dict[str, Any]:
    """Return the attributes that describe the tokens."""
    return {
        "zarr_conventions": [
            {"name": name, "uuid": uuid, "spec_url": f"https://github.com/{place}/blob/v1/README.md"}
            for name, (uuid, place) in _CONVENTIONS.items()
        ],
        "geoemb:type": "pixel",
        "geoemb:dimensions": dim,
        "geoemb:model": model_uri(request),
        "geoemb:source_data": [SOURCE_DATA],
        "geoemb:data_type": "float32",
        "note": GRID_NOTE,
    }


def _sync_all(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in (*files, "."):
            flush(Path(root) / name)
