"""Readers of an exported dataset: filtered by place, time and status, as numpy, a GeoDataFrame, xarray or rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from rs_embed.embedders.cards import find_card
from rs_embed.errors import RSEmbedError, SpecError, import_extra
from rs_embed.export.checks import MAKE_AGAIN, reading
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.request import ExportRequest, VectorLengths
from rs_embed.export.thumbnails import read_thumbnails
from rs_embed.html import Fact, Picture, result_html
from rs_embed.lonlat import meets
from rs_embed.specs import BBoxLike, TemporalSpec, bounds_of

if TYPE_CHECKING:
    import geopandas
    import xarray as xr

VectorColumn = Literal["embedding", "embedding_projected"]
_STATUSES = ("ok", "partial")
_TIME = pa.timestamp("ms", tz="UTC")


@dataclass(frozen=True, slots=True)
class EmbeddingDataset:
    """Rows of a dataset, read on demand; a filter returns another dataset."""

    path: Path
    _filter: pc.Expression | None = None

    def __repr__(self) -> str:
        rows, folder = len(self), DatasetFolder(self.path)
        none = "" if rows or self._filter is not None else f", {folder.failures:,} without a vector: see failures()"
        return f"EmbeddingDataset({str(self.path)!r}, {rows:,} rows, {self.request.model}{none})"

    def _repr_html_(self) -> str:
        request, sensor = self.request, self.request.sensor
        folder = DatasetFolder(self.path)
        counts = list(folder.done().values())
        lost = sum(c.failed + c.no_imagery for c in counts)
        first, last = folder.time_range()
        facts: list[Fact] = [
            ("folder", self.path),
            ("rows", f"{len(self):,}" + (" (filtered)" if self._filter is not None else "")),
            ("without a vector", f"{lost:,}, see failures()" if lost else None),
            ("time", f"{first} to {last}"),
            ("imagery", f"{request.backend}, {sensor.composite} of scenes up to {sensor.cloudy_pct:g} % cloud"),
            ("model", f"{request.model}, {request.output.pooling or 'mean'}, {request.precision}"),
            ("columns", ", ".join(name for name, _ in request.columns)),
        ]
        pictures = [Picture(png, 88) for png in self._first_quicklooks(8)]
        return result_html("Dataset of embeddings", facts, pictures, gallery=True)

    def _first_quicklooks(self, count: int) -> list[bytes]:
        """Return the PNG of the first rows, of one file, which is all that is read."""
        rows = self._dataset("embeddings", self._filter)
        if "unique_id" not in rows.schema.names:
            return []
        with reading(self.path):
            batches = rows.scanner(["unique_id"], filter=self._filter).scan_batches()
            some = next((batch for batch in batches if batch.record_batch.num_rows), None)
        if some is None:
            return []
        pngs, ids = read_thumbnails(self.path, Path(some.fragment.path).name), some.record_batch["unique_id"]
        return [pngs[id] for id in ids.to_pylist()[:count] if id in pngs]

    def __len__(self) -> int:
        with reading(self.path / "embeddings"):
            return int(self._dataset("embeddings", self._filter).count_rows(filter=self._filter))

    @property
    def request(self) -> ExportRequest:
        """Request that the rows were made with."""
        return DatasetFolder(self.path).request

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return list(self._dataset("embeddings", None).schema.names)

    def filter(
        self,
        *,
        bbox: BBoxLike | None = None,
        temporal: TemporalSpec | None = None,
        status: str | None = None,
        where: pc.Expression | None = None,
    ) -> EmbeddingDataset:
        """Return the rows that meet every condition.

        Args:
            bbox: their footprint meets this box; (west, south, east, north) in degrees, west > east across 180°.
            temporal: their time range lies inside this one.
            status: "ok" or "partial".
            where: any other condition, a `pyarrow.compute` expression over the columns.

        Raises:
            SpecError: for an unknown status.
        """
        given = [condition for condition in (self._filter, where) if condition is not None]
        if bbox is not None:
            edges = (pc.field("bbox", name) for name in ("xmin", "ymin", "xmax", "ymax"))
            given.append(meets(bounds_of(bbox), *edges))
        if temporal is not None:
            start, end = (pa.scalar(np.datetime64(day, "ms")).cast(_TIME) for day in (temporal.start, temporal.end))
            given += [pc.field("datetime_start") >= start, pc.field("datetime_end") <= end]
        if status is not None:
            if status not in _STATUSES:
                raise SpecError(f"status must be {' or '.join(map(repr, _STATUSES))}, got {status!r} (see failures())")
            given.append(pc.field("status") == status)
        return replace(self, _filter=reduce(and_, given) if given else None)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows as an Arrow table.

        Args:
            columns: names of columns; all when None.
        """
        return self._read("embeddings", columns, self._filter)

    def to_numpy(self, column: VectorColumn = "embedding") -> npt.NDArray[np.float32]:
        """Return the vectors, (n, d) float32, in the order of `to_table`.

        Args:
            column: "embedding", or "embedding_projected" for the CLIP projections.
        """
        vectors, known = vectors_of(self.to_table([column]), column)
        if not known.all():
            raise RSEmbedError(
                f"{(~known).sum():,} row(s) of {self.path}, the first at {np.argmin(known)}, have no {column} of "
                f"{vectors.shape[1]} numbers: {MAKE_AGAIN}"
            )
        return vectors

    def to_geodataframe(self, columns: Sequence[str] | None = None) -> geopandas.GeoDataFrame:
        """Return a GeoDataFrame with footprints in longitude and latitude.

        Args:
            columns: names of columns besides the geometry; all when None.

        Raises:
            RSEmbedError: without geopandas.
        """
        frames = import_extra("geopandas", extra="notebook")
        wanted = None if columns is None else list(dict.fromkeys([*columns, "geometry"]))
        frame = self.to_table(wanted).to_pandas()
        return frames.GeoDataFrame(frame, geometry=frames.GeoSeries.from_wkb(frame["geometry"]), crs="OGC:CRS84")

    def to_xarray(self, column: VectorColumn = "embedding") -> xr.Dataset:
        """Return the vectors (place, d) with the coordinates id, lon, lat, datetime_start and datetime_end.

        Args:
            column: "embedding", or "embedding_projected" for the CLIP projections.
        """
        import xarray as xr

        table = self.to_table(["id", "centre_lon", "centre_lat", "datetime_start", "datetime_end"])
        coords: dict[str, Any] = {
            "id": ("place", np.array(table["id"].to_pylist(), dtype=object)),
            "lon": ("place", table["centre_lon"].to_numpy()),
            "lat": ("place", table["centre_lat"].to_numpy()),
        }
        for name in ("datetime_start", "datetime_end"):
            coords[name] = "place", table[name].to_numpy().astype("datetime64[ns]")
        vectors = {column: (("place", "d"), self.to_numpy(column))}
        return xr.Dataset(vectors, coords=coords, attrs={"model": self.request.model})

    def grid(self, unique_id: str) -> xr.DataArray:
        """Read the token grid (d, y, x) of one row, with its coordinates and CRS.

        Args:
            unique_id: the row's `unique_id`.

        Raises:
            SpecError: where the dataset has none for it.
        """
        from rs_embed.export.grids import read_grid

        import_extra("zarr", extra="zarr")
        folder = DatasetFolder(self.path)
        for number in folder.partitions():
            with reading(folder.grids(number)):
                grid = read_grid(folder.grids(number), unique_id, self.request.model)
            if grid is not None:
                return grid
        raise SpecError(f"{self.path} has no token grid of {unique_id!r}: export with grid=True (--grid)")

    def failures(self) -> pa.Table:
        """Return the rows without a vector and their errors; filters do not apply."""
        return self._read("failures")

    def thumbnails(self) -> Iterator[tuple[str, bytes]]:
        """Yield `unique_id` and PNG of each quicklook; filters do not apply."""
        for batch in self._batches("thumbnails", None):
            yield from zip(batch["unique_id"].to_pylist(), batch["thumbnail"].to_pylist(), strict=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield rows as dictionaries with vectors as arrays, a batch in memory at a time."""
        for batch in self._batches("embeddings", self._filter):
            for row in batch.to_pylist():
                yield row | {n: np.asarray(row[n], np.float32) for n in ("embedding", "embedding_projected")}

    def _read(
        self, kind: str, columns: Sequence[str] | None = None, condition: pc.Expression | None = None
    ) -> pa.Table:
        dataset = self._dataset(kind, condition)
        for name in columns or ():
            if name not in dataset.schema.names:
                raise SpecError(f"{self.path}/{kind} has no column {name!r}; it has {', '.join(dataset.schema.names)}")
        with reading(self.path / kind):
            return dataset.to_table(columns=columns, filter=condition)

    def _batches(self, kind: str, condition: pc.Expression | None) -> Iterator[pa.RecordBatch]:
        with reading(self.path / kind):
            yield from self._dataset(kind, condition).to_batches(filter=condition)

    def _no_rows(self, kind: str) -> pa.Table:
        """Return an empty table with the columns of a kind, those of the rows that failed if there are any."""
        from rs_embed.export.tables import partition_tables

        failed = DatasetFolder(self.path).part_files("failures")
        if kind != "thumbnails" and failed:
            return _common_schema(failed).empty_table()
        card, request = find_card(self.request.model), replace(self.request, thumbnails=True)
        length = card.projection_dim if request.output.pooling == "projected" else card.token_dim
        user = pa.table({"": pa.array([], pa.null())}).drop_columns([""])
        return partition_tables([], user, request, VectorLengths(length, card.projection_dim))[kind]

    def _dataset(self, kind: str, condition: pc.Expression | None) -> ds.Dataset:
        """Open the files of one kind; errors tell a damaged file from a condition that does not fit."""
        files = DatasetFolder(self.path).part_files(kind)
        if not files:
            return ds.dataset(self._no_rows(kind))
        schema = _common_schema(files)
        try:
            if condition is not None:
                schema.empty_table().filter(condition)
        except pa.ArrowException as error:
            raise SpecError(f"the condition {condition} does not fit the columns: {error}") from error
        return ds.dataset([str(f) for f in files], format="parquet", schema=schema)


def _common_schema(files: Sequence[Path]) -> pa.Schema:
    """Return the columns of all files; an RSEmbedError names a file that is damaged or holds something else."""
    schema = _schema(str(files[0]), files[0].stat().st_mtime_ns)
    for file in files:
        found = _schema(str(file), file.stat().st_mtime_ns)
        if not found.equals(schema):
            with reading(file):
                if "unique_id" not in found.names:
                    raise ValueError("it holds no rows of a dataset")
                schema = pa.unify_schemas([schema, found])
    return schema


@lru_cache(maxsize=16_384)
def _schema(file: str, changed_ns: int) -> pa.Schema:
    """Read the columns of a file, once for each change."""
    with reading(Path(file)):
        return pq.read_schema(file)


def vectors_of(table: pa.Table, column: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return a column of lists as vectors (n, d) float32, and which rows have one of that length (n,).

    d is the length of most of them; a row without one is NaN.
    """
    values = table[column].combine_chunks()
    if not (pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)):
        raise ValueError(f"its column {column} holds {values.type}, not vectors")
    lengths = pc.fill_null(pc.list_value_length(values), -1).to_numpy(zero_copy_only=False)
    sizes, counts = np.unique(lengths[lengths >= 0], return_counts=True)
    dim = int(sizes[counts.argmax()]) if len(sizes) else getattr(values.type, "list_size", 0)
    known = lengths == dim
    with np.errstate(over="ignore"):
        flat = values.filter(pa.array(known)).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    found = flat.reshape(known.sum(), dim)
    if known.all():
        return found, known
    vectors = np.full((len(known), dim), np.nan, np.float32)
    vectors[known] = found
    return vectors, known


def open_dataset(folder: str | Path) -> EmbeddingDataset:
    """Open the dataset that `export_embeddings` or `rs-embed export` wrote.

    Args:
        folder: folder of the dataset.

    Raises:
        RSEmbedError: for a folder without a dataset.

    Examples:
        >>> from rs_embed import open_dataset
        >>> data = open_dataset("dataset")  # that of the example of `export_embeddings`
        >>> len(data), data.to_numpy().shape
        (3, (3, 192))
    """
    path = Path(folder)
    DatasetFolder(path).manifest()
    return EmbeddingDataset(path)
