"""Faster products for a network that runs on a CPU: packed float32 or bfloat16, and int8 by rows.

oneDNN's products with packed weights and the activation inside (what `torch.compile` ends with, without its minute of
compiling) are about a fourth faster than `torch.nn.functional.linear`; where torch does not have them nothing changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rs_embed.clip.model import Activation, Block, Product, VisionTower, activate

Precision = Literal["fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8")
_LEVELS = 127
_STRIP_ROWS = 256
"""What an int8 product needs beside its output is made for so many rows at a time: what a batch of 32 needs at once is
given back to the system after each product, and fetching it again took a fourth of the time."""
_PAYS_FROM = 24
_packing = threading.Lock()


def can_pack() -> bool:
    """Whether this torch has oneDNN's packed products."""
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 by itself; others emulate it, slower than float32."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:
        return True


def pack_when_it_pays(tower: VisionTower, images: int) -> None:
    """Count a tower's images on the CPU, and pack its products before the one that makes it worth the while.

    Packing takes what it saves on some thirty images: a single place should not wait for it.
    """
    tower.images_seen += images
    if tower.products != "plain" or tower.images_seen < _PAYS_FROM or not can_pack():
        return
    with _packing:
        if tower.products == "plain":
            pack(tower, rows=images * (tower.config.grid**2 + 1))


def pack(tower: VisionTower, rows: int) -> None:
    """Give every block packed products; `rows` (images times tokens) is what they are made for, not a limit."""
    _replace(tower, lambda weight, bias, activation: _packed(weight, bias, activation, rows))
    tower.products = "packed"


def quantise(tower: VisionTower) -> None:
    """Give every block int8 products: weights by output channel, activations by row, sums in int32."""
    _replace(tower, _by_rows)
    tower.products = "int8"


_Make = Callable[[Tensor, Tensor, Activation | None], Product]


def _replace(tower: VisionTower, make: _Make) -> None:
    """Set the faster form of each product, then drop its weights: a thread that runs meanwhile sees one of both."""
    for block in tower.transformer.resblocks:
        assert isinstance(block, Block)
        attention, mlp = block.attn, block.mlp
        attention.inward = make(attention.in_proj_weight.detach(), attention.in_proj_bias.detach(), None)
        attention.in_proj_weight = _dropped(attention.in_proj_weight)
        attention.outward = make(attention.out_proj.weight.detach(), attention.out_proj.bias.detach(), None)
        attention.out_proj.weight = _dropped(attention.out_proj.weight)
        mlp.inward = make(mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach(), mlp.kind)
        mlp.c_fc.weight = _dropped(mlp.c_fc.weight)
        mlp.outward = make(mlp.c_proj.weight.detach(), mlp.c_proj.bias.detach(), None)
        mlp.c_proj.weight = _dropped(mlp.c_proj.weight)


def _dropped(weight: Tensor) -> nn.Parameter:
    """Its shape without its numbers."""
    return nn.Parameter(weight.detach().to("meta"), requires_grad=False)


def _packed(weight: Tensor, bias: Tensor, activation: Activation | None, rows: int) -> Product:
    stored = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    inside, kind = ("gelu", "none") if activation == "gelu" else ("none", None)

    def product(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, stored, bias, inside, [], kind)
        return activate(y, activation) if activation == "quick_gelu" else y

    return product


def _by_rows(weight: Tensor, bias: Tensor, activation: Activation | None) -> Product:
    scale = (weight.abs().amax(dim=1) / _LEVELS).clamp_min(1e-12)  # (out,)
    stored = (weight / scale[:, None]).round_().to(torch.int8).t()  # (in, out)

    def product(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y = flat.new_empty(len(flat), len(bias))
        for top in range(0, len(flat), _STRIP_ROWS):
            part, out = flat[top : top + _STRIP_ROWS], y[top : top + _STRIP_ROWS]
            own = part.abs().amax(dim=1, keepdim=True).div_(_LEVELS).clamp_min_(1e-12)  # (rows, 1)
            out.copy_(torch._int_mm((part / own).round_().to(torch.int8), stored))
            out.mul_(own).mul_(scale).add_(bias)
            if activation is not None:
                out.copy_(activate(out, activation))
        return y.view(*x.shape[:-1], -1)

    return product
