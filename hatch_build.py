"""Build step: the page's third-party files come from npm and PyPI, at fixed versions (`web/page_files.py`).

It runs whenever the package is built or installed from a clone; wheels hold the result. npm is that of the machine or,
where there is none, of a package of PyPI that ships Node. Without npm's registry the package is built without the map:
everything else works, and `rs-embed serve` and `rs-embed doctor` say what is missing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.append(str(Path(__file__).parent / "web"))
import page_files


class PageHook(BuildHookInterface):
    """Copies the page's third-party files into the package."""

    def dependencies(self) -> list[str]:
        """What the build needs, unless all is there."""
        if page_files.is_made():
            return []
        return [page_files.SHIPS_TOWNS, *([] if shutil.which("npm") else [page_files.SHIPS_NODE])]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the folder anew, unless it is of these versions already."""
        if not page_files.is_made():
            for problem in page_files.make():
                self.app.display_warning(problem)
