"""Checkpoint formats: published key layouts mapped to open_clip's names, and the network's sizes from the shapes.

Three layouts are known: open_clip's own names, the same behind a prefix (`model.` from a hub wrapper, `module.` from
distributed training), and those of transformers' `CLIPModel`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rs_embed.clip.model import Activation, ClipConfig, TextConfig, VisionConfig
from rs_embed.errors import CheckpointError

Shape = tuple[int, ...]
Layout = Literal["open_clip", "transformers"]

CONFIG_FILES = ("config.json", "open_clip_config.json")
TOKENIZER_FILE = "tokenizer.json"
"""Files beside weights that say what their shapes do not."""

_PREFIXES = ("", "model.", "module.", "module.model.", "state_dict.")
_HARMLESS = re.compile(r"(^|\.)(attn_mask|position_ids|input_resolution|context_length|vocab_size)$")
"""Buffers that some writers add and no network needs."""

_HEAD_WIDTH = 64
_WIDTHS_WITHOUT_CONFIG = range(192, 1025, 64)

_KNOWN = {  # open_clip's model names: width, layers and patch size of the image tower
    "ViT-B-32": (768, 12, 32),
    "ViT-B-16": (768, 12, 16),
    "ViT-L-14": (1024, 24, 14),
    "ViT-L-14-336": (1024, 24, 14),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Location of a parameter in a file."""

    keys: tuple[str, ...]  # one, or those of query, key and value, which are concatenated
    transpose: bool = False


def normal_names(shapes: Mapping[str, Shape]) -> tuple[dict[str, Source], dict[str, Shape]]:
    """Map open_clip's name of each parameter to its source in the file, and to its shape."""
    kept = {key: shape for key, shape in shapes.items() if not _HARMLESS.search(key)}
    if any("vision_model." in key for key in kept):
        return _from_transformers(kept)
    for prefix in _PREFIXES:
        if f"{prefix}visual.class_embedding" in kept:
            names = {key: key.removeprefix(prefix) for key in kept}
            return {name: Source((key,)) for key, name in names.items()}, {names[k]: s for k, s in kept.items()}
        if f"{prefix}visual.layer1.0.conv1.weight" in kept:
            raise CheckpointError(
                "its image tower is a ResNet, and only ViT towers are read from files: pass a ready model object "
                "(an open_clip RN50, say) as checkpoint="
            )
    first = ", ".join(sorted(shapes)[:3]) or "nothing"
    raise CheckpointError(f"it holds no CLIP ViT: no key visual.class_embedding (found {first}, …)")


def _from_transformers(shapes: Mapping[str, Shape]) -> tuple[dict[str, Source], dict[str, Shape]]:
    sources: dict[str, Source] = {}
    for key in shapes:
        name = _open_clip_name(key)
        if name is None:
            sources[key] = Source((key,))  # kept, and refused later as unexpected
        elif "{qkv}" in name:
            parts = tuple(key.replace("q_proj", f"{p}_proj") for p in "qkv")
            missing = [p for p in parts if p not in shapes]
            if missing:
                raise CheckpointError(f"missing key {missing[0]}")
            if ".q_proj." in key:
                sources[name.replace("{qkv}", "in_proj")] = Source(parts)
        else:
            sources[name] = Source((key,), transpose=name in ("visual.proj", "text_projection"))
    return sources, {name: _shape_of(source, shapes) for name, source in sources.items()}


def _shape_of(source: Source, shapes: Mapping[str, Shape]) -> Shape:
    first = shapes[source.keys[0]]
    if len(source.keys) > 1:
        return (sum(shapes[k][0] for k in source.keys), *first[1:])
    return first[::-1] if source.transpose else first


_TRANSFORMERS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # their spelling
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_TRANSFORMERS_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_TRANSFORMERS_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip_name(key: str) -> str | None:
    """Return open_clip's name for a key of transformers, with `{qkv}` for the three that are fused; None if unknown."""
    block = _TRANSFORMERS_BLOCK.fullmatch(key)
    if block is not None:
        tower, layer, part, kind = block.groups()
        stem = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}"
        if part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            return f"{stem}.attn.{{qkv}}_{kind}"
        return f"{stem}.{_TRANSFORMERS_PARTS[part]}.{kind}" if part in _TRANSFORMERS_PARTS else None
    if key in _TRANSFORMERS:
        return _TRANSFORMERS[key]
    stem, _, kind = key.rpartition(".")
    return f"{_TRANSFORMERS[stem]}.{kind}" if stem in _TRANSFORMERS else None


