"""What the soak works on: a served archive that misbehaves, a small disk, a clock that jumps, and places to embed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from archive_server import FileServer, Tile, serve_archive, write_dates
from rs_embed.grid import transformer

HOME = Tile("33UVP", 32633, 499_980, 5_300_040, side_px=512)


@dataclass
class World:
    """The archive, the folder of the dataset on a small disk, and the places so far."""

    folder: Path
    api: str
    files: FileServer
    has_small_disk: bool
    chance: random.Random
    places: list[str] = field(default_factory=list)

    @property
    def dataset(self) -> Path:
        """The dataset under attack."""
        return self.folder / "disk" / "dataset"

    @property
    def places_file(self) -> Path:
        """CSV of all places so far."""
        return self.folder / "places.csv"

    def add_places(self, count: int) -> None:
        """Append places that lie inside of the tile."""
        for _ in range(count):
            x, y = HOME.left + self.chance.uniform(600, 4700), HOME.top - self.chance.uniform(600, 4700)
            lon, lat = transformer(HOME.epsg, 4326).transform(x, y)
            self.places.append(f"p{len(self.places)},{lon:.7f},{lat:.7f}")
        self.places_file.write_text("\n".join(["id,lon,lat", *self.places]) + "\n")

    def export(self, out: Path, *more: str) -> list[str]:
        """Return the arguments of an export of all places so far."""
        time = ["--start", "2022-06-01", "--end", "2022-07-01"]
        source = ["--backend", f"stac:{self.api}#sentinel-2-l2a", "--model", "clip_eurosat_s2rgb", "--chip", "320"]
        return ["export", str(self.places_file), "--out", str(out), *time, *source, "--partition-size", "8", *more]

    def misbehave(self, kind: str = "calm") -> None:
        """Let the archive answer with one kind of fault from now on, or with none."""
        shares = {"errors": (0.4, 0.0, 0.0), "resets": (0.0, 0.4, 0.0), "corrupt": (0.0, 0.0, 0.3)}
        server = self.files
        server.error_share, server.reset_share, server.corrupt_share = shares.get(kind, (0.0, 0.0, 0.0))
        server.status_of = {"_20220613_l2a_0509/B04.tif": [404] * 10**6} if kind == "lost scene" else {}

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Fill the dataset's disk until the block ends."""
        ballast = self.folder / "disk" / "ballast"
        with ballast.open("wb", buffering=0) as stream:
            try:
                while stream.write(bytes(1 << 16)):
                    pass
            except OSError:
                pass
        try:
            yield
        finally:
            ballast.unlink()

    @property
    def clock(self) -> Path:
        """File with the seconds by which the clock of the commands is wrong."""
        return self.folder / "clock"

    def move_clock(self, seconds: int) -> None:
        """Move the clock of the commands, and the time of some files, as if another such machine had written them.

        libfaketime would move every clock, but its sleep fails with EINVAL when the clock moves meanwhile.
        """
        part = self.folder / "clock.new"
        part.write_text(f"{seconds}\n")
        os.replace(part, self.clock)
        written = [path for path in self.dataset.rglob("*") if path.suffix in (".parquet", ".json")]
        for path in self.chance.sample(written, min(5, len(written))):
            with suppress(OSError):  # it was replaced meanwhile
                os.utime(path, (time.time() + seconds, time.time() + seconds))


@contextmanager
def open_world(folder: Path, seed: int) -> Iterator[World]:
    """Serve three dates of a tile, and mount a disk of 64 MB for the dataset where that is allowed."""
    disk = folder / "disk"
    disk.mkdir()
    items = write_dates(folder / "archive", "http://files", HOME)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False)
    try:
        with serve_archive(folder / "archive", items, folder) as (api, files):
            files.delay_s = 0.02
            world = World(folder, api, files, mount.returncode == 0, random.Random(seed))
            world.move_clock(0)
            yield world
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", "-l", disk], check=True)
