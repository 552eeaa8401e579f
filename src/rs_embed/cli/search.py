"""`rs-embed index`, `search` and `serve`: a dataset searched by words or examples, in a shell or on a map."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from rs_embed.cli import options
from rs_embed.errors import RSEmbedError, missing_package, visible
from rs_embed.files import atomic_write, make_folder
from rs_embed.progress import progress_bar

if TYPE_CHECKING:
    from rs_embed.search.index import EmbeddingIndex
    from rs_embed.search.results import SearchResults

Yes = Annotated[bool, Option("--yes", help="Fetch weights that the dataset names and this machine lacks.")]
_FOOTPRINTS = (".geojson", ".json", ".gpkg")
MAP_REMEDY = "the build downloads them from npm and PyPI; install a wheel, or install the clone again with a network"


def index(
    dataset: options.Dataset,
    rebuild: Annotated[bool, Option("--rebuild", help="Start anew, as after rows were edited by hand.")] = False,
    as_json: options.Json = False,
) -> None:
    """Build the search index of a dataset, or add new rows to it.

    `rs-embed search` and `rs-embed serve` do it by themselves.
    """
    found = _open_index(dataset, rebuild=rebuild)
    found.add()  # a search does not wait for another process that writes to the index; this command does
    facts = {"rows": len(found), "model": found.request.model, "folder": str(dataset)}
    typer.echo(json.dumps(facts) if as_json else f"{len(found):,} row(s) of {found.request.model} can be searched")


def _open_index(dataset: Path, *, rebuild: bool = False, download: bool = False) -> EmbeddingIndex:
    """Return the index of a dataset, with a bar for the files that are read."""
    from rs_embed.search.index import EmbeddingIndex

    with progress_bar(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("indexing, file", total=None)

        def report(read: int, files: int) -> None:
            bar.update(task, completed=read, total=files)

        return EmbeddingIndex(dataset, report, rebuild=rebuild, download=download)


def _may_download(dataset: Path, yes: bool) -> bool:
    """Ask a person whether weights may be fetched that the dataset names and this machine lacks; without one, no."""
    from rs_embed.export.folder import DatasetFolder
    from rs_embed.search.weights import DatasetWeights

    missing = DatasetWeights(DatasetFolder(dataset).request).missing
    if missing is None or yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return yes
    print(f"{dataset} was made with the weights {missing!r}, which are not on this machine.", file=sys.stderr)
    return typer.confirm("Do you trust the dataset, and fetch them from the hub?", err=True)


def search(
    dataset: options.Dataset,
    time: options.OptionalTimeOptions,
    text: Annotated[str | None, Argument(metavar="[TEXT]", help='Words, such as "river through forest".')] = None,
    negative: options.Negative = None,
    like: Annotated[list[str] | None, Option(metavar="ID", help="A row as an example; repeatable.")] = None,
    unlike: Annotated[list[str] | None, Option(metavar="ID", help="A row as a counterexample; repeatable.")] = None,
    concept: Annotated[str | None, Option(metavar="NAME", help="A saved concept.")] = None,
    save: Annotated[str | None, Option(metavar="NAME", help="Save the --like and --unlike rows as a concept.")] = None,
    bbox: options.Box = None,
    k: Annotated[int, Option(help="Number of results.")] = 20,
    every_window: Annotated[bool, Option("--every-window", help="List every time range of a place.")] = False,
    exact: Annotated[bool, Option("--exact", help="Compare every row, however many there are.")] = False,
    out: Annotated[Path | None, Option(help="Write the footprints: .geojson, or .gpkg for a GIS.")] = None,
    plot: Annotated[Path | None, Option(help="Draw the quicklooks on a contact sheet.")] = None,
    yes: Yes = False,
    as_json: options.Json = False,
) -> None:
    """Find the rows most like some words, other rows, or a saved concept."""
    if plot is not None:
        options.check_ending("--plot", plot, options.PICTURES)
    if out is not None:
        options.check_ending("--out", out, _FOOTPRINTS)
    rows = _open_index(dataset, download=bool(text or negative) and _may_download(dataset, yes))
    found = rows.search(
        text,
        id=like,
        unlike=unlike or (),
        concept=concept,
        negative=negative or (),
        bbox=bbox,
        time=time.time_range(),
        k=k,
        every_window=every_window,
        exact=exact or None,
    )
    if save is not None:
        rows.train(like or (), unlike or (), name=save, text=text)
        print(f"saved the concept {save!r}: rs-embed search {dataset} --concept '{save}'", file=sys.stderr)
    if out is not None:
        _write_footprints(found, out)
    if plot is not None:
        from rs_embed.search.draw import contact_sheet

        title = text or (f"concept {concept}" if concept else f"like {', '.join(like or ())}")
        contact_sheet(found, rows.thumbnails([hit.unique_id for hit in found.hits]), title).save(plot)
        print(f"wrote {plot}", file=sys.stderr)
    typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(_lines(found)))
    if not found.hits:
        raise typer.Exit(1)


def _write_footprints(found: SearchResults, path: Path) -> None:
    make_folder(path.parent)
    with atomic_write(path) as part:
        if path.suffix.lower() == ".gpkg":
            found.to_geodataframe().set_crs(4326, allow_override=True).to_file(part, driver="GPKG", layer="hits")
        else:
            part.write_text(json.dumps(found.to_geojson(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(found.hits)} footprint(s) to {path}", file=sys.stderr)


def _lines(found: SearchResults) -> Iterator[str]:
    from rs_embed.grid import lonlat_text

    if found.notice:
        yield visible(found.notice)
    method = "all compared" if found.exact else f"by sign bits, rescored; recall {found.recall:.3f} when it was built"
    yield f"{found.searched:,} row(s) searched ({method})"
    for hit in found.hits:
        likely = "" if hit.probability is None else f"  {hit.probability:4.0%} likely"
        place = f"{lonlat_text(hit.lon, hit.lat)}  {hit.start} to {hit.end}"
        warned = f"  (warnings: {', '.join(hit.warnings)})" if hit.warnings else ""
        yield visible(f"{hit.rank:>4}  {place}  above {hit.percentile:5.1f} %{likely}  {hit.id}{warned}")


def serve(
    dataset: options.Dataset,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    port: options.Port = 8000,
    allow_host: Annotated[
        list[str] | None, Option(metavar="NAME", help="A name, besides addresses, that it answers for; repeatable.")
    ] = None,
    save_concepts: Annotated[
        bool, Option("--save-concepts", help="Let the page save concepts beside the dataset; else they are downloads.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Search a dataset by words on a map in a browser.

    /openapi.json describes the HTTP API.
    """
    try:
        from rs_embed.web import server
    except ModuleNotFoundError as error:
        raise RSEmbedError(missing_package(error.name or "fastapi", extra="web")) from None
    if not server.has_page_files():
        print(f"warning: files of the page are missing, the HTTP API works: {MAP_REMEDY}", file=sys.stderr)
    found = _open_index(dataset, download=_may_download(dataset, yes))
    listener = server.listen(host, port)
    typer.echo(f"http://{host}:{port}/   (Ctrl-C ends it)")
    server.serve(found, listener, allow_host or (), save_concepts=save_concepts)
