"""`rs-embed index` and `rs-embed search`: a dataset by words or by example."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rs_embed.cli import options
from rs_embed.files import atomic_write

if TYPE_CHECKING:
    from PIL import ImageDraw

    from rs_embed.search.results import Found, Hit

Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="A folder that `rs-embed export` wrote.")]
_COLUMNS, _SIDE, _LINE = 5, 192, 40


@contextmanager
def building() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while an index is built."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    hidden = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task("indexing, file", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def index(
    dataset: Dataset,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make it anew, as after rows were changed by hand.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Build a dataset's index, or take in what was added since; `search` does it by itself."""
    from rs_embed.search.index import EmbeddingIndex

    with building() as report:
        found = EmbeddingIndex(dataset, report, rebuild=rebuild)
    facts = {"rows": len(found), "model": found.request.model, "folder": str(dataset)}
    typer.echo(json.dumps(facts) if as_json else f"{len(found):,} row(s) of {found.request.model} can be searched")


def search(
    dataset: Dataset,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help='Words, such as "river through forest".')] = None,
    negative: Annotated[list[str] | None, typer.Option("--negative", help="Words for what is not wanted.")] = None,
    like: Annotated[
        list[str] | None, typer.Option("--like", metavar="ID", help="A row as the example; repeatable.")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--unlike", metavar="ID", help="A row not meant; repeatable.")
    ] = None,
    concept: Annotated[str | None, typer.Option("--concept", metavar="NAME", help="What --save saved.")] = None,
    save: Annotated[
        str | None, typer.Option("--save", metavar="NAME", help="Keep what --like and --unlike teach as a concept.")
    ] = None,
    bbox: options.Box = None,
    start: Annotated[str | None, typer.Option("--start", metavar="YYYY-MM-DD", help="Only from this day.")] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="YYYY-MM-DD", help="Only before this day.")] = None,
    k: Annotated[int, typer.Option("--k", help="How many.")] = 20,
    every_window: Annotated[bool, typer.Option("--every-window", help="Each time range of a place.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row, however many there are.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the footprints as GeoJSON.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the quicklooks on a contact sheet.")] = None,
    as_json: options.Json = False,
) -> None:
    """Find the rows most like some words, other rows, or a saved concept."""
    from rs_embed.search.index import EmbeddingIndex

    if plot is not None:
        options.check_ending("--plot", plot, options.PICTURES)
    with building() as report:
        rows = EmbeddingIndex(dataset, report)
    found = rows.search(
        text,
        id=like,
        unlike=unlike or (),
        concept=concept,
        negative=negative or (),
        bbox=bbox,
        time=options.time_range(start, end),
        k=k,
        every_window=every_window,
        exact=exact or None,
    )
    if save is not None:
        rows.train(like or (), unlike or (), name=save, text=text)
        print(f"saved the concept {save!r}: rs-embed search {dataset} --concept '{save}'", file=sys.stderr)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as part:
            part.write_text(json.dumps(found.to_geojson(), indent=1) + "\n", encoding="utf-8")
        print(f"wrote {len(found.hits)} footprint(s) to {out}", file=sys.stderr)
    if plot is not None:
        pictures = rows.thumbnails([hit.unique_id for hit in found.hits])
        _draw(found, pictures, plot, text or (f"concept {concept}" if concept else f"like {', '.join(like or ())}"))
        print(f"wrote {plot}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps(found.facts()))
    else:
        typer.echo("\n".join(_lines(found)))
    if not found.hits:
        raise typer.Exit(1)


def _lines(found: Found) -> Iterator[str]:
    from rs_embed.providers.archive import lonlat_text

    if found.notice:
        yield found.notice
    how = "all compared" if found.exact else f"by sign bits, rescored; recall {found.recall:.3f} when it was built"
    yield f"{found.searched:,} row(s) searched ({how})"
    for hit in found.hits:
        odds = "" if hit.probability is None else f"  {hit.probability:4.0%} likely"
        place = f"{lonlat_text(hit.lon, hit.lat)}  {hit.start} to {hit.end}"
        yield f"{hit.rank:>4}  {place}  above {hit.percentile:5.1f} %{odds}  {hit.id}"


def _draw(found: Found, pictures: Mapping[str, bytes], path: Path, title: str) -> None:
    """Quicklooks, the best first, each with its rank and place."""
    from PIL import Image, ImageDraw

    from rs_embed.cli.demo_picture import GREY, INK, LEFT, PAPER, font

    step, rows = _SIDE + 16, -(-max(len(found.hits), 1) // _COLUMNS)
    sheet = Image.new("RGB", (LEFT + _COLUMNS * step + 8, 90 + rows * (_SIDE + _LINE + 10)), PAPER)
    pen = ImageDraw.Draw(sheet)
    _line(pen, 16, f"“{title}”", INK, 26)
    _line(pen, 52, found.notice or f"the best of {found.searched:,}", GREY, 15)
    for number, hit in enumerate(found.hits):
        x, y = LEFT + number % _COLUMNS * step, 90 + number // _COLUMNS * (_SIDE + _LINE + 10)
        if hit.unique_id in pictures:
            picture = Image.open(io.BytesIO(pictures[hit.unique_id])).convert("RGB")
            sheet.paste(picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
        else:
            pen.rectangle((x, y, x + _SIDE, y + _SIDE), outline=GREY)
            pen.text((x + 8, y + _SIDE // 2 - 8), "no thumbnail", GREY, font=font(14))
        pen.text((x, y + _SIDE + 4), _caption(hit), INK, font=font(14))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        sheet.save(part)


def _line(pen: ImageDraw.ImageDraw, y: int, text: str, colour: str, size: int) -> None:
    """A line of text, shortened where it is longer than the sheet is wide."""
    from rs_embed.cli.demo_picture import LEFT, font

    width, letters = _COLUMNS * (_SIDE + 16) - LEFT, len(text)
    while letters and pen.textlength(text[:letters] + "…", font=font(size)) > width:
        letters -= 1
    pen.text((LEFT, y), text if letters == len(text) else text[:letters] + "…", colour, font=font(size))


def _caption(hit: Hit) -> str:
    return f"{hit.rank}   {hit.lat:.4f}, {hit.lon:.4f}"
