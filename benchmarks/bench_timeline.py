"""Timeline of the stages of one export (fetch, preparation, network), and the idle share of the busiest stage.

`python -m benchmarks.bench_timeline [PICTURE]` writes the picture (default: in docs/images). The imagery is a local
archive of full-sized files, with chips of 640 m; the network is ViT-B/32 with random weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `rs-embed export` has it, before torch is loaded

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image, ImageDraw

from benchmarks.bench_stac import JUNE
from benchmarks.bench_throughput import local_provider, write_places
from benchmarks.oracle import random_checkpoint
from rs_embed import export_embeddings, pipeline
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.providers.stac.cog import Cog
from rs_embed.search.draw import GREY, INK, PAPER, font

COLOURS = {"fetch": "#2a788e", "prepare": "#7ad151", "network": "#c2410c"}
PLACES = 256
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "timeline.png"


class Recorder:
    """Recorder of time intervals by stage and thread."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, int, float, float]] = []

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spans.append((stage, threading.get_ident(), started, time.perf_counter()))

        return timed

    def around_coroutine(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return await function(*arguments, **named)
            finally:
                self.spans.append((stage, threading.get_ident(), started, time.perf_counter()))

        return timed


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the seconds during which at least one interval runs."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def draw(recorder: Recorder, path: Path, facts: str) -> None:
    """Draw one row per thread and one bar per interval."""
    first, last = min(s[2] for s in recorder.spans), max(s[3] for s in recorder.spans)
    rows = sorted({(stage, thread) for stage, thread, _, _ in recorder.spans}, key=lambda r: list(COLOURS).index(r[0]))
    width, top, step = 1200, 70, 30
    image = Image.new("RGB", (width + 160, top + step * len(rows) + 50), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((20, 12), "Stages of an export", INK, font=font(24))
    pen.text((20, 42), facts, GREY, font=font(14))

    def x(moment: float) -> float:
        return 120 + (moment - first) / (last - first) * width

    for number, (stage, thread) in enumerate(rows):
        y = top + number * step
        pen.text((20, y + 5), stage, INK, font=font(14))
        for what, who, start, stop in recorder.spans:
            if (what, who) == (stage, thread):
                pen.rectangle((x(start), y + 3, max(x(stop), x(start) + 1), y + step - 4), COLOURS[stage])
    bottom = top + step * len(rows)
    for tick in range(int(last - first) + 1):
        pen.line((x(first + tick), bottom, x(first + tick), bottom + 6), GREY)
        if tick % max(1, int(last - first) // 10) == 0:
            pen.text((x(first + tick) - 4, bottom + 10), f"{tick} s", GREY, font=font(13))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def report(picture: Path | None = None) -> list[str]:
    """Print the result as one line, and draw the picture."""
    recorder, weights = Recorder(), random_checkpoint()
    with tempfile.TemporaryDirectory() as root:
        patches = (
            mock.patch.object(Cog, "fetch_blocks", recorder.around_coroutine("fetch", Cog.fetch_blocks)),
            mock.patch.object(pipeline, "_prepare", recorder.around("prepare", pipeline._prepare)),
            mock.patch.object(RemoteClipEmbedder, "start", recorder.around("network", RemoteClipEmbedder.start)),
        )
        with patches[0], patches[1], patches[2]:
            export_embeddings(
                "remoteclip_s2rgb",
                write_places(Path(root) / "places.csv", PLACES),
                Path(root) / "out",
                temporal=JUNE,
                backend=local_provider(),
                checkpoint=str(weights),
                chip_m=640,
            )
    spans = {stage: [(a, b) for s, _, a, b in recorder.spans if s == stage] for stage in COLOURS}
    whole = max(s[3] for s in recorder.spans) - min(s[2] for s in recorder.spans)
    busy = {stage: covered(found) / whole for stage, found in spans.items()}
    slowest = max(busy, key=busy.__getitem__)
    line = (
        f"timeline of {PLACES} places, local files: "
        + ", ".join(f"{stage} at work {share:.0%}" for stage, share in busy.items())
        + f" of {whole:.1f} s; the busiest ({slowest}) idles {1 - busy[slowest]:.0%}"
    )
    print(line, flush=True)
    if picture is not None:
        draw(recorder, picture, line)
    return [line]


if __name__ == "__main__":
    report(*(Path(a) for a in sys.argv[1:] or [PICTURE]))
