"""EuroSAT chips and captions, split by seed and preprocessed as the library does.

Source: Helber et al., EuroSAT (MIT); 64 x 64 px, 10 m, DN 0…2750 as grey levels 1…255, L1C (not corrected for haze).
"""

from __future__ import annotations

import io
import itertools
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from rs_embed.clip.preprocess import normalise, resize_and_crop, to_uint8

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
DN_RANGE = (0.0, 2750.0)
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "eurosat" / "eurosat_rgb.tar"
CAPTIONS = ROOT / "training" / "captions.toml"
SPLIT = {"held_out_frac": 0.1, "seed": 20261123}
"""Split in `training/config.toml`."""
NO_HAZE = (0.0, 0.0, 0.0)
HAZE_OUT = (140.0, 250.0, 590.0)
"""DN to subtract from red, green and blue, which brings L1C close to L2A."""


@dataclass(frozen=True, slots=True)
class Chips:
    """EuroSAT chips, split into training and held-out chips."""

    images: npt.NDArray[np.uint8]
    """(n, 64, 64, 3) stored grey levels."""
    labels: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]

    def dn(self, index: int, haze: tuple[float, float, float]) -> npt.NDArray[np.float32]:
        """Return one chip as DN, (3, 64, 64), less the DN of haze in red, green and blue."""
        dn = (self.images[index].astype(np.float32).transpose(2, 0, 1) - 1) * (DN_RANGE[1] / 254)
        return np.maximum(dn - np.array(haze, np.float32)[:, None, None], 0)

    def pixels(
        self,
        indexes: npt.NDArray[np.int64],
        haze: tuple[float, float, float],
        dn_range: tuple[float, float] = DN_RANGE,
        image_px: int = 224,
    ) -> Tensor:
        """Return chips preprocessed by the library for a network, (n, 3, 224, 224)."""
        return normalise([resize_and_crop(to_uint8(self.dn(i, haze), dn_range), image_px) for i in indexes])


def load_chips(tar: Path, cache: Path | None, held_out_frac: float, seed: int) -> Chips:
    """Decode the archive, or read it from `cache`, and hold out a share of each class."""
    if cache is not None and cache.exists():
        stored = np.load(cache)
        images, labels = stored["images"], stored["labels"]
    else:
        images, labels = _decode(tar)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, images=images, labels=labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == c] for c in range(len(CLASSES))]
    held_out = np.concatenate([members[: round(len(members) * held_out_frac)] for members in by_class])
    train = np.setdiff1d(order, held_out)
    return Chips(images, labels, train, np.sort(held_out))


def open_eurosat(data: Path = DATA) -> Chips:
    """Return all chips in the split that the bundled model was trained on; decoded chips are cached."""
    return load_chips(data, ROOT / "benchmarks" / "data" / "eurosat.npz", **SPLIT)


def _decode(tar: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    found: list[tuple[str, npt.NDArray[np.uint8]]] = []
    with tarfile.open(tar) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                file = archive.extractfile(member)
                assert file is not None
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
                found.append((Path(member.name).stem, np.asarray(image)))
    found.sort(key=lambda pair: pair[0])
    labels = np.array([CLASSES.index(name.split("_")[0]) for name, _ in found])
    return np.stack([image for _, image in found]), labels


@dataclass(frozen=True, slots=True)
class Wordings:
    """Captions of the classes: templates and wordings."""

    templates: tuple[str, ...]
    names: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    """One tuple per class."""
    held_out: tuple[tuple[str, ...], ...]

    def captions(self, class_index: int) -> list[str]:
        """Return the training captions of a class."""
        return [t.format(w) for t, w in itertools.product(self.templates, self.train[class_index])]


def load_captions(file: Path = CAPTIONS) -> Wordings:
    """Read `captions.toml`."""
    data: dict[str, Any] = tomllib.loads(file.read_text())
    rows = [data["classes"][name] for name in CLASSES]
    return Wordings(
        tuple(data["templates"]),
        tuple(row["name"] for row in rows),
        tuple(tuple(row["train"]) for row in rows),
        tuple(tuple(row["held_out"]) for row in rows),
    )
