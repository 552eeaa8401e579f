"""Cost of planning, writing and resuming, with a fake model and fake imagery that take no time.

`python -m benchmarks.bench_export [rows …]`; draws `benchmarks/data/export_overhead.png`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.fake_request import request_of
from benchmarks.machine import peak_mib
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.chips import Chips, ChipSize, Preparation
from rs_embed.embedders.onthefly_remoteclip import Encoded, RemoteClipEmbedder
from rs_embed.export.card import write_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.inputs import read_places
from rs_embed.export.partitions import PARTITION_SIZE, plan_tables
from rs_embed.export.progress import Progress
from rs_embed.export.request import VectorLengths
from rs_embed.export.schedule import schedule
from rs_embed.export.workers import Runner
from rs_embed.patch import Patch, SceneRecord
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.specs import InputPrep, OutputSpec, TemporalSpec
from rs_embed.versions import versions

SIZES = (10_000, 30_000, 100_000)
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
LENGTHS = VectorLengths(embedding=768, projected=512)
_SCENE = SceneRecord(
    id="S2A_FAKE",
    datetime="2022-06-03T10:00:00Z",
    cloud_pct=1.0,
    processing_baseline="04.00",
    dn_offset=-1000.0,
    dn_offset_reason="fake",
)


@dataclass(frozen=True)
class _Preparation(Preparation):
    def cut(self, dn: npt.NDArray[np.generic], *, fill_value: float, prep: InputPrep) -> Chips:
        return _CHIPS


_CHIPS = replace(
    Preparation((0, 1), ChipSize(32, 32)).cut(np.ones((3, 32, 32), np.uint16), fill_value=0, prep="resize"),
    images=(np.zeros((1, 1, 3), np.uint8),),
)


class _Embedder(RemoteClipEmbedder):
    """Embedder that takes no time."""

    def start(
        self, patches: Sequence[Chips], output: OutputSpec, *, step: int, with_tokens: bool = False
    ) -> Callable[[], list[Encoded]]:
        return lambda: [
            Encoded(np.ones(LENGTHS.embedding, np.float32), np.ones(LENGTHS.projected, np.float32), None, (0, 0, 0))
            for _ in patches
        ]


class _Provider:
    name = "fake"

    def fetch(self, requests: Sequence[PatchRequest]) -> Iterator[tuple[int, Patch]]:
        for i, request in enumerate(requests):
            dn = np.full((3, *request.geobox.shape), 900, np.float32)
            yield (
                i,
                Patch(dn=dn, geobox=request.geobox, bands=request.sensor.bands, source="fake", scenes=(_SCENE,) * 3),
            )

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        raise NotImplementedError


def run_one(n: int, root: Path) -> dict[str, float]:
    """Return the seconds of each stage for `n` rows."""
    rng = np.random.default_rng(0)
    lines = [f"{i},{a:.6f},{b:.6f},{i % 7}" for i, (a, b) in enumerate(rng.uniform((0, 40), (20, 55), (n, 2)))]
    file = root / f"{n}.csv"
    file.write_text("\n".join(["id,lon,lat,label", *lines]))
    folder = DatasetFolder(root / f"ds-{n}")
    card = find_card("remoteclip_s2rgb")
    digest: Future[str] = Future()
    digest.set_result("0" * 64)
    embedder = _Embedder(
        preparation=_Preparation((0, 1), ChipSize(32, 32)),
        card=card,
        network=None,  # type: ignore[arg-type]
        size=ChipSize(32, 32),
        device=torch.device("cpu"),
        checkpoint="fake",
        digest=digest,
        activation="gelu",
    )
    seconds = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    found = read_places(file, ReadOptions(chip_m=320))
    lap("read")
    request = request_of(card.name, columns=(("label", "int64"),))
    tables = plan_tables(found, schedule(found, JUNE, None), request, folder.planned_keys())
    folder.add_plan(request, tables, PARTITION_SIZE, versions())
    lap("plan")
    Runner(folder, request, embedder, _Provider(), LENGTHS).run(
        list(folder.partitions()), Progress(n), lambda event: None
    )
    write_card(folder, request, LENGTHS)
    lap("run and write")
    again = read_places(file, ReadOptions(chip_m=320))
    left = plan_tables(again, schedule(again, JUNE, None), request, folder.planned_keys())
    assert sum(table.num_rows for table in left) == 0
    assert len(folder.done()) == len(folder.partitions())
    lap("resume")
    return seconds


def report(sizes: Sequence[int] = SIZES) -> list[str]:
    """Print one line per size, which shows linear growth."""
    found, lines = {}, []
    with tempfile.TemporaryDirectory() as root:
        for n in sizes:
            found[n] = run_one(n, Path(root))
            total = sum(found[n].values())
            parts = ", ".join(f"{name} {s:.1f}" for name, s in found[n].items())
            peak = peak_mib() / 1024
            line = (
                f"{n:,} rows, fake model: {total:.1f} s ({parts}), {1e3 * total / n:.2f} ms a row, peak {peak:.2f} GB"
            )
            lines.append(line)
            print(line, flush=True)
    _draw(found)
    return lines


def _draw(found: dict[int, dict[str, float]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    sizes = list(found)
    for name in found[sizes[0]]:
        axes.plot(sizes, [found[n][name] for n in sizes], marker="o", label=name)
    axes.set_xlabel("rows")
    axes.set_ylabel("seconds")
    axes.legend()
    path = Path(__file__).parent / "data" / "export_overhead.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    report([int(a) for a in sys.argv[1:]] or SIZES)
