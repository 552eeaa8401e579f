"""Progress bar of a notebook: HTML that is replaced in place, so that the saved notebook shows its last state.

rich's own bar needs a widget there, which a saved or converted notebook cannot show.
"""

from __future__ import annotations

import time
from html import escape
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID

_SECONDS = 0.2
"""Least time between two states of a bar."""


class NotebookProgress(Progress):
    """A `rich` progress display for a Jupyter kernel."""

    def __init__(self, *columns: ProgressColumn, transient: bool = False, disable: bool = False) -> None:
        super().__init__(*columns, auto_refresh=False, disable=disable)
        self._transient = transient
        self._display: Any = None
        self._shown_at = 0.0

    def start(self) -> None:
        """Show the bar."""
        self._show()

    def stop(self) -> None:
        """Show the last state; a transient bar goes away."""
        self._show(gone=self._transient)

    def refresh(self) -> None:
        """Show the present state, unless the last one is that young."""
        if time.monotonic() - self._shown_at >= _SECONDS:
            self._show()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task and show it."""
        super().update(task_id, **changes)
        self.refresh()

    def _show(self, *, gone: bool = False) -> None:
        if self.disable or not self.tasks:
            return
        from IPython.display import display

        tasks = [] if gone else [task for task in self.tasks if task.visible]
        content = {
            "text/html": "".join(map(self._html, tasks)),
            "text/plain": "\n".join(" ".join(self._texts(task)) for task in tasks),
        }
        self._shown_at = time.monotonic()
        if self._display is None:
            self._display = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._display.update(content, raw=True)

    def _texts(self, task: Task) -> list[str]:
        columns = (c for c in self.columns if isinstance(c, ProgressColumn) and not isinstance(c, BarColumn))
        return [str(column(task)) for column in columns]

    def _html(self, task: Task) -> str:
        first, *others = map(escape, self._texts(task))
        value = "" if task.total is None else f' value="{task.completed:g}" max="{task.total:g}"'
        bar = f'<progress{value} style="width:220px;vertical-align:middle;margin:0 10px"></progress>'
        return f'<div style="font:13px system-ui,sans-serif">{first}{bar}{" · ".join(t for t in others if t)}</div>'
