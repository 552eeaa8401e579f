"""The progress bar of long work, in a terminal or a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def progress_bar(*more: ProgressColumn, disable: bool = False, transient: bool = False) -> Progress:
    """Return a progress bar on stderr or in a notebook, with `more` columns; a `transient` one goes away in the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    console = Console(stderr=True)
    if console.is_jupyter:
        from rs_embed.notebook import NotebookProgress

        return NotebookProgress(*columns, disable=disable, transient=transient)
    return Progress(*columns, console=console, disable=disable, transient=transient)
