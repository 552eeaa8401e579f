"""`export_embeddings`: many places to a folder of files, from wherever it stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedding import versions
from rs_embed.errors import SpecError
from rs_embed.export.card import write_card
from rs_embed.export.cost import find_places, patch_requests
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.grids import check_zarr, write_root
from rs_embed.export.inputs import InputPlaces, ReadOptions
from rs_embed.export.partitions import PARTITION_SIZE, Every, PlannedRow, expand, plan_rows
from rs_embed.export.ray import RayRunner
from rs_embed.export.request import ExportRequest, VectorType
from rs_embed.export.workers import Progress, Report, Runner, count_done, dims_of
from rs_embed.grid import place_geobox
from rs_embed.models import check_model, load_model
from rs_embed.providers.base import Provider
from rs_embed.providers.registry import resolve
from rs_embed.specs import InputPrep, OutputSpec, PointBuffer, SensorSpec, TemporalSpec

_POOLED = OutputSpec.pooled()
_SMALLEST_PX = 32
_LARGE_GB = 1.0
_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What a run left."""

    folder: Path
    places: int
    """Rows of the whole dataset, failures included."""
    done: int
    failed: int
    no_imagery: int
    seconds: float
    slowest: tuple[tuple[float, str], ...]
    """Seconds and ids of the places that took longest."""
    failures: tuple[tuple[str, str], ...]
    """Ids and reasons of the first ones."""
    bad_rows: tuple[str, ...]
    """Rows of the input that are no places, with line and reason."""


def export_embeddings(
    model: str,
    places: object,
    out: str | Path,
    *,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = _POOLED,
    backend: str | Provider = "auto",
    device: str = "auto",
    input_prep: InputPrep = "resize",
    checkpoint: str | None = None,
    precision: str = "fp32",
    chip_m: float | None = None,
    every: Every | None = None,
    read: ReadOptions | None = None,
    dtype: VectorType = "float32",
    normalise: bool = False,
    thumbnails: bool = True,
    grid: bool = False,
    allow_small: bool = False,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    partition_size: int = PARTITION_SIZE,
    report: Report | None = None,
) -> ExportSummary:
    """Embed many places into a folder of files that other tools open; the same call again goes on where it stopped.

    Args:
        model: a name of `list_models()`.
        places: a CSV, GeoJSON or GeoParquet file, a GeoDataFrame, a list of places, or a region to cut into chips: a
            `BBox` or a shapely polygon.
        out: the dataset's folder; places and time ranges can be added to one that is there.
        temporal: time range of rows that have no start and end of their own.
        sensor: what to fetch.
        output: a pooled vector; the CLIP projection is written beside it in any case.
        backend: as in `get_embeddings_batch`.
        device: as there.
        input_prep: as there.
        checkpoint: hub repo or path.
        precision: as there.
        chip_m: side of the square on each point or centroid, or of a region's chips, ground metres.
        every: cut time ranges at "month", "quarter" or "year".
        read: how columns of a file are named; `chip_m` comes before its own.
        dtype: number type of the column `embedding`.
        normalise: divide it by its L2 norm, which is kept in `norm`.
        thumbnails: write quicklooks of 96 px.
        grid: write token grids too.
        allow_small: take places of less than 32 px a side.
        shard: (i, n): only every n-th partition, from the i-th (0 … n - 1), for n processes that share a folder.
        retry_failed: try places again that failed; not those without imagery.
        engine: "local", or "ray" for a cluster.
        address: of the cluster; a local one is started when None.
        partition_size: places of one partition, the unit of work; of new partitions only.
        report: is called with events, about once a second.

    Raises:
        SpecError: for an input that cannot be read or places that are too small.
        RSEmbedError: when the folder holds a dataset of another request.
    """
    card, sensor = check_model(model, sensor)
    folder = DatasetFolder(Path(out))
    _check_shard(shard)
    if engine not in ("local", "ray"):
        raise SpecError(f"engine must be 'local' or 'ray', got {engine!r}")
    if grid:
        check_zarr()
    provider = resolve(backend)
    found = find_places(places, chip_m, read)
    _refuse_small(found, sensor.scale_m, allow_small)
    rows = list(expand(found, temporal, every))
    _check_size(rows, sensor.scale_m)
    chosen = sensor.checkpoint if checkpoint is None else checkpoint
    if chosen is not None and not isinstance(chosen, (str, Path)):
        kind = type(chosen).__qualname__
        raise SpecError(
            f"an export needs a checkpoint that a later run can load again: a path or hub repo, got a {kind}"
        )
    embedder = load_model(
        card,
        sensor,
        OutputSpec.grid() if grid else output,
        checkpoint=chosen,
        device=device,
        precision=precision,
        provider=provider,
        patches=patch_requests(rows[:1], sensor),
    )
    request = ExportRequest(
        model=card.name,
        sensor=sensor,
        output=output,
        backend=provider.name,
        input_prep=input_prep,
        checkpoint=None if chosen is None else str(chosen),
        precision=precision,
        weights_sha256=embedder.weights_sha256,
        dtype=dtype,
        normalise=normalise,
        thumbnails=thumbnails,
        grid=grid,
        columns=tuple((field.name, str(field.type)) for field in found.columns.schema),
    )
    if grid:
        _warn_of_size(len(rows), embedder)
    _add_rows(folder, request, found, rows, partition_size)
    dims, tell = dims_of(embedder, output), report or _silent
    if grid:
        write_root(folder.grids(), request, card.token_dim)
    runner = Runner(folder, request, embedder, provider, dims)
    engines: dict[str, Runner | RayRunner] = {"local": runner}
    if engine == "ray":
        engines["ray"] = RayRunner(folder, request, backend, embedder.preparation, dims, address)
    progress = _run(folder, engines[engine], runner, _mine(folder, shard), tell, retry_failed)
    write_card(folder, request, dims)
    return ExportSummary(
        folder=folder.path,
        places=progress.total,
        done=progress.done,
        failed=progress.failed,
        no_imagery=progress.no_imagery,
        seconds=progress.event()["seconds"],
        slowest=tuple(progress.slowest),
        failures=tuple(progress.failures),
        bad_rows=tuple(f"{row.where}: {row.error}" for row in found.bad),
    )


