"""`remoteclip_s2rgb` and its relatives: Sentinel-2 RGB patches to RemoteCLIP vectors and token grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rs_embed import settings
from rs_embed.arrays import AnyArray, FloatArray, GreyArray, IndexArray
from rs_embed.clip.device import chips_of, histograms_of
from rs_embed.clip.preprocess import normalise, standardise
from rs_embed.embedders.cards import ModelCard
from rs_embed.embedders.chips import Chips, ChipSize, Preparation, stitch
from rs_embed.embedders.wrapped import ImageEncoder, PixelTransform, TokenEncoder
from rs_embed.errors import ModelError
from rs_embed.specs import OutputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteClipEmbedder:
    """A network with its card: raw DN in, vectors out."""

    card: ModelCard
    network: TokenEncoder | ImageEncoder
    size: ChipSize
    preparation: Preparation
    device: torch.device
    checkpoint: str  # reference of the loaded weights, as the user would write it
    digest: Future[str] | None  # of the weights file; None for a model object
    activation: str | None
    settings: str | None = None  # what a config beside the weights decides; None for a model object
    transform: PixelTransform | None = None
    dtype: torch.dtype = torch.float32  # of the computation

    @property
    def weights_sha256(self) -> str | None:
        """Hexadecimal digest of the weights file; waits until it is computed."""
        return None if self.digest is None else self.digest.result()

    def pooling(self, output: OutputSpec) -> str | None:
        """Return the name of the pooling for metadata; None for a token grid."""
        has_tokens = isinstance(self.network, TokenEncoder)
        if output.mode == "grid" and not has_tokens:
            raise ModelError(
                f"{self.checkpoint} exposes only pooled vectors, no token sequence, so OutputSpec.grid() is not "
                "possible: use OutputSpec.pooled(), or a ViT checkpoint"
            )
        if output.mode == "grid":
            return None
        if output.pooling == "projected":
            return "clip_projection"
        return "token_mean" if has_tokens else "model"

    def embed(self, patches: Sequence[Chips], output: OutputSpec) -> list[FloatArray]:
        """Embed each patch as one array: (d,) for a pooled output, (d, rows, cols) for a token grid."""
        return [encoded.array for encoded in self.encode(patches, output)]

    def encode(self, patches: Sequence[Chips], output: OutputSpec, *, with_tokens: bool = False) -> list[Encoded]:
        """Return each patch's output and CLIP projection, and with `with_tokens` its token grid, from one forward pass.

        Chips of all patches share batches of `RS_EMBED_REMOTECLIP_BATCH_SIZE`.
        """
        step = settings.batch_size(self.device.type, sum(len(chips.images) for chips in patches))
        return self.start(patches, output, step=step, with_tokens=with_tokens)()

    def start(
        self, patches: Sequence[Chips], output: OutputSpec, *, step: int, with_tokens: bool = False
    ) -> Callable[[], list[Encoded]]:
        """Start `encode` with `step` chips in one forward pass, and return a function that waits for its results."""
        images = [image for chips in patches for image in chips.images]
        wanted = output.mode == "grid" or with_tokens
        with torch.inference_mode():
            batches = [images[i : i + step] for i in range(0, len(images), step)]
            parts = [part for batch in batches for part in self._fitting(batch, output, wanted)]
            waits = self.device.type == "cuda"  # the event below waits; on other devices the copy does
            coming = [torch.cat(found).to("cpu", non_blocking=waits) for found in zip(*parts, strict=True)]
        arrived = torch.cuda.current_stream(self.device).record_event() if waits else None

        def finish() -> list[Encoded]:
            if arrived is not None:
                arrived.synchronize()
            pooled, projected, tokens, counts = (found.numpy() for found in coming)
            starts = np.cumsum([0, *(len(chips.images) for chips in patches)])
            levels = _percentiles(patches, counts, starts[:-1])
            found: list[Encoded] = []
            for k, chips in enumerate(patches):
                part = slice(starts[k], starts[k + 1])
                vector, projection = (v[part].mean(axis=0, dtype=np.float32) for v in (pooled, projected))
                grid = _stitched(tokens[part], chips) if wanted else None
                array = grid if output.mode == "grid" and grid is not None else vector
                found.append(Encoded(array, projection, grid, levels[k]))
            return found

        return finish

    def _fitting(self, images: Sequence[GreyArray | Tensor], output: OutputSpec, wanted: bool) -> list[_Part]:
        """Encode a batch, or its halves if the device runs out of memory."""
        try:
            return [self._encode(images, output, wanted)]
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise ModelError(
                    f"{self.device} has no memory for one image of {self.checkpoint}: free some, or use device='cpu'"
                ) from None
        torch.cuda.empty_cache()
        middle = len(images) // 2
        return [part for half in (images[:middle], images[middle:]) for part in self._fitting(half, output, wanted)]

    def _encode(self, images: Sequence[GreyArray | Tensor], output: OutputSpec, wanted: bool) -> _Part:
        """Return pooled vectors (n, d), CLIP projections (n, p), tokens (n, t, w) or (n, 0), and counts of levels."""
        pixels, counts = self._pixels(images)
        pixels, network = pixels.to(self.device, self.dtype), self.network
        alone = output.pooling == "projected" and not wanted and isinstance(network, ImageEncoder)
        if alone or not isinstance(network, TokenEncoder):
            assert isinstance(network, ImageEncoder)
            vectors = network.encode_image(pixels).float()
            return vectors, vectors, vectors[:, :0], counts
        tokens = network.tokens(pixels)  # (n, 1 + g*g, w)
        projected = network.project(tokens).float()
        pooled = projected if output.pooling == "projected" else tokens.float().mean(dim=1)
        return pooled, projected, tokens[:, 1:].float() if wanted else pooled[:, :0], counts

    def _pixels(self, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return the network's input (n, 3, side, side), and counts (n, 256) of grey levels made on the device."""
        side = self.size.image_px
        if self.transform is not None:
            ready = [torch.as_tensor(self.transform.transform(image, side)) for image in images]
            return torch.stack([pixels.reshape(3, side, side).float() for pixels in ready]), torch.empty(len(ready), 0)
        if isinstance(images[0], Tensor):
            levels = chips_of(images, self.card.dn_range, side, self.device)
            counts = histograms_of(levels)
            return standardise(levels), counts
        return normalise(images, self.device), torch.empty(len(images), 0)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Results of one forward pass for a patch."""

    array: FloatArray
    projected: FloatArray  # the CLIP projection (d,)
    tokens: FloatArray | None  # (d, rows, cols), if requested
    levels: tuple[int, int, int]  # percentiles 2, 50 and 98 of the grey levels that the network saw


_Part = tuple[Tensor, Tensor, Tensor, Tensor]


def _percentiles(patches: Sequence[Chips], counts: AnyArray, starts: IndexArray) -> list[tuple[int, int, int]]:
    """Return percentiles 2, 50 and 98 of each patch's grey levels; `counts` (images, 256) come from the device."""
    device = counts if counts.shape[1] == 0 else np.add.reduceat(counts, starts, axis=0)
    histograms = [device[k] if chips.histogram is None else chips.histogram for k, chips in enumerate(patches)]
    cumulative = np.cumsum(np.stack(histograms), axis=1, dtype=np.float64)  # (patches, 256)
    below = cumulative[:, None, :] < np.array([[0.02], [0.50], [0.98]]) * cumulative[:, None, -1:]
    return [(int(a), int(b), int(c)) for a, b, c in below.sum(axis=2)]


def _stitched(tokens: FloatArray, chips: Chips) -> FloatArray:
    """Stitch the patch tokens of one patch's chips (n, t, w)."""
    n, t, width = tokens.shape
    side = round(t**0.5)
    return stitch(list(tokens.reshape(n, side, side, width)), chips)
