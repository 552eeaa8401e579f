"""Embeddings as files and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rs_embed.arrays import FloatArray
from rs_embed.cli.options import check_ending
from rs_embed.cli.places import NamedPlace
from rs_embed.embedding import Embedding, EmbeddingFailure, Result, as_dict
from rs_embed.errors import SpecError
from rs_embed.files import atomic_write
from rs_embed.specs import OutputSpec


def check_suffix(path: Path, output: OutputSpec) -> None:
    """Refuse an unknown ending, a grid in a table, and a folder that does not exist, before anything is fetched."""
    check_ending("--out", path, tuple(_WRITERS))
    if path.suffix.lower() == ".parquet" and output.mode == "grid":
        raise SpecError(f"--out {path}: a token grid does not fit a table; write .nc, .npz or .npy")
    if not path.absolute().parent.is_dir():
        raise SpecError(f"--out {path}: the folder {path.parent} does not exist")


def write(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    """Write all results in the format of the file's ending; the file appears when it is complete."""
    with atomic_write(path) as part:
        _WRITERS[path.suffix.lower()](part, places, results)


def to_json(places: Sequence[NamedPlace], results: Sequence[Result]) -> str:
    """Return `[{id, place, ok, embedding, shape, meta} | {id, place, ok, error}]` as text."""
    records = [record_head(p, r) for p, r in zip(places, results, strict=True)]
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Embedding):
            values = np.asarray(result.data)
            embedding = values.astype(object)
            embedding[np.isnan(values)] = None  # JSON has no NaN
            record |= {"shape": list(values.shape), "embedding": embedding.tolist(), "meta": result.meta}
    return json.dumps(records, indent=1, allow_nan=False)


def record_head(named: NamedPlace, result: Result) -> dict[str, Any]:
    """Return `{id, place, ok}` of a result, and its `error` if it failed."""
    head = {"id": named.id, "place": as_dict(named.place)}
    if isinstance(result, EmbeddingFailure):
        return {**head, "ok": False, "error": {"type": type(result.error).__name__, "message": str(result.error)}}
    return {**head, "ok": True}


def _stack(results: Sequence[Result]) -> FloatArray:
    """Return one row per place, NaN where it failed."""
    done = {i: np.asarray(r.data) for i, r in enumerate(results) if isinstance(r, Embedding)}
    shapes = {values.shape for values in done.values()}
    if len(shapes) > 1:
        raise SpecError("grids of different sizes do not stack: write .json, or one file per place")
    rows = np.full((len(results), *shapes.pop()), np.nan, dtype=np.float32)
    rows[list(done)] = list(done.values())
    return rows


def _columns(places: Sequence[NamedPlace]) -> dict[str, list[Any]]:
    lons, lats = zip(*(named.place.centre for named in places), strict=True)
    return {"id": [named.id for named in places], "lon": list(lons), "lat": list(lats)}


def _write_npy(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    stack = _stack(results)
    with path.open("wb") as stream:
        np.save(stream, stack[0] if len(stack) == 1 else stack)


def _write_npz(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    columns: dict[str, Any] = _columns(places)
    meta = [json.dumps(r.meta) if isinstance(r, Embedding) else "" for r in results]
    with path.open("wb") as stream:
        np.savez_compressed(stream, embeddings=_stack(results), meta=np.array(meta), **columns)


def _write_json(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    path.write_text(to_json(places, results) + "\n", encoding="utf-8")


def _write_nc(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    """Write one grid with its coordinates, or several results along a dimension `place`."""
    import xarray as xr

    if len(results) == 1 and isinstance(results[0], Embedding) and isinstance(results[0].data, xr.DataArray):
        grid = results[0].data
        attributes = {k: json.dumps(v) if isinstance(v, (bool, type(None))) else v for k, v in grid.attrs.items()}
        data = grid.assign_attrs(attributes).to_dataset(name="tokens")
    else:
        stack = _stack(results)
        coordinates = {name: ("place", values) for name, values in _columns(places).items()}
        data = xr.Dataset({"embedding": (("place", "d", "y", "x")[: stack.ndim], stack)}, coords=coordinates)
    data.attrs["meta"] = json.dumps([r.meta if isinstance(r, Embedding) else None for r in results])
    data.to_netcdf(path, engine="h5netcdf")


def _write_parquet(path: Path, places: Sequence[NamedPlace], results: Sequence[Result]) -> None:
    """Write the rows that have a vector: readers fail on an empty one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(p, r) for p, r in zip(places, results, strict=True) if isinstance(r, Embedding)]
    vectors = np.stack([np.asarray(r.data) for _, r in rows])
    columns: dict[str, Any] = {
        **_columns([p for p, _ in rows]),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "meta": [json.dumps(r.meta) for _, r in rows],
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


_WRITERS: dict[str, Callable[[Path, Sequence[NamedPlace], Sequence[Result]], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".json": _write_json,
    ".nc": _write_nc,
    ".parquet": _write_parquet,
}