def _add_rows(
    folder: DatasetFolder, request: ExportRequest, found: InputPlaces, rows: list[PlannedRow], partition_size: int
) -> None:
    """Plan what is not planned yet."""
    if partition_size < 1:
        raise SpecError(f"partition_size must be at least 1, got {partition_size}")
    with folder.lock("plan"):
        folder.check_request(request)
        table = plan_rows(found, rows, request, folder.planned_ids())
        if table.num_rows:
            folder.add_plan(request, table, partition_size, versions())


def _run(
    folder: DatasetFolder,
    main: Runner | RayRunner,
    runner: Runner,
    numbers: list[int],
    tell: Report,
    retry_failed: bool,
) -> Progress:
    """Run what is not done, then what failed if that is asked for."""
    done = folder.done()
    progress = Progress(total=sum(folder.rows_in(n) for n in numbers))
    again = [n for n in numbers if n in done and retry_failed and done[n]["failed"]]
    for number in (n for n in numbers if n in done):
        count_done(progress, done[number])
    progress.failed -= sum(done[number]["failed"] for number in again)
    progress.before = progress.finished
    main.run([n for n in numbers if n not in done], progress, tell)
    runner.run(again, progress, tell, retry=True)
    tell(progress.event("finished"))
    return progress


def _silent(event: Mapping[str, Any]) -> None:
    pass


def _warn_of_size(places: int, embedder: RemoteClipEmbedder) -> None:
    """Token grids are fifty times the vectors: nobody should find out by a full disk."""
    size_gb = places * embedder.size.grid**2 * embedder.card.token_dim * 4 / 1e9
    if size_gb >= _LARGE_GB:
        _log.warning(
            "token grids of %s places take %.0f GB or more; without --grid they are not written", f"{places:,}", size_gb
        )


def _mine(folder: DatasetFolder, shard: tuple[int, int] | None) -> list[int]:
    index, count = shard or (0, 1)
    return [n for n in folder.partitions() if n % count == index]


def _check_shard(shard: tuple[int, int] | None) -> None:
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise SpecError(f"shard {shard[0]}/{shard[1]} must be I/N with 0 <= I < N")


def _refuse_small(found: InputPlaces, scale_m: float, allowed: bool) -> None:
    sides = [2 * row.place.buffer_m / scale_m for row in found.rows if isinstance(row.place, PointBuffer)]
    if not allowed and sides and min(sides) < _SMALLEST_PX:
        raise SpecError(
            f"places of {min(sides):g} px a side tell a model of 224 px next to nothing: take a --chip of at least "
            f"{_SMALLEST_PX * scale_m:g} m, or --allow-small"
        )


def _check_size(rows: list[PlannedRow], scale_m: float) -> None:
    """Refuse places that no backend reads at once, before anything is planned."""
    largest = max((r.place for r in rows if isinstance(r.place, PointBuffer)), key=lambda p: p.buffer_m, default=None)
    if largest is not None:
        place_geobox(largest, scale_m)
