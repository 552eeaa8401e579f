"""`rs-embed inspect`: a report on the imagery of one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.places import describe, read_places


def inspect(
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    save_dir: Annotated[Path | None, Option(help="Write a quicklook PNG to this folder.")] = None,
    as_json: options.Json = False,
) -> None:
    """Fetch one place and report on its pixels.

    The exit code is 1 if the checks fail.
    """
    from rs_embed.api import inspect_provider_patch

    [named] = read_places(request)
    result = inspect_provider_patch(
        spatial=named.place, temporal=request.time_range(), sensor=imagery.sensor(save_dir), backend=imagery.provider()
    )
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join([describe(named.place), *_lines(result)]))
    if not result["ok"]:
        raise typer.Exit(1)


def _lines(result: dict[str, Any]) -> list[str]:
    report = result["report"]
    quantiles = report["band_quantiles"]
    rows = zip(report["band_min"], *(quantiles[q] for q in ("p01", "p50", "p99")), report["band_max"], strict=True)
    return [
        f"{'good' if result['ok'] else 'NOT GOOD'}: {' x '.join(map(str, report['shape']))} {report['dtype']} from "
        f"{result['backend']}, {report['valid_frac']:.1%} observed, {report['fill_frac']:.1%} fill",
        f"   {'band':<6}{'min':>8}{'p01':>8}{'p50':>8}{'p99':>8}{'max':>8}   DN",
        *(
            f"   {band:<6}" + "".join(f"{'-' if v is None else format(v, '.0f'):>8}" for v in row)
            for band, row in zip(result["sensor"]["bands"], rows, strict=False)
        ),
        *(
            f"   scene {s['datetime'][:10]} {s['id']} (cloud {_known(s['cloud_pct'])} %, "
            f"DN offset {_known(s['dn_offset'])}: {s['dn_offset_reason']})"
            for s in report["scenes"]
        ),
        *(f"   issue: {text}" for text in report["issues"]),
        *(f"   warning: {text}" for text in report["warnings"]),
        *(f"   picture: {path}" for path in result["artifacts"].values()),
    ]


def _known(value: float | None) -> str:
    return "?" if value is None else str(value)
