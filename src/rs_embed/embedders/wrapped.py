"""Model objects passed as `checkpoint=`: an open_clip model, an `rshf.remoteclip.RemoteCLIP`, any image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rs_embed.arrays import GreyArray
from rs_embed.embedders.chips import ChipSize
from rs_embed.errors import ModelError


@runtime_checkable
class TokenEncoder(Protocol):
    """A network that returns its tokens."""

    def tokens(self, pixels: Tensor, /) -> Tensor:
        """Return the tokens of the last block, CLS first: (n, 3, px, px) to (n, t, w)."""

    def project(self, tokens: Tensor, /) -> Tensor:
        """Return the CLIP projection of those tokens: (n, t, w) to (n, d)."""


@runtime_checkable
class ImageEncoder(Protocol):
    """A network that returns one vector for an image."""

    def encode_image(self, pixels: Tensor, /) -> Tensor:
        """Return the CLIP projection of images: (n, 3, px, px) to (n, d)."""


@runtime_checkable
class PixelTransform(Protocol):
    """A network with its own preprocessing, which is used instead of CLIP's."""

    def transform(self, rgb: GreyArray, image_size: int, /) -> Tensor:
        """Preprocess an image: (y, x, 3) uint8 to (3, image_size, image_size) f32."""


@dataclass(frozen=True, slots=True)
class WrappedEncoder:
    """An object that encodes images and returns no tokens."""

    encoder: ImageEncoder

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the object's image embedding: (n, 3, px, px) to (n, d)."""
        return self.encoder.encode_image(pixels)


@dataclass(frozen=True, slots=True)
class WrappedViT:
    """An object whose image tower is a ViT: a hook on the transformer captures its tokens."""

    encoder: ImageEncoder
    transformer: nn.Module
    ln_post: nn.Module
    proj: Tensor

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return the tokens of the last block, CLS first: (n, 3, px, px) to (n, t, w)."""
        caught: list[Tensor] = []
        hook = self.transformer.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
        try:
            self.encoder.encode_image(pixels)
        finally:
            hook.remove()
        return caught[0]

    def project(self, tokens: Tensor) -> Tensor:
        """Project CLS through `ln_post` and the CLIP projection: (n, t, w) to (n, d)."""
        out: Tensor = self.ln_post(tokens[:, 0]) @ self.proj
        return out

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the object's image embedding: (n, 3, px, px) to (n, d)."""
        return self.encoder.encode_image(pixels)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A wrapped object, ready for the embedder."""

    network: TokenEncoder | ImageEncoder
    transform: PixelTransform | None
    size: ChipSize
    label: str  # the object's type, for metadata


def wrap(model: object, *, default: ChipSize, device: torch.device) -> Wrapper:
    """Wrap an object that encodes images."""
    label = f"{type(model).__module__}.{type(model).__qualname__}"
    inner = model if isinstance(model, ImageEncoder) else getattr(model, "model", None)
    if not isinstance(inner, ImageEncoder):
        raise ModelError(
            f"checkpoint={label} object has no encode_image(pixels), and neither has its .model: pass a path, a hub "
            "repo, or an object that encodes images"
        )
    if isinstance(inner, nn.Module):
        inner.eval().to(device)
    transform = next((m for m in (model, inner) if isinstance(m, PixelTransform)), None)
    visual = getattr(inner, "visual", None)
    return Wrapper(_network(inner, visual), transform, _size(visual, default), label)


def _network(encoder: ImageEncoder, visual: object) -> TokenEncoder | ImageEncoder:
    parts = [getattr(visual, name, None) for name in ("transformer", "ln_post", "proj", "class_embedding")]
    transformer, ln_post, proj, class_embedding = parts
    is_vit = isinstance(transformer, nn.Module) and isinstance(ln_post, nn.Module)
    if is_vit and isinstance(proj, Tensor) and isinstance(class_embedding, Tensor):
        return WrappedViT(encoder, transformer, ln_post, proj)  # type: ignore[arg-type]
    return WrappedEncoder(encoder)


def _size(visual: object, default: ChipSize) -> ChipSize:
    image, patch = (getattr(visual, name, None) for name in ("image_size", "patch_size"))
    image_px, patch_px = (v[0] if isinstance(v, tuple) else v for v in (image, patch))
    return ChipSize(
        image_px if isinstance(image_px, int) else default.image_px,
        patch_px if isinstance(patch_px, int) else default.patch_px,
    )
