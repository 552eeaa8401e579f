"""Time and memory of planning a country: its chips are counted, cut, ordered and written, and found again by a resume.

`python -m benchmarks.bench_plan [chips]`; no model, no imagery.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from benchmarks.fake_request import request_of
from benchmarks.machine import peak_mib
from rs_embed import plan_export
from rs_embed.embedders.cards import find_card
from rs_embed.export.folder import DatasetFolder
from rs_embed.export.formats import ReadOptions
from rs_embed.export.limits import Limits
from rs_embed.export.partitions import PARTITION_SIZE, plan_tables
from rs_embed.export.rows import RowsWanted
from rs_embed.providers.base import FetchPlan, PatchRequest
from rs_embed.specs import OutputSpec, SensorSpec, TemporalSpec

CHIP_M = 320.0
JUNE = TemporalSpec.range("2022-06-01", "2022-07-01")
_CORNERS = 10_000


class _Source:
    name = "fake"

    def fetch(self, requests: Sequence[PatchRequest]) -> object:
        raise NotImplementedError

    def plan(self, requests: Sequence[PatchRequest]) -> FetchPlan:
        return FetchPlan(scenes_of=(1,) * len(requests), covered=(1.0,) * len(requests), read_bytes=len(requests))


def country(chips: int) -> shapely.Polygon:
    """Return an outline of 10,000 corners, as a coast has them, around so many chips of 320 m in Central Europe."""
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    radius = np.sqrt(chips / np.pi) * CHIP_M / 111_000 * (1 + 0.1 * np.sin(40 * angle) + 0.02 * np.sin(900 * angle))
    return shapely.Polygon(
        np.column_stack((13 + radius * np.cos(angle) / np.cos(np.radians(48)), 48 + radius * np.sin(angle)))
    )


def report(chips: int = 10_000_000) -> list[str]:
    """Print the seconds of each stage, and the memory."""
    region, card, sensor = country(chips), find_card("remoteclip_s2rgb"), SensorSpec()
    wanted = RowsWanted(source=region, chip_m=CHIP_M, read=ReadOptions(max_places=None), temporal=JUNE, every=None)
    limits = Limits(card=card, scale_m=10, output=OutputSpec.pooled())
    request = request_of(card.name, chip_m=CHIP_M)
    seconds, started = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name], started = time.perf_counter() - started, time.perf_counter()

    estimate = plan_export(region, temporal=JUNE, sensor=sensor, backend=_Source(), chip_m=CHIP_M)
    lap("plan_export (a sample)")
    rows = wanted.find(limits)
    lap("cut and order")
    with tempfile.TemporaryDirectory() as root:
        folder = DatasetFolder(Path(root) / "ds")
        planned = folder.add_plan(
            request, plan_tables(rows.places, rows.schedule, request, folder.planned_keys()), PARTITION_SIZE, {}
        )
        lap("write the plan")
        left = folder.add_plan(
            request, plan_tables(rows.places, rows.schedule, request, folder.planned_keys()), PARTITION_SIZE, {}
        )
        lap("resume")
        size = sum(file.stat().st_size for file in folder.path.rglob("plan-*.parquet"))
    assert (planned, left) == (len(rows.schedule), 0)
    parts = ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items())
    line = (
        f"{planned:,} chips of {CHIP_M:g} m ({estimate.rows:,} estimated): {parts}; peak {peak_mib() / 1024:.2f} GB, "
        f"the plan takes {size / 1e9:.2f} GB"
    )
    print(line, flush=True)
    return [line]


if __name__ == "__main__":
    report(*map(int, sys.argv[1:]))
