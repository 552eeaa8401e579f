"""Fast linear layers for a CPU, which replace those of a tower: packed float32 or bfloat16 weights, and int8.

oneDNN multiplies by a packed weight, with the GELU fused, up to twice as fast as `torch.nn.functional.linear`: see
docs/design/0017-linear-layers-as-modules.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rs_embed.clip.model import Block, Linear, VisionTower

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")

_INT8_MAX = 127
_STRIP_ROWS = 256  # of int8 at a time: allocating a whole batch's temporaries for each layer takes a fourth of the time
_PACKED_FOR_ROWS = 400  # images times tokens, for the packed layout; constant, so that results are reproducible


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether this torch and this CPU have oneDNN's packed products in float32 or bfloat16."""
    mkldnn = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(mkldnn, "_linear_pointwise"):  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(mkldnn._is_mkldnn_bf16_supported()))


def has_bf16() -> bool:
    """Return whether this CPU has bfloat16 products; others emulate them, slower than float32."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:
        return True


class PackedLinear(nn.Module):
    """A linear layer and its activation as one oneDNN product, (…, in) to (…, out)."""

    def __init__(self, linear: Linear, activation: nn.Module | None) -> None:
        super().__init__()
        self.bias = linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _PACKED_FOR_ROWS)
        fused = isinstance(activation, nn.GELU)
        self.fused: tuple[object, ...] = ("gelu", [], "none") if fused else ("none", [], None)
        self.activation = None if fused else activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *self.fused)
        return y if self.activation is None else self.activation(y)


class Int8Linear(nn.Module):
    """A linear layer and its activation in int8, (…, in) to (…, out), scaled by output channel and by input row."""

    def __init__(self, linear: Linear, activation: nn.Module | None) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.bias, self.activation = linear.bias.detach(), activation
        self.scale = (weight.abs().amax(dim=1) / _INT8_MAX).clamp_min(1e-12)  # (out,)
        self.weight = (weight / self.scale[:, None]).round_().to(torch.int8).t()  # (in, out)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = rows.new_empty(len(rows), len(self.bias))
        for strip, out in zip(torch.split(rows, _STRIP_ROWS), torch.split(y, _STRIP_ROWS), strict=True):
            scale = strip.abs().amax(dim=1, keepdim=True).div_(_INT8_MAX).clamp_min_(1e-12)  # (rows, 1)
            out.copy_(torch._int_mm((strip / scale).round_().to(torch.int8), self.weight))
            out.mul_(scale).mul_(self.scale).add_(self.bias)
            if self.activation is not None:
                out.copy_(self.activation(out))
        return y.view(*x.shape[:-1], -1)


class FusedGeluLinear(nn.Module):
    """A linear layer with GELU in the product's epilogue, for CUDA in half precision, (…, in) to (…, out).

    The epilogue has GELU's tanh form, which differs from the exact one by less than half precision resolves.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.bias, self.weight = linear.bias.detach(), linear.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y: Tensor = torch._addmm_activation(self.bias, rows, self.weight.t(), use_gelu=True)
        return y.view(*x.shape[:-1], -1)


def fuse_gelu(linear: Linear, activation: nn.Module | None) -> nn.Module:
    """Return a linear layer with GELU fused into it; with another activation or none, the layers as they are."""
    if isinstance(activation, nn.GELU):
        return FusedGeluLinear(linear)
    return linear if activation is None else nn.Sequential(linear, activation)


def replace_linear(tower: VisionTower, layer: Callable[[Linear, nn.Module | None], nn.Module]) -> None:
    """Replace the four linear layers of each block, for example by `PackedLinear`; the old weights are freed."""
    for block in tower.transformer.resblocks:
        assert isinstance(block, Block)
        attn, mlp = block.attn, block.mlp
        for part, name, activation in (
            (attn, "in_proj", None),
            (attn, "out_proj", None),
            (mlp, "c_fc", mlp.gelu),
            (mlp, "c_proj", None),
        ):
            setattr(part, name, layer(getattr(part, name), activation))
        mlp.gelu = nn.Identity()
