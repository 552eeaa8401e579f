"""`rs-embed embed`, `classify` and `inspect`: vectors, labels and pixels of places."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from rs_embed.cli import options
from rs_embed.cli.places import NamedPlace, describe, exit_on_failures, read_places
from rs_embed.errors import SpecError, visible
from rs_embed.specs import InputPrep, OnLostScene, OutputMode, OutputSpec

if TYPE_CHECKING:
    from rs_embed.embedding import Embedding, Result

_EXPORT_FROM = 200  # number of places above which `embed` recommends `export`
_BAR_WIDTH = 24


def embed(
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    file: options.PlacesFile = None,
    output: Annotated[OutputMode, options.choice(OutputMode, "One vector, or one per token.")] = "pooled",
    pooling: options.Vector = None,
    input_prep: options.Prep = "resize",
    on_lost_scene: options.LostScene = "keep",
    out: Annotated[Path | None, Option(help="Write .npy, .npz, .json, .nc or .parquet instead of printing.")] = None,
    as_json: options.Json = False,
) -> None:
    """Embed one place, or a file of places."""
    from rs_embed.cli.write import check_suffix, to_json, write
    from rs_embed.embedding import Embedding

    places = read_places(request, file)
    spec = OutputSpec(output, pooling)
    if out is not None:
        check_suffix(out, spec)
    if len(places) > _EXPORT_FROM:
        print(
            f"note: `rs-embed embed` holds the {len(places)} places in memory and cannot resume: "
            "`rs-embed export` writes results as they come, and goes on where it stopped",
            file=sys.stderr,
        )
    results = _embed_places(places, spec, request, imagery, model, on_lost_scene, input_prep)
    done = [(p, r) for p, r in zip(places, results, strict=True) if isinstance(r, Embedding)]
    if out is None and as_json:
        typer.echo(to_json(places, results))
    elif out is None:
        for pair in done:
            typer.echo(_summary(*pair))
    elif done:
        write(out, places, results)
        print(f"wrote {len(done)} embedding(s) to {out}", file=sys.stderr)
    exit_on_failures(places, results)


def _embed_places(
    places: Sequence[NamedPlace],
    output: OutputSpec,
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    on_lost_scene: OnLostScene,
    input_prep: InputPrep = "resize",
) -> list[Result]:
    """Return one embedding or failure per place, in order."""
    from rs_embed.api import get_embeddings_batch

    return get_embeddings_batch(
        model.name,
        spatials=[named.place for named in places],
        temporal=request.time_range(),
        sensor=imagery.sensor(),
        output=output,
        backend=imagery.provider(),
        device=model.device,
        precision=model.precision,
        input_prep=input_prep,
        checkpoint=model.checkpoint,
        on_error="return",
        on_lost_scene=on_lost_scene,
        progress=len(places) > 1 and sys.stderr.isatty(),
    )


def _summary(named: NamedPlace, result: Embedding) -> str:
    import numpy as np

    values, meta = np.asarray(result.data), result.meta
    shape = " x ".join(map(str, values.shape))
    first = ", ".join(f"{v:.4f}" for v in values.ravel()[:4])
    scenes = visible(", ".join(f"{s['datetime'][:10]} {s['id']}" for s in meta["scenes"][:3]))
    shown = meta["shown_clear_frac"]
    return (
        f"{visible(named.id)}  {describe(named.place)}\n"
        f"   {meta['model']} {meta.get('pooling') or 'token grid'}: {shape} float32 [{first}, …]\n"
        f"   {meta['n_scenes']} scene(s): {scenes}; {meta['valid_frac']:.0%} of the pixels observed"
        f"{'' if shown is None else f', {shown:.0%} of these clear'}; "
        f"{meta['model_input']['effective_gsd_m']:.3g} m per model pixel"
    )


def classify(
    labels: Annotated[str, Option(help='"forest,river,houses"; with synonyms "water=river|lake,forest".')],
    request: options.RequestOptions,
    imagery: options.ImageryOptions,
    model: options.ModelOptions,
    file: options.PlacesFile = None,
    on_lost_scene: options.LostScene = "keep",
    template: Annotated[str, Option(help="rs, none, or a sentence with {}.")] = "rs",
    as_json: options.Json = False,
) -> None:
    """Print the probability of each label for each place.

    The probabilities assume that one of the labels is right.
    """
    from rs_embed.cli.write import record_head
    from rs_embed.embedding import Embedding
    from rs_embed.texts import zero_shot

    words = _read_labels(labels)
    places = read_places(request, file)
    results = _embed_places(places, OutputSpec.pooled("projected"), request, imagery, model, on_lost_scene)
    records = [record_head(p, r) for p, r in zip(places, results, strict=True)]
    embeddings = [r for r in results if isinstance(r, Embedding)]
    if embeddings:
        probabilities = zero_shot(
            embeddings,
            words,
            model=model.name,
            template=None if template == "none" else template,
            checkpoint=model.checkpoint,
            device=model.device,
        )
        for record, row in zip((r for r in records if r["ok"]), probabilities.tolist(), strict=True):
            by_label = dict(zip(words, row, strict=True))
            record |= {"label": max(by_label, key=by_label.__getitem__), "probabilities": by_label}
    if as_json:
        typer.echo(json.dumps(records, indent=1))
    else:
        typer.echo("\n".join(_ranking(p, r) for p, r in zip(places, records, strict=True) if r["ok"]))
    exit_on_failures(places, results)


def _read_labels(text: str) -> dict[str, list[str]]:
    """Parse `"water=river|lake,forest"` to `{"water": ["river", "lake"], "forest": ["forest"]}`."""
    labels: dict[str, list[str]] = {}
    for part in text.split(","):
        name, _, synonyms = (side.strip() for side in part.partition("="))
        words = [word.strip() for word in (synonyms or name).split("|")]
        if not name or not all(words) or name in labels:
            raise SpecError(f'--labels {text!r}: {part.strip()!r} is empty or twice; write "forest,water=river|lake"')
        labels[name] = words
    return labels


def _ranking(named: NamedPlace, record: dict[str, Any]) -> str:
    ranked = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])
    width = max(len(name) for name, _ in ranked)
    bars = [f"   {name:<{width}} {value:6.1%} {'█' * round(value * _BAR_WIDTH)}" for name, value in ranked]
    return "\n".join([f"{visible(named.id)}  {describe(named.place)}", *bars])


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
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join([describe(named.place), *_report(result)]))
    if not result["ok"]:
        raise typer.Exit(1)


def _report(result: dict[str, Any]) -> Iterator[str]:
    report = result["report"]
    quantiles, shown = report["band_quantiles"], report["shown_clear_frac"]
    rows = zip(report["band_min"], *(quantiles[q] for q in ("p01", "p50", "p99")), report["band_max"], strict=True)
    yield (
        f"{'good' if result['ok'] else 'NOT GOOD'}: {' x '.join(map(str, report['shape']))} {report['dtype']} from "
        f"{result['backend']}, {report['valid_frac']:.1%} observed, "
        f"{'' if shown is None else f'{shown:.1%} of these clear, '}{report['fill_frac']:.1%} fill"
    )
    yield f"   {'band':<6}{'min':>8}{'p01':>8}{'p50':>8}{'p99':>8}{'max':>8}   DN"
    for band, row in zip(result["sensor"]["bands"], rows, strict=False):
        yield f"   {band:<6}" + "".join(f"{'-' if v is None else format(v, '.0f'):>8}" for v in row)
    for scene in report["scenes"]:
        cloud, offset = ("?" if scene[key] is None else scene[key] for key in ("cloud_pct", "dn_offset"))
        found = f"(cloud {cloud} %, DN offset {offset}: {scene['dn_offset_reason']})"
        yield visible(f"   scene {scene['datetime'][:10]} {scene['id']} {found}")
    yield from (visible(f"   issue: {text}") for text in report["issues"])
    yield from (visible(f"   warning: {text}") for text in report["warnings"])
    yield from (f"   picture: {path}" for path in result["artifacts"].values())
