"""`export_embeddings`: many places to a folder of files; a run that stopped is resumed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rs_embed.embedders.loading import find_weights, tokenizer_sha256
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.errors import SpecError, import_extra, naming_missing
from rs_embed.export.card import write_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.grids import write_root
from rs_embed.export.limits import Limits
from rs_embed.export.partition_io import write_bad_rows
from rs_embed.export.partitions import PARTITION_SIZE, among, plan_tables
from rs_embed.export.plans import keys_of
from rs_embed.export.progress import Progress, ProgressListener
from rs_embed.export.ray import RayRunner
from rs_embed.export.request import BESIDE_WEIGHTS, ExportRequest
from rs_embed.export.rows import CutListener, Rows, RowsWanted
from rs_embed.export.workers import REPORT_EVERY_S, Runner, vector_lengths
from rs_embed.models import check_model, load_model
from rs_embed.providers.base import Provider
from rs_embed.providers.registry import resolve
from rs_embed.specs import (
    DEFAULT_OUTPUT,
    Engine,
    Every,
    InputPrep,
    OnLostScene,
    OutputSpec,
    SensorSpec,
    TemporalSpec,
    VectorType,
    check_choice,
)
from rs_embed.versions import versions

_LARGE_GB = 1.0
_log = logging.getLogger("rs_embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """Result of a run."""

    folder: Path
    places: int
    """Number of rows of the dataset, failures included."""
    done: int
    failed: int
    no_imagery: int
    lost: int
    """Number of embedded places that lack scenes which could not be read; `retry_failed` tries them again."""
    seconds: float
    slowest: tuple[tuple[float, str], ...]
    """Seconds and ids of the slowest places."""
    failures: tuple[tuple[str, str], ...]
    """Ids and reasons of the first failures."""
    bad_rows: tuple[str, ...]
    """Lines of the input that cannot be asked for, each with its reason."""
    warnings: tuple[tuple[str, int], ...]
    """Kinds of warnings and the number of places that have them, in the column `warnings`."""


@naming_missing()
def export_embeddings(
    model: str,
    places: object,
    out: str | Path,
    *,
    temporal: TemporalSpec | None = None,
    sensor: SensorSpec | None = None,
    output: OutputSpec = DEFAULT_OUTPUT,
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
    on_lost_scene: OnLostScene = "keep",
    engine: Engine = "local",
    partition_size: int = PARTITION_SIZE,
    report: ProgressListener | None = None,
) -> ExportSummary:
    """Embed many places into a folder of files that other tools open; the same call resumes a run that stopped.

    Args:
        model: a name of `list_models()`.
        places: a CSV, GeoJSON, GeoParquet, GeoPackage, FlatGeobuf or shapefile, a GeoDataFrame, a list of places, or
            a region to cut into chips: a `BBox` or a shapely polygon.
        out: the dataset's folder; places and time ranges can be added to an existing dataset.
        temporal: time range of rows without columns `start` and `end`.
        sensor: imagery to fetch.
        output: a pooled vector; the CLIP projection is always written beside it.
        backend: see `get_embeddings_batch`, also for `device`, `input_prep` and `precision`.
        device: see there.
        input_prep: see there.
        checkpoint: hub repo or path.
        precision: see there.
        chip_m: side of the square on each point or centroid, or of a region's chips, ground metres.
        every: cut time ranges at "month", "quarter" or "year".
        read: names of a file's columns, and the most rows to take; `chip_m` overrides its own.
        dtype: number type of the column `embedding`.
        normalise: divide `embedding` by its L2 norm, which is kept in `norm`.
        thumbnails: write quicklooks of 96 px.
        grid: write token grids too.
        allow_small: accept places of less than 32 px a side.
        shard: (i, n): only every n-th partition, from the i-th (0 … n - 1), for n processes that share a folder.
        retry_failed: repeat places that failed, except those without imagery, and places that lack scenes which could
            not be read; a repeated place that fails keeps the vector that it had.
        on_lost_scene: see `get_embeddings_batch`.
        engine: "local", or "ray" for a cluster: the one that `ray.init` or the variable `RAY_ADDRESS` names, else one
            that is started here.
        partition_size: places of one new partition, the unit of work.
        report: called with events, about once a second.

    Raises:
        SpecError: for an input that cannot be read, or places that are too small.
        RSEmbedError: if the folder holds a dataset of another request.

    Examples:
        >>> from rs_embed import PointBuffer, TemporalSpec, export_embeddings, list_samples
        >>> sample = list_samples()[0]
        >>> month = TemporalSpec.range(sample.start, sample.end)
        >>> places = [PointBuffer(sample.lon + east, sample.lat, 200) for east in (-0.004, 0, 0.004)]
        >>> summary = export_embeddings("clip_eurosat_s2rgb", places, "dataset", temporal=month, backend="sample")
        >>> summary.done, summary.failed
        (3, 0)
    """
    (card, sensor), target = check_model(model, sensor), DatasetFolder(Path(out))
    _check_run(target.path, shard, engine, partition_size, grid, on_lost_scene)
    provider, listener = resolve(backend), report or (lambda event: None)
    reference = _loadable(sensor.checkpoint if checkpoint is None else checkpoint)
    limits = Limits(card=card, scale_m=sensor.scale_m, output=output, prep=input_prep, allow_small=allow_small)
    wanted = RowsWanted(source=places, chip_m=chip_m, read=read or ReadOptions(), temporal=temporal, every=every)
    rows = wanted.find(limits, report=_planning(listener, "cutting"))
    kind, first = OutputSpec.grid() if grid else output, rows.patch_requests(sensor, [0])
    embedder = load_model(
        card, sensor, kind, checkpoint=reference, device=device, precision=precision, provider=provider, patches=first
    )
    request = ExportRequest(
        model=card.name,
        sensor=sensor,
        output=output,
        backend=provider.name,
        input_prep=input_prep,
        checkpoint=reference,
        precision=precision,
        weights_sha256=embedder.weights_sha256,
        dtype=dtype,
        normalise=normalise,
        thumbnails=thumbnails,
        grid=grid,
        columns=rows.places.column_types,
        chip_m=rows.places.chip_m,
        **_beside_weights(embedder, reference or card.checkpoint),
    )
    local = Runner(target, request, embedder, provider, vector_lengths(embedder, output), on_lost_scene)
    main = local if engine == "local" else RayRunner(local, backend)
    _add_rows(local, rows, partition_size, _planning(listener, "planning"))
    return _run_all(main, local, rows, shard, listener, retry_failed)


def _beside_weights(embedder: RemoteClipEmbedder, checkpoint: str) -> dict[str, str | None]:
    """Return the fields of a request that files beside the weights decide."""
    tokenizer = tokenizer_sha256(find_weights(checkpoint))
    return dict(zip(BESIDE_WEIGHTS, (embedder.settings, tokenizer), strict=True))


def _run_all(
    main: Runner | RayRunner,
    local: Runner,
    rows: Rows,
    shard: tuple[int, int] | None,
    listener: ProgressListener,
    retry_failed: bool,
) -> ExportSummary:
    """Run the partitions of a shard, and return what became of the rows; the first shard counts the bad ones."""
    numbers = local.folder.partitions()[slice(shard[0], None, shard[1]) if shard else slice(None)]
    bad_rows = rows.bad_rows
    counted = len(bad_rows) if shard is None or shard[0] == 0 else 0
    try:
        progress = _run(main, local, numbers, listener, retry_failed, counted)
    except KeyboardInterrupt:
        kept = sum(counts.rows for n, counts in local.folder.done().items() if n in numbers)
        total = sum(map(local.folder.rows_in, numbers))
        text = f"{kept:,} of {total:,} rows are kept in {local.folder.path}; the same command goes on from there"
        raise KeyboardInterrupt(text) from None
    marks = (counts.warnings for n, counts in local.folder.done().items() if n in numbers)
    warnings = sum(map(Counter, marks), Counter[str]()).most_common()
    return _summary(local.folder, progress, bad_rows, tuple(warnings))


def _check_run(
    out: Path, shard: tuple[int, int] | None, engine: str, partition_size: int, grid: bool, on_lost_scene: str
) -> None:
    if file := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise SpecError(f"--out {out}: {file} is a file; name a folder for the dataset")
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise SpecError(f"shard {shard[0]}/{shard[1]} must be I/N with 0 <= I < N")
    check_choice("engine", engine, ("local", "ray"))
    check_choice("on_lost_scene", on_lost_scene, ("keep", "fail"))
    if partition_size < 1:
        raise SpecError(f"partition_size must be at least 1, got {partition_size}")
    if grid:
        import_extra("zarr", extra="zarr")
    if engine == "ray":
        import_extra("ray", extra="ray")


def _summary(
    folder: DatasetFolder, progress: Progress, bad_rows: tuple[str, ...], warnings: tuple[tuple[str, int], ...]
) -> ExportSummary:
    return ExportSummary(
        folder=folder.path,
        places=progress.total,
        done=progress.done,
        failed=progress.failed,
        no_imagery=progress.no_imagery,
        lost=progress.lost,
        seconds=round(progress.seconds, 1),
        slowest=tuple(progress.slowest),
        failures=tuple(progress.failures),
        bad_rows=bad_rows,
        warnings=warnings,
    )


def _planning(listener: ProgressListener, what: Literal["cutting", "planning"]) -> CutListener:
    """Return a callback that reports the work before the first place, about once a second."""
    last = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > REPORT_EVERY_S:
            last = time.perf_counter()
            listener({"event": what, "done": done, "total": total})

    return report


def _add_rows(local: Runner, rows: Rows, partition_size: int, report: CutListener) -> None:
    """Plan the rows that are not planned yet; another request than the folder's is refused.

    A dataset without a vector, as a mistaken command leaves it, is started over by a command for other rows or with
    other settings.
    """
    folder, request, embedder, total = local.folder, local.request, local.embedder, len(rows.schedule)
    dim = vector_lengths(embedder, OutputSpec.pooled()).embedding if request.grid else 0
    if request.grid:
        _warn_of_size(total, embedder.size.grid**2 * dim)
    with folder.lock("plan"):
        if folder.is_blank and (folder.differing(request) or not _knows_any(folder, request, rows)):
            _log.warning("%s held no vector: it is started over", folder.path)
            folder.start_over(request, versions())
        folder.check_request(request)
        folder.remove_leftovers()
        known = folder.planned_keys()
        tables = plan_tables(rows.places, rows.schedule, request, known, lambda done: report(done, total))
        folder.add_plan(request, tables, partition_size, versions())
        write_bad_rows(folder, request, rows.places, rows.schedule.faults, local.lengths)
    if request.grid:
        write_root(folder.grids(), request, dim)


def _knows_any(folder: DatasetFolder, request: ExportRequest, rows: Rows) -> bool:
    """Tell if any of the rows is planned already."""
    known = folder.planned_keys()
    tables = plan_tables(rows.places, rows.schedule, request, known[:0])
    return any(among(keys_of(table["unique_id"]), known).any() for table in tables)


def _run(
    main: Runner | RayRunner,
    local: Runner,
    numbers: Sequence[int],
    listener: ProgressListener,
    retry_failed: bool,
    bad_rows: int,
) -> Progress:
    """Run the partitions that are not done, then, if wanted, the failures of the others."""
    done = {n: counts for n, counts in local.folder.done().items() if n in numbers}
    failed = [n for n, counts in done.items() if counts.failed or counts.lost] if retry_failed else []
    progress = Progress(total=sum(map(local.folder.rows_in, numbers)) + bad_rows, failed=bad_rows)
    for counts in done.values():
        progress.count_partition(counts)
    progress.failed -= sum(done[n].failed for n in failed)
    lost = sum(done[n].lost for n in failed)
    progress.done, progress.lost = progress.done - lost, progress.lost - lost
    progress.finished_before = progress.finished
    main.run([n for n in numbers if n not in done], progress, listener)
    local.run(failed, progress, listener, retry=True)
    listener(progress.event("finished"))
    write_card(local.folder, local.request, local.lengths)
    return progress


def _warn_of_size(places: int, numbers: int) -> None:
    size_gb = places * numbers * 4 / 1e9
    if size_gb >= _LARGE_GB:
        message = "token grids of %s places take %.0f GB or more; without --grid they are not written"
        _log.warning(message, f"{places:,}", size_gb)


def _loadable(checkpoint: object | None) -> str | None:
    """Return a checkpoint's path or repo, which a later run can load again."""
    if checkpoint is None:
        return None
    if isinstance(checkpoint, (str, Path)):
        return str(checkpoint)
    kind = type(checkpoint).__qualname__
    raise SpecError(f"an export needs a checkpoint that a later run can load again: a path or hub repo, got a {kind}")
