"""Train `clip_eurosat_s2rgb`, the small CLIP that ships with the package, from scratch on EuroSAT.

`python -m training.train_clip_eurosat --data ../shared/data/eurosat/eurosat_rgb.tar` writes a checkpoint after each
epoch to `training/runs/NAME`, resumes from the last one when it is started again, and exports the checkpoint folder.
The same code runs on CPU and CUDA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.eurosat import CLASSES, DATA, DN_RANGE, HAZE_OUT, NO_HAZE, Chips, load_captions, load_chips
from rs_embed.clip.checkpoint import save_checkpoint
from rs_embed.clip.model import TextConfig, TextTower, VisionConfig, VisionTower, initialise
from rs_embed.clip.preprocess import CLIP_MEAN, CLIP_STD
from training.captions import Captions, build_tokenizer

HERE = Path(__file__).parent
NEIGHBOUR_TEMPERATURE = 0.1
Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Towers:
    """Image and text tower."""

    vision: VisionTower
    text: TextTower

    def parameters(self) -> list[nn.Parameter]:
        return [*self.vision.parameters(), *self.text.parameters()]

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {"vision": self.vision.state_dict(), "text": self.text.state_dict()}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.vision.load_state_dict(state["vision"])
        self.text.load_state_dict(state["text"])


def build(config: Config, vocabulary: int) -> Towers:
    sizes = config["network"]
    vision = VisionConfig(
        width=sizes["vision_width"],
        layers=sizes["vision_layers"],
        heads=sizes["vision_width"] // 64,
        patch_px=sizes["patch_px"],
        image_px=sizes["image_px"],
    )
    text = TextConfig(
        width=sizes["text_width"],
        layers=sizes["text_layers"],
        heads=sizes["text_width"] // 64,
        context=sizes["context"],
        vocabulary=vocabulary,
    )
    towers = Towers(VisionTower(vision, sizes["projection"], "gelu"), TextTower(text, sizes["projection"], "gelu"))
    initialise(towers.vision, config["seed"])
    initialise(towers.text, config["seed"] + 1)
    return towers


def draw(chips: Chips, index: np.ndarray, mosaic_frac: float, rng: torch.Generator) -> Tensor:
    """Return chips (n, 64, 64, 3), or for a share of the batches mosaics of 2 x 2 chips of a class (n, 128, 128, 3)."""
    if float(torch.rand(1, generator=rng)) >= mosaic_frac:
        return torch.from_numpy(chips.images[index])
    of_class = [chips.train[chips.labels[chips.train] == c] for c in range(len(CLASSES))]
    share = torch.rand(3, len(index), generator=rng).numpy()
    more = [
        np.array([of_class[c][int(s * len(of_class[c]))] for c, s in zip(chips.labels[index], row, strict=True)])
        for row in share
    ]
    top_left, top_right, left, right = (chips.images[i] for i in (index, *more))
    rows = [np.concatenate([top_left, top_right], axis=2), np.concatenate([left, right], axis=2)]
    return torch.from_numpy(np.concatenate(rows, axis=1))


def augment(chips: Tensor, options: Config, image_px: int, rng: torch.Generator) -> Tensor:
    """Turn chips (n, s, s, 3) uint8 into the network's input (n, 3, px, px), with random haze, gain, crop and turn."""
    n = len(chips)
    dn = (chips.permute(0, 3, 1, 2).float() - 1) * (DN_RANGE[1] / 254)
    most = torch.tensor(options["haze_max"])
    share = torch.rand(n, 1, generator=rng) + options["haze_jitter"] * (torch.rand(n, 3, generator=rng) - 0.5)
    level = options["black_level"] * (2 * torch.rand(n, 3, generator=rng) - 1)
    low, high = options["gain"]
    gain = low + (high - low) * torch.rand(n, 1, generator=rng)
    gain = gain * (1 + options["band_gain"] * (2 * torch.rand(n, 3, generator=rng) - 1))
    dn = dn * gain[:, :, None, None] - (share.clamp(0, 1) * most + level)[:, :, None, None]
    grey = (dn / DN_RANGE[1]).clamp(0, 1)
    grey = _turn(grey, rng)
    full = grey.shape[2]
    side = int(torch.randint(options["crop_min_px"] * full // 64, full + 1, (1,), generator=rng))
    top, left = (int(v) for v in torch.randint(0, full + 1 - side, (2,), generator=rng))
    cropped = grey[:, :, top : top + side, left : left + side]
    grey = F.interpolate(cropped, (image_px, image_px), mode="bicubic", align_corners=False).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (grey - mean) / std


def _turn(grey: Tensor, rng: torch.Generator) -> Tensor:
    """Turn each chip to one of its eight orientations."""
    for dims in ((2,), (3,)):
        chosen = torch.rand(len(grey), generator=rng) < 0.5
        grey[chosen] = grey[chosen].flip(dims)
    chosen = torch.rand(len(grey), generator=rng) < 0.5
    grey[chosen] = grey[chosen].transpose(2, 3)
    return grey


def contrast(images: Tensor, texts: Tensor, labels: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's loss with all captions of a chip's class as targets, each with the same share."""
    logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T  # (n, n)
    same = (labels[:, None] == labels[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    loss: Tensor = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)
    return loss / 2


def neighbours(images: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss between images: neighbours should have the same class."""
    unit = F.normalize(images, dim=-1)
    alone = torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = (unit @ unit.T / NEIGHBOUR_TEMPERATURE).masked_fill(alone, -1e4)  # (n, n)
    same = ((labels[:, None] == labels[None, :]) & ~alone).float()
    loss: Tensor = F.cross_entropy(logits, same / same.sum(dim=1, keepdim=True).clamp(min=1))
    return loss


@dataclass(frozen=True, slots=True)
class Cycle:
    """One cosine cycle of the learning rate."""

    first_epoch: int
    epochs: int
    learning_rate: float
    augment: Config
    neighbour_weight: float
    """Weight of the loss between images, relative to the loss between images and texts."""

    def rate(self, epoch: float, warmup_epochs: float) -> float:
        """Return the learning rate at a point of the run: warm-up at the start, a cosine in each cycle."""
        if epoch < warmup_epochs:
            return self.learning_rate * epoch / warmup_epochs
        passed = (epoch - max(self.first_epoch, warmup_epochs)) / self.epochs
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(passed, 1.0)))


def cycles(config: Config) -> list[Cycle]:
    found, first = [], 0
    for row in config["cycle"]:
        augmented = config["augment"] | row.get("augment", {})
        found.append(Cycle(first, row["epochs"], row["learning_rate"], augmented, row.get("neighbour_weight", 0.0)))
        first += row["epochs"]
    return found


def batches(n: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=rng)
    yield from order[: n - n % size].split(size)


@dataclass(slots=True)
class Run:
    """State of a training run, which can be saved and resumed."""

    config: Config
    towers: Towers
    average: Towers
    optimiser: torch.optim.Optimizer
    rng: torch.Generator
    folder: Path
    device: torch.device
    epoch: int = 0

    def save(self) -> None:
        state = {
            "epoch": self.epoch,
            "towers": self.towers.state(),
            "average": self.average.state(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
        }
        part = self.folder / "last.part"
        torch.save(state, part)
        os.replace(part, self.folder / "last.pt")

    def resume(self) -> None:
        file = self.folder / "last.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True, map_location=self.device)
        self.towers.load(state["towers"])
        self.average.load(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"].cpu())
        self.epoch = state["epoch"]


def start(config: Config, captions: Captions, folder: Path) -> Run:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = build(config, captions.vocabulary)
    towers.vision.to(device)
    towers.text.to(device)
    average = Towers(deepcopy(towers.vision), deepcopy(towers.text))
    optimiser = torch.optim.AdamW(
        towers.parameters(),
        lr=config["cycle"][0]["learning_rate"],
        weight_decay=config["weight_decay"],
        betas=(0.9, 0.98),
    )
    rng = torch.Generator().manual_seed(config["seed"])
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config, towers, average, optimiser, rng, folder, device)
    run.resume()
    return run


def train_epoch(run: Run, chips: Chips, captions: Captions) -> float:
    config, towers = run.config, run.towers
    size = config["batch"]
    cycle = [c for c in cycles(config) if c.first_epoch <= run.epoch][-1]
    per_epoch = len(chips.train) // size
    losses = []
    for number, chosen in enumerate(batches(len(chips.train), size, run.rng)):
        index = chips.train[chosen.numpy()]
        labels = torch.from_numpy(chips.labels[index])
        pixels = augment(
            torch.from_numpy(chips.images[index]), cycle.augment, config["network"]["image_px"], run.rng
        ).to(run.device)
        ids = captions.sample(labels, config["unknown_word_frac"], run.rng).to(run.device)
        for group in run.optimiser.param_groups:
            group["lr"] = cycle.rate(run.epoch + (number + 1) / per_epoch, config["warmup_epochs"])
        images, texts = towers.vision.encode_image(pixels), towers.text.encode_text(ids)
        classes = labels.to(run.device)
        loss = contrast(images, texts, classes, towers.text.logit_scale)
        if cycle.neighbour_weight:
            loss = loss + cycle.neighbour_weight * neighbours(images, classes)
        run.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        run.optimiser.step()
        with torch.no_grad():
            towers.text.logit_scale.clamp_(0, math.log(100))
            for mean, now in zip(run.average.parameters(), towers.parameters(), strict=True):
                mean.lerp_(now, 1 - config["average_decay"])
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def quick_accuracy(run: Run, chips: Chips, captions: Captions, haze: tuple[float, float, float]) -> float:
    """Return the zero-shot accuracy of the averaged weights on held-out chips, preprocessed by the library."""
    texts = run.average.text.encode_text(captions.class_names.to(run.device))
    right = 0
    with torch.inference_mode():
        for part in np.array_split(chips.held_out, max(1, len(chips.held_out) // 100)):
            vectors = run.average.vision.encode_image(chips.pixels(part, haze).to(run.device))
            right += int(
                (vectors @ F.normalize(texts, dim=-1).T).argmax(1).cpu().eq(torch.from_numpy(chips.labels[part])).sum()
            )
    return right / len(chips.held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--config", type=Path, default=HERE / "config.toml")
    parser.add_argument("--run", type=Path, default=HERE / "runs" / "clip_eurosat")
    parser.add_argument("--out", type=Path, default=None, help="checkpoint folder; default: in the run's folder")
    options = parser.parse_args()
    config = tomllib.loads(options.config.read_text())
    torch.manual_seed(config["seed"])
    chips = load_chips(options.data, options.run.parent / "eurosat.npz", config["held_out_frac"], config["seed"])
    wordings = load_captions()
    captions = Captions(wordings, build_tokenizer(wordings), config["network"]["context"])
    run = start(config, captions, options.run)
    epochs = sum(cycle.epochs for cycle in cycles(config))
    while run.epoch < epochs:
        began = time.perf_counter()
        loss = train_epoch(run, chips, captions)
        run.epoch += 1
        run.save()
        row = {
            "epoch": run.epoch,
            "loss": round(loss, 4),
            "zero_shot": round(quick_accuracy(run, chips, captions, NO_HAZE), 4),
            "zero_shot_haze_out": round(quick_accuracy(run, chips, captions, HAZE_OUT), 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps(row), flush=True)
        with (options.run / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        export(run, captions, options.out or options.run / "checkpoint")


def export(run: Run, captions: Captions, folder: Path) -> None:
    """Write the averaged weights as a RemoteCLIP checkpoint folder in float16."""
    save_checkpoint(folder, run.average.vision, run.average.text, {"model_name": "clip_eurosat_s2rgb"})
    captions.tokenizer.save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    assert len(CLASSES) == 10
    main()
