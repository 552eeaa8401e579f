"""The CLIP network (Radford et al. 2021, ViT variants) with the parameter names of open_clip.

Shapes: n images or texts, t tokens, w width, g patches a side, d the CLIP projection.
Source of the layout: https://github.com/mlfoundations/open_clip (`VisionTransformer`, `CLIP`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "quick_gelu"]
StateHook = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Sizes of the image tower."""

    width: int
    layers: int
    heads: int
    patch_px: int
    image_px: int  # side of the square input, a multiple of `patch_px`

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_px // self.patch_px


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of the text tower."""

    width: int
    layers: int
    heads: int
    context: int  # tokens a text, start and end included
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Sizes of the whole network."""

    vision: VisionConfig
    text: TextConfig
    projection: int  # length of the CLIP projection, shared by images and texts
    activation: Activation = "gelu"

    @property
    def settings(self) -> str:
        """Settings that the shapes of the weights do not tell, so that a config beside them decides."""
        return f"{self.activation}, {self.vision.heads} image heads, {self.text.heads} text heads"


class QuickGELU(nn.Module):
    """The approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Linear(nn.Module):
    """`nn.Linear` without its random initialisation, which takes 0.1 s a network even on the meta device."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj: nn.Module = Linear(width, 3 * width)
        self.out_proj: nn.Module = Linear(width, width)
        after_saving: Callable[[StateHook], object] = self.register_state_dict_post_hook
        before_loading: Callable[[StateHook], object] = self.register_load_state_dict_pre_hook
        after_saving(_to_open_clip)
        before_loading(_from_open_clip)

    def forward(self, x: Tensor, *, causal: bool, first: bool = False) -> Tensor:
        n, t, w = x.shape
        qkv = self.in_proj(x)  # (n, t, 3w)
        q, k, v = qkv.view(n, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)  # each (n, h, t, w/h)
        if first:
            q, t = q[:, :, :1], 1
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (n, h, t, w/h)
        out: Tensor = self.out_proj(y.transpose(1, 2).reshape(n, t, w))  # (n, t, w)
        return out


def _to_open_clip(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename `in_proj.weight` to `in_proj_weight`, as open_clip's attention stores it; the same for the bias."""
    for kind in ("weight", "bias"):
        if f"{prefix}in_proj.{kind}" in state:  # not in a layer that was replaced
            state[f"{prefix}in_proj_{kind}"] = state.pop(f"{prefix}in_proj.{kind}")


def _from_open_clip(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for kind in ("weight", "bias"):
        if f"{prefix}in_proj_{kind}" in state:
            state[f"{prefix}in_proj.{kind}"] = state.pop(f"{prefix}in_proj_{kind}")


class Mlp(nn.Module):
    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc: nn.Module = Linear(width, 4 * width)
        self.gelu: nn.Module = nn.GELU() if activation == "gelu" else QuickGELU()
        self.c_proj: nn.Module = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))  # (n, t, 4w) between the two
        return out


class Block(nn.Module):
    """Pre-norm residual attention block."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation)

    def forward(self, x: Tensor, *, causal: bool, first: bool = False) -> Tensor:
        """Transform tokens (n, t, w); with `first`, compute the first token alone: (n, 1, w)."""
        x = (x[:, :1] if first else x) + self.attn(self.ln_1(x), causal=causal, first=first)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, activation) for _ in range(layers))

    def forward(self, x: Tensor, *, causal: bool = False, first: bool = False) -> Tensor:
        """Transform tokens (n, t, w); with `first`, the last block computes the first token alone: (n, 1, w)."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, causal=causal)
        out: Tensor = last(x, causal=causal, first=first)
        return out


class VisionTower(nn.Module):
    """Image tower: pixels to tokens, tokens to the CLIP projection."""

    def __init__(self, config: VisionConfig, projection: int, activation: Activation) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.conv1 = nn.Conv2d(3, width, config.patch_px, stride=config.patch_px, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.grid = config.grid
        self.positional_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, projection))

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return the tokens of the last block, CLS first, before `ln_post`: (n, 3, px, px) to (n, 1 + g*g, w)."""
        out: Tensor = self.transformer(self._start(pixels))
        return out

    def _start(self, pixels: Tensor) -> Tensor:
        """Embed the patches, with CLS and positions, for the first block: (n, 3, px, px) to (n, 1 + g*g, w)."""
        n, g, p = len(pixels), self.grid, self.config.patch_px
        x = pixels.reshape(n, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, 3 * p * p)
        x = F.linear(x, self.conv1.weight.flatten(1))  # (n, g*g, w); the convolution takes 30 % of the time on CUDA
        cls = self.class_embedding.expand(x.shape[0], 1, -1)  # (n, 1, w)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding  # (n, 1 + g*g, w)
        out: Tensor = self.ln_pre(x)
        return out

    def project(self, tokens: Tensor) -> Tensor:
        """Project CLS through `ln_post` and the CLIP projection, not normalised: (n, 1 + g*g, w) to (n, d)."""
        out: Tensor = self.ln_post(tokens[:, 0]) @ self.proj
        return out

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the CLIP projection, not L2-normalised, with CLS alone in the last block: (n, 3, px, px) to (n, d)."""
        return self.project(self.transformer(self._start(pixels), first=True))


class TokenEmbedding(nn.Module):
    """A table of vectors; `nn.Embedding` fills itself at random, which on the meta device costs 0.9 s and 70 MiB."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)  # (n, t, w)


class TextTower(nn.Module):
    """Text tower: token ids to the CLIP projection. Its parameters sit at the checkpoint's top level."""

    def __init__(self, config: TextConfig, projection: int, activation: Activation) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = TokenEmbedding(config.vocabulary, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context, config.width))
        self.transformer = Transformer(config.width, config.layers, config.heads, activation)
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, projection))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07), CLIP's start

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return the CLIP projection of the end-of-text token (the highest id): (n, context) to (n, d)."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]  # (n, t, w)
        x = self.ln_final(self.transformer(x, causal=True))  # (n, t, w)
        end = x[torch.arange(x.shape[0], device=x.device), ids.argmax(dim=-1)]  # (n, w)
        out: Tensor = end @ self.text_projection
        return out


def initialise(tower: VisionTower | TextTower, seed: int) -> None:
    """Fill a tower with the random weights that CLIP starts training from: normal, scaled by width and depth."""
    rng = torch.Generator().manual_seed(seed)
    width, layers = tower.config.width, tower.config.layers
    residual = width**-0.5 * (2 * layers) ** -0.5
    spread = {"out_proj.weight": residual, "c_proj.weight": residual, "c_fc.weight": (2 * width) ** -0.5}
    with torch.no_grad():
        for name, p in tower.named_parameters():
            if name == "logit_scale" or ".ln_" in f".{name}":
                continue  # both start at their module's own value
            if name.endswith("bias"):
                p.zero_()
            elif name in ("token_embedding.weight", "positional_embedding") and isinstance(tower, TextTower):
                p.normal_(std=0.02 if name == "token_embedding.weight" else 0.01, generator=rng)
            else:
                std = next((s for end, s in spread.items() if name.endswith(end)), width**-0.5)
                p.normal_(std=std, generator=rng)
