"""2,000 places to a dataset against its stages alone: how well fetching and embedding overlap, and the memory.

`python -m benchmarks.bench_throughput [local|http|faults] [places]`
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `rs-embed export` does

import numpy as np

from benchmarks.bench_stac import JUNE, server
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import load_embedder
from rs_embed.export.dataset import open_dataset
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.partition_io import open_partition
from rs_embed.export.run import export_embeddings
from rs_embed.export.workers import summary_of
from rs_embed.grid import transformer
from rs_embed.pipeline import PreparedPlace, embed_prepared, prepare_all
from rs_embed.providers.archive import ArchiveProvider
from rs_embed.providers.base import Provider, fetch_patches
from rs_embed.providers.stac.catalogs import StacCatalog
from rs_embed.providers.stac.items import scene_of_item
from rs_embed.providers.stac.provider import StacProvider

MODEL, CHIP_M, SIDE_PX, BLOCK_PX = "clip_eurosat_s2rgb", 640.0, 5120, 128
FOLDER = Path(__file__).parent / "data" / "small_blocks"


def _items(url: str) -> list[dict[str, object]]:
    """Three dates of one tile in small blocks: many requests, light decoding. Made once."""
    from archive_server import Tile, write_scene

    tile = Tile("33UVP", 32633, 499_980, 5_300_040, SIDE_PX)
    stored = FOLDER / "items.json"
    if not stored.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        days = ("2022-06-03", "2022-06-13", "2022-06-23")
        items = [write_scene(FOLDER, "http://files", tile, day, seed=i, block=BLOCK_PX) for i, day in enumerate(days)]
        stored.write_text(json.dumps(items))
    found: list[dict[str, object]] = json.loads(stored.read_text().replace("http://files", url))
    return found


def write_places(path: Path, n: int) -> Path:
    """A CSV of places at random on the tile."""
    rng = np.random.default_rng(0)
    x, y = 499_980 + rng.uniform(400, SIDE_PX * 10 - 400, n), 5_300_040 - rng.uniform(800, SIDE_PX * 10 - 400, n)
    lon, lat = transformer(32633, 4326).transform(x, y)
    path.write_text("\n".join(["lon,lat", *(f"{a:.7f},{b:.7f}" for a, b in zip(lon, lat, strict=True))]))
    return path


def local_provider() -> ArchiveProvider:
    """The three dates as local files."""
    sys.path.insert(0, "tests")
    return ArchiveProvider("local", "bench", tuple(scene_of_item(item, str) for item in _items(str(FOLDER))))


def _measure(name: str, provider: Provider, n: int) -> str:
    with tempfile.TemporaryDirectory() as root:
        file, out = write_places(Path(root) / "places.csv", n), Path(root) / "ds"
        embedder = load_embedder(find_card(MODEL), checkpoint=None, device="auto", precision="fp32")
        warm = write_places(Path(root) / "warm.csv", n // 10)
        export_embeddings(MODEL, warm, Path(root) / "warm", temporal=JUNE, chip_m=CHIP_M, backend=provider)
        started = time.perf_counter()
        export_embeddings(MODEL, file, out, temporal=JUNE, chip_m=CHIP_M, backend=provider, report=_peak)
        whole_s = time.perf_counter() - started
        fetch_s, prepared = _fetch_alone(DatasetFolder(out), embedder.preparation, provider)
        started = time.perf_counter()
        for ready, _ in prepared:
            list(embed_prepared(embedder, ready, step=8))
        embed_s = time.perf_counter() - started
    serial, slower = n / (fetch_s + embed_s), n / max(fetch_s, embed_s)
    quarters = ", ".join(f"{min(_SEEN, key=lambda s: abs(s[0] - n * k / 4))[1]:.2f}" for k in (1, 2, 3, 4))
    line = (
        f"{n:,} places, {name}: {n / whole_s:.1f} a second; fetch alone {n / fetch_s:.1f}, embed alone "
        f"{n / embed_s:.1f}; {n / whole_s / serial:.0%} of one after the other, {n / whole_s / slower:.0%} of the "
        f"slower one; GB in use after each quarter: {quarters}"
    )
    print(line, flush=True)
    return line


_SEEN: list[tuple[int, float]] = []
"""Places done, and GB in use."""


def _peak(event: dict[str, object]) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    _SEEN.append((int(event.get("done", 0)), pages * 4096 / 1e9))  # type: ignore[call-overload]


def _fetch_alone(folder: DatasetFolder, preparation: object, provider: Provider) -> tuple[float, Sequence[object]]:
    """Imagery of all partitions as the model would see it; what was prepared is kept."""
    request, kept = folder.request, []
    started = time.perf_counter()
    for number in folder.partitions():
        partition = open_partition(folder, request, number)
        arrivals = fetch_patches(provider, list(partition.patches.values()))
        ready = list(prepare_all(preparation, partition.requests, arrivals, summarise=summary_of(request)))  # type: ignore[arg-type]
        assert all(isinstance(item, PreparedPlace) for item in ready)
        kept.append((ready, partition.requests))
    return time.perf_counter() - started, kept


def _under_faults(n: int) -> str:
    """The same places from a server that fails: every vector must be the same."""
    from archive_server import serve_stac, write_items

    found, seconds = [], []
    for faults in ((), (0.10, 0.05, 0.02)):
        with (
            tempfile.TemporaryDirectory() as root,
            server(FOLDER, 0.030, faults) as url,
            serve_stac(write_items(FOLDER / "served.json", _items(url))) as api,
        ):
            provider = StacProvider(StacCatalog(name="bench", url=api, collections=("sentinel-2-l2a",)))
            out, file = Path(root) / "ds", write_places(Path(root) / "places.csv", n)
            started = time.perf_counter()
            export_embeddings(MODEL, file, out, temporal=JUNE, chip_m=CHIP_M, backend=provider)
            seconds.append(time.perf_counter() - started)
            data = open_dataset(out)
            ids = data.to_table(["unique_id"])["unique_id"].to_pylist()
            found.append(dict(zip(ids, data.to_numpy(), strict=True)))
    calm, shaken = found
    same = sum(u in shaken and bool(np.allclose(shaken[u], v, atol=1e-5 * np.abs(v).max())) for u, v in calm.items())
    line = (
        f"{n:,} places under 10 % 500s, 5 % resets, 2 % corrupt blocks: {same:,} of {len(calm):,} vectors the same, "
        f"{seconds[1] / seconds[0]:.1f} times the time"
    )
    print(line, flush=True)
    return line


def report(kinds: Sequence[str] = ("local", "http", "faults"), n: int = 2000) -> list[str]:
    """One line an archive."""
    sys.path.insert(0, "tests")
    from archive_server import serve_stac, write_items

    lines = []
    if "local" in kinds:
        lines.append(_measure("local files", local_provider(), n))
    if "http" in kinds:
        with server(FOLDER, 0.030) as url, serve_stac(write_items(FOLDER / "served.json", _items(url))) as api:
            catalog = StacCatalog(name="bench", url=api, collections=("sentinel-2-l2a",))
            lines.append(_measure("30 ms a request", StacProvider(catalog), n))
    if "faults" in kinds:
        lines.append(_under_faults(n))
    return lines


if __name__ == "__main__":
    report(
        [a for a in sys.argv[1:] if not a.isdigit()] or ("local", "http"),
        *(int(a) for a in sys.argv[1:] if a.isdigit()),
    )
