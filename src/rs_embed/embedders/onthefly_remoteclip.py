"""`remoteclip_s2rgb` and its relatives: Sentinel-2 RGB patches to RemoteCLIP vectors and token grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rs_embed import settings
from rs_embed.arrays import FloatArray, GreyArray
from rs_embed.clip.preprocess import normalise, resize_on_device
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
    device: torch.device
    checkpoint: str
    """Reference of the loaded weights, as the user would write it."""
    digest: Future[str] | None
    """Digest of the weights file; None for a model object."""
    activation: str | None
    transform: PixelTransform | None = None
    """The network's own preprocessing, used instead of CLIP's."""
    dtype: torch.dtype = torch.float32
    """Type that the network computes in."""
    resizes: bool = False
    """True if patches are resized on the device (CUDA in half precision), within two grey levels of Pillow."""

    @property
    def weights_sha256(self) -> str | None:
        """Hexadecimal digest of the weights file; waits until it is computed."""
        return None if self.digest is None else self.digest.result()

    @property
    def preprocess(self) -> str:
        """Name of the preprocessing, for metadata."""
        if self.transform:
            return "model.transform"
        where = ", on the device" if self.resizes else ""
        return f"clip: resize shorter side (bicubic{where}), centre crop, normalise"

    def pooling(self, output: OutputSpec) -> str | None:
        """Return the name of the pooling for metadata; None for a token grid.

        Raises:
            ModelError: for a token grid from a network that returns no tokens.
        """
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

    @property
    def preparation(self) -> Preparation:
        """Conversion of a patch to chips; it needs no weights."""
        return Preparation(self.card.dn_range, self.size, unresized=self.transform is not None or self.resizes)

    def embed(self, patches: Sequence[Chips], output: OutputSpec) -> list[FloatArray]:
        """Embed each patch as one array: (d,) for a pooled output, (d, rows, cols) for a token grid."""
        return [encoded.array for encoded in self.encode(patches, output)]

    def encode(self, patches: Sequence[Chips], output: OutputSpec, *, with_tokens: bool = False) -> list[Encoded]:
        """Return each patch's output and CLIP projection, and with `with_tokens` its token grid, from one forward pass.

        Chips of all patches share batches of `RS_EMBED_REMOTECLIP_BATCH_SIZE`.
        """
        return self.start(patches, output, with_tokens=with_tokens)()

    def start(
        self, patches: Sequence[Chips], output: OutputSpec, *, with_tokens: bool = False
    ) -> Callable[[], list[Encoded]]:
        """Start `encode` and return a function that waits for its results; on CUDA the host is free meanwhile."""
        images = [image for chips in patches for image in chips.images]
        step = settings.batch_size(self.device.type)
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
            ends = np.cumsum([len(chips.images) for chips in patches])[:-1]
            pooled, projected, tokens = (np.split(found.numpy(), ends) for found in coming)
            grids = [_stitched(t, chips) if wanted else None for t, chips in zip(tokens, patches, strict=True)]
            found: list[Encoded] = []
            for a, b, grid in zip(pooled, projected, grids, strict=True):
                vector, projection = (v.mean(axis=0, dtype=np.float32) for v in (a, b))  # over the patch's chips
                found.append(Encoded(grid if output.mode == "grid" and grid is not None else vector, projection, grid))
            return found

        return finish

    def _fitting(
        self, images: Sequence[GreyArray], output: OutputSpec, wanted: bool
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
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

    def _encode(self, images: Sequence[GreyArray], output: OutputSpec, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled vectors (n, d), CLIP projections (n, p), and patch tokens (n, t, w), or (n, 0)."""
        pixels = self._pixels(images).to(self.device, self.dtype)
        network = self.network
        alone = output.pooling == "projected" and not wanted and isinstance(network, ImageEncoder)
        if alone or not isinstance(network, TokenEncoder):
            assert isinstance(network, ImageEncoder)
            vectors = network.encode_image(pixels).float()
            return vectors, vectors, vectors[:, :0]
        tokens = network.tokens(pixels)  # (n, 1 + g*g, w)
        projected = network.project(tokens).float()
        pooled = projected if output.pooling == "projected" else tokens.float().mean(dim=1)
        return pooled, projected, tokens[:, 1:].float() if wanted else pooled[:, :0]

    def _pixels(self, images: Sequence[GreyArray]) -> Tensor:
        if self.resizes:
            return resize_on_device(images, self.size.image_px, self.device)
        if self.transform is None:
            return normalise(images, self.device)
        side = self.size.image_px
        ready = [torch.as_tensor(self.transform.transform(image, side)) for image in images]
        return torch.stack([pixels.reshape(3, side, side).float() for pixels in ready])


@dataclass(frozen=True, slots=True)
class Encoded:
    """Results of one forward pass for a patch."""

    array: FloatArray
    """The requested output."""
    projected: FloatArray
    """The CLIP projection (d,)."""
    tokens: FloatArray | None
    """The token grid (d, rows, cols), if requested."""


def _stitched(tokens: FloatArray, chips: Chips) -> FloatArray:
    """Stitch the patch tokens of one patch's chips (n, t, w)."""
    n, t, width = tokens.shape
    side = round(t**0.5)
    return stitch(list(tokens.reshape(n, side, side, width)), chips)