def infer_config(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> ClipConfig:
    """Infer the network's sizes from the shapes of its parameters; heads and activation from `config.json`."""
    width, _, patch, _ = _shape(shapes, "visual.conv1.weight", 4)
    tokens = _shape(shapes, "visual.positional_embedding", 2)[0]
    side = math.isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1:
        raise CheckpointError(f"visual.positional_embedding has {tokens} rows, which is not a square and one")
    vocabulary, text_width = _shape(shapes, "token_embedding.weight", 2)
    vision = VisionConfig(
        width=width,
        layers=_layers(shapes, "visual.transformer.resblocks"),
        heads=_heads(width, config, "vision"),
        patch_px=patch,
        image_px=side * patch,
    )
    text = TextConfig(
        width=text_width,
        layers=_layers(shapes, "transformer.resblocks"),
        heads=_heads(text_width, config, "text"),
        context=_shape(shapes, "positional_embedding", 2)[0],
        vocabulary=vocabulary,
    )
    _check_name(str(config.get("model_name", "")), vision)
    projection = _shape(shapes, "visual.proj", 2)[1]
    _check_sizes({**asdict(vision), "projection": projection}, "image")
    _check_sizes(asdict(text), "text")
    return ClipConfig(vision=vision, text=text, projection=projection, activation=_activation(config))


_LARGEST = {"width": 8192, "layers": 128, "heads": 256, "patch_px": 128, "image_px": 2048, "projection": 8192}
_LARGEST |= {"context": 4096, "vocabulary": 1_000_000}
"""Sizes above those of any CLIP: a file that claims more is refused before memory is set aside for it."""


def _check_sizes(sizes: Mapping[str, int], tower: str) -> None:
    for name, size in sizes.items():
        if not 1 <= size <= _LARGEST[name]:
            raise CheckpointError(f"its {tower} tower has {name} {size:,}, expected 1 to {_LARGEST[name]:,}")


def _shape(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    if name not in shapes:
        raise CheckpointError(f"missing key {name}")
    if len(shapes[name]) != dimensions:
        raise CheckpointError(f"key {name} has the shape {shapes[name]}, expected {dimensions} dimensions")
    return shapes[name]


def _layers(shapes: Mapping[str, Shape], stem: str) -> int:
    found = re.compile(rf"{re.escape(stem)}\.(\d+)\.")
    numbers = {m[1] for name in shapes if (m := found.match(name))}
    if not numbers:
        raise CheckpointError(f"missing keys {stem}.0.…")
    if odd := sorted(numbers - {str(n) for n in range(len(numbers))}):
        raise CheckpointError(f"it has {len(numbers)} layers and a key {stem}.{odd[0]:.40}.…: unexpected")
    return len(numbers)


def _heads(width: int, config: Mapping[str, Any], tower: str) -> int:
    """Return the number of heads: the config's, else width / 64 for the widths that CLIPs have."""
    section = {**_section(config, f"{tower}_config"), **_section(config, f"{tower}_cfg")}
    heads, head_width = section.get("heads", section.get("num_attention_heads")), section.get("head_width")
    if heads is None and head_width is not None:
        if isinstance(head_width, bool) or not isinstance(head_width, int) or head_width < 1:
            raise CheckpointError(f"config.json gives the {tower} tower heads of width {head_width!r:.40}")
        heads = width // head_width
    if heads is None:
        if width not in _WIDTHS_WITHOUT_CONFIG:
            raise CheckpointError(
                f"its {tower} tower is {width} wide, and no config.json beside it gives its number of heads: add "
                f'one with {{"{tower}_cfg": {{"heads": N}}}}'
            )
        heads = width // _HEAD_WIDTH
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"config.json gives the {tower} tower {heads!r:.40} heads, which do not divide its {width}"
        )
    return heads


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a config; empty if it is missing."""
    section = config.get(name, {})
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json has {section!r:.40} as {name}, expected an object")
    return section


def _check_name(name: str, vision: VisionConfig) -> None:
    base = name.replace("/", "-").removesuffix("-quickgelu")
    if base.startswith("RN"):
        raise CheckpointError(f"config.json says {name!r}, a ResNet, and the weights are a ViT")
    expected = _KNOWN.get(base)
    got = (vision.width, vision.layers, vision.patch_px)
    if expected is not None and got != expected:
        raise CheckpointError(f"config.json says {name!r}, (width, layers, patch) {expected}, and the weights {got}")


def _activation(config: Mapping[str, Any]) -> Activation:
    """Return GELU, unless the config says QuickGELU."""
    hidden = [_section(config, name).get("hidden_act") for name in ("vision_config", "text_config")]
    says_quick = (
        str(config.get("model_name", "")).endswith("-quickgelu")
        or config.get("quick_gelu") is True
        or "quick_gelu" in hidden
        or ("vision_config" in config and hidden[0] is None)  # transformers' default for CLIP
    )
    return "quick_gelu" if says_quick else "gelu"


def check_keys(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Check that no key is missing, unexpected or misshapen."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    misshapen = [f"{k} {found[k]} instead of {s}" for k, s in expected.items() if k in found and found[k] != s]
    parts = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    faults = [f"{kind} key(s): {_some(keys)}" for kind, keys in parts if keys]
    if faults:
        raise CheckpointError("; ".join(faults))


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
