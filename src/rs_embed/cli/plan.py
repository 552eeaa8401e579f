"""`rs-embed plan`: the cost of an export, before any pixel is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.rows import Grid, RowOptions
from rs_embed.specs import OutputSpec

if TYPE_CHECKING:
    from rs_embed.export.cost import ExportPlan


def plan(
    rows: RowOptions,
    time: options.OptionalTimeOptions,
    source: options.SourceOptions,
    model: options.Model = "remoteclip_s2rgb",
    pooling: options.Vector = None,
    grid: Grid = False,
    mbit_s: Annotated[float, Option(help="Rate of the network in megabits per second.")] = 200,
    as_json: options.Json = False,
) -> None:
    """Print how much an export would read and write.

    It asks the catalog and reads no pixel.
    """
    from rs_embed.export.cost import plan_export

    found = plan_export(
        rows.places(),
        temporal=time.time_range(),
        sensor=source.sensor(),
        model=model,
        output=OutputSpec("pooled", pooling),
        backend=source.backend,
        chip_m=rows.chip_m,
        every=rows.every,
        read=rows.reading(),
        grid=grid,
        mbit_s=mbit_s,
    )
    typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(plan_lines(found)))


def plan_lines(plan: ExportPlan) -> Iterator[str]:
    """Yield the cost of an export, for a person."""
    from rs_embed.export.cost import minutes_of

    fetch = plan.fetch
    yield f"{fetch.places:,} place(s), {fetch.scenes:,} scene(s) to read for them"
    yield f"{'':<46}{'blocks':>10}{'requests':>10}{'GB in':>9}{'minutes':>9}"
    for name, found in (("as asked", fetch), *plan.alternatives):
        minutes = minutes_of(found, plan.mbit_s)
        yield f"{name:<46}{found.blocks:>10,}{found.requests:>10,}{found.read_bytes / 1e9:>9.2f}{minutes:>9.1f}"
    yield f"minutes of the network at {plan.mbit_s:g} Mbit/s; with the model on two cores {plan.minutes:,.1f}"
    grids = f", token grids {plan.grid_bytes / 1e9:.2f} GB" if plan.grid_bytes else ""
    yield f"written: {plan.write_bytes / 1e9:.2f} GB{grids}"
    missing, partly = len(fetch.places_without_scene), plan.partly_covered
    if missing or partly:
        yield f"gaps: {missing:,} place(s) without any scene, {partly:,} only partly covered"
    if plan.bad_rows:
        yield f"{len(plan.bad_rows):,} row(s) are no places: {plan.bad_rows[0]}"
