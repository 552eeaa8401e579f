"""`rs-embed inspect`: look at the imagery before a model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rs_embed.cli import options
from rs_embed.cli.places import describe, read_places
from rs_embed.specs import TemporalSpec


def inspect(
    start: options.Start,
    end: options.End,
    point: options.Point = None,
    buffer_m: options.BufferM = None,
    chip: options.Chip = None,
    bbox: options.Box = None,
    backend: options.Backend = "auto",
    cache: options.Cache = None,
    scale_m: options.ScaleM = 10,
    cloudy_pct: options.CloudyPct = 30,
    composite: options.Composite = "median",
    cloud_mask: options.CloudMask = None,
    max_scenes: options.MaxScenes = None,
    save_dir: Annotated[Path | None, typer.Option("--save-dir", help="Write a quicklook PNG there.")] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch one place and report on its pixels; exit 1 when they fail."""
    from dataclasses import replace

    from rs_embed.api import inspect_provider_patch

    [named] = read_places(None, point, bbox, buffer_m, chip)
    sensor = options.sensor(scale_m, cloudy_pct, composite, cloud_mask, max_scenes)
    result = inspect_provider_patch(
        spatial=named.place,
        temporal=TemporalSpec.range(start, end),
        sensor=replace(sensor, check_save_dir=None if save_dir is None else str(save_dir)),
        backend=options.source(backend, cache),
    )
    typer.echo(json.dumps(result, indent=1) if as_json else f"{describe(named.place)}\n{_text(result)}")
    if not result["ok"]:
        raise typer.Exit(1)


def _text(result: dict[str, Any]) -> str:
    report = result["report"]
    quantiles = report["band_quantiles"]
    lines = [
        f"{'good' if result['ok'] else 'NOT GOOD'}: {' x '.join(map(str, report['shape']))} {report['dtype']} from "
        f"{result['backend']}, {report['valid_frac']:.1%} observed, {report['fill_frac']:.1%} fill",
        f"   {'band':<6}{'min':>8}{'p01':>8}{'p50':>8}{'p99':>8}{'max':>8}   DN",
    ]
    rows = zip(report["band_min"], *(quantiles[q] for q in ("p01", "p50", "p99")), report["band_max"], strict=True)
    for band, row in zip(result["sensor"]["bands"], rows, strict=False):
        lines.append(f"   {band:<6}" + "".join(f"{'-' if v is None else format(v, '.0f'):>8}" for v in row))
    lines += [
        f"   scene {s['datetime'][:10]} {s['id']} (cloud {s['cloud_pct'] if s['cloud_pct'] is not None else '?'} %, "
        f"DN offset {s['dn_offset'] if s['dn_offset'] is not None else '?'}: {s['dn_offset_reason']})"
        for s in report["scenes"]
    ]
    lines += [f"   issue: {text}" for text in report["issues"]]
    lines += [f"   warning: {text}" for text in report["warnings"]]
    lines += [f"   picture: {path}" for path in result["artifacts"].values()]
    return "\n".join(lines)
