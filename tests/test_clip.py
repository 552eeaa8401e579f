"""The network, its pixels and its tokens against open_clip, with the same random weights."""

from __future__ import annotations

import html
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import SMALL, state_dict, towers
from rs_embed import OutputSpec
from rs_embed.clip.device import chips_of, histograms_of, pin
from rs_embed.clip.kernels import fuse_gelu, replace_linear
from rs_embed.clip.model import ClipConfig, TextConfig, VisionConfig, VisionTower, initialise
from rs_embed.clip.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    grey_histogram,
    normalise,
    resize_and_crop,
    standardise,
    to_uint8,
)
from rs_embed.clip.resample import resize_and_crop_levels
from rs_embed.clip.tokenizer import Tokenizer, clip_rules
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.loading import load_embedder

B32 = ClipConfig(
    vision=VisionConfig(width=768, layers=12, heads=12, patch_px=32, image_px=224),
    text=TextConfig(width=512, layers=12, heads=8, context=77, vocabulary=49_408),
    projection=512,
)
SMALL_QUICK = ClipConfig(vision=SMALL.vision, text=SMALL.text, projection=32, activation="quick_gelu")
L14_LIKE = ClipConfig(
    vision=VisionConfig(width=128, layers=2, heads=2, patch_px=14, image_px=224),
    text=TextConfig(width=64, layers=1, heads=1, context=77, vocabulary=49_408),
    projection=48,
)


def oracle(open_clip, config: ClipConfig):
    """open_clip's own network of these sizes, with our random weights loaded strictly."""
    vision, text = config.vision, config.text
    model = open_clip.model.CLIP(
        embed_dim=config.projection,
        vision_cfg={
            "image_size": vision.image_px,
            "patch_size": vision.patch_px,
            "width": vision.width,
            "layers": vision.layers,
            "head_width": vision.width // vision.heads,
        },
        text_cfg={
            "context_length": text.context,
            "vocab_size": text.vocabulary,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
        quick_gelu=config.activation == "quick_gelu",
    )
    model.load_state_dict(state_dict(config), strict=False)
    missing = set(dict(model.named_parameters())) - set(state_dict(config))
    assert not missing
    return model.eval()


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the largest element."""
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "config", [SMALL, SMALL_QUICK, L14_LIKE, B32], ids=["small", "quick_gelu", "patch 14", "ViT-B/32"]
)
def test_both_towers_equal_open_clip(open_clip, config):
    theirs, (vision, text) = oracle(open_clip, config), towers(config)
    rng = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 224, 224, generator=rng)
    ids = open_clip.tokenize(["a satellite photo of a river", "wheat"])
    caught: list[torch.Tensor] = []
    theirs.visual.transformer.register_forward_hook(lambda _m, _i, output: caught.append(output))
    with torch.inference_mode():
        image, caption = theirs.encode_image(pixels), theirs.encode_text(ids)
        assert_close(vision.tokens(pixels), caught[0])
        assert_close(vision.encode_image(pixels), image)
        assert_close(text.encode_text(ids), caption)


def test_a_vector_does_not_depend_on_its_batch():
    vision, _ = towers()
    pixels = torch.randn(9, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = vision.encode_image(pixels)
        alone = torch.cat([vision.encode_image(p[None]) for p in pixels])
    assert_close(together, alone)


@pytest.mark.parametrize(
    ("height", "width"),
    [(120, 120), (224, 224), (410, 410), (64, 64), (1, 1), (120, 90), (90, 121), (1000, 333), (7, 300), (225, 224)],
)
def test_pixels_equal_open_clips_transform_of_the_same_image(open_clip, height, width):
    rgb = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    transform = open_clip.transform.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    expected = transform(Image.fromarray(rgb))
    torch.testing.assert_close(normalise([resize_and_crop(rgb, 224)])[0], expected, rtol=0, atol=0)


def test_a_long_strip_is_the_same_centre_in_bounded_memory():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 20_000, 3), dtype=np.uint8)
    image = Image.fromarray(rgb).resize((224_000, 224), Image.Resampling.BICUBIC)
    left = round((224_000 - 224) / 2)
    expected = np.asarray(image.crop((left, 0, left + 224, 224)))
    np.testing.assert_array_equal(resize_and_crop(rgb, 224), expected)


@pytest.mark.parametrize("dn_range", [(0.0, 10_000.0), (0.0, 3000.0), (0.0, 2750.0), (200.0, 3000.0)])
@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
def test_grey_levels_are_truncated_for_every_dn(dn_range, dtype):
    dn = np.arange(0, 20_001)
    low, high = dn_range
    expected = (
        np.clip((dn.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1) * np.float32(255)
    ).astype(np.uint8)
    got = to_uint8(np.broadcast_to(dn, (3, 1, dn.size)).astype(dtype), dn_range)
    assert got.shape == (1, dn.size, 3)
    np.testing.assert_array_equal(got[0, :, 1], expected)
    exact = np.clip((dn - low) / (high - low), 0, 1) * 255  # in float64: nowhere more than one level away
    assert (np.abs(got[0, :, 0].astype(int) - exact.astype(int)) <= 1).all()


def test_known_dn_have_known_grey_levels():
    """DN/10000*255 by hand: 1000 is 25.5, 4000 is 102, 10000 and more 255, below 0 nothing."""
    dn = np.array([[[-5, 0, 39, 40, 1000, 4000, 9999, 10_000, 60_000]]] * 3)
    assert to_uint8(dn, (0, 10_000))[0, :, 0].tolist() == [0, 0, 0, 1, 25, 102, 254, 255, 255]


# --- texts -------------------------------------------------------------------------------------------

WORDS = ["forest", "naïve café", "日本の川", "Ærøskøbing's", "x²+y³", "½ forest", "it's", "DON'T", "rock'n'roll"]
FRAMES = [
    "{}",
    "a satellite photo of {}.",
    "  {}\t\n twice {} ",
    "&lt;{}&gt; &amp;amp; &eacute;",
    "🌲🌲 {} 👨‍👩‍👧",
    "{}!!! #1 (50%)",
]
ODD = [
    "",
    " ",
    "<|endoftext|>",
    "a <|startoftext|> b",
    "schÃ¶n",  # mojibake, which ftfy mends
    "\u00a0non\u2003breaking\u200bspaces",
    "e\u0301 composed",
    "ﬁne ligature",
    "１２３ ＡＢＣ",
    "long " * 100,
    "Ελληνικά кириллица العربية עברית हिन्दी",
    "123456 1,234.5 -7e3",
    "snake_case CamelCase kebab-case",
    html.escape('<p class="x">river & lake</p>'),
    "\x00control\x07",
    "İstanbul ẞ",
]
CAPTIONS = [frame.format(word, word) for frame, word in product(FRAMES, WORDS)] + ODD


@pytest.fixture(scope="module")
def tokenizer(open_clip) -> Tokenizer:
    found = Tokenizer.from_open_clip_merges()
    assert found is not None
    return found


def test_token_ids_equal_open_clips(open_clip, tokenizer):
    captions = [
        *CAPTIONS,
        *(c.upper() for c in CAPTIONS),
        *(f"{a} {b}" for a, b in zip(CAPTIONS, ODD * 9, strict=False)),
    ]
    assert len(captions) >= 200
    ours, theirs = tokenizer.encode(captions, 77), open_clip.tokenize(captions)
    different = [c for c, a, b in zip(captions, ours, theirs, strict=True) if not torch.equal(a, b)]
    assert different == []


def test_a_byte_pair_vocabulary_knows_every_word(tokenizer):
    assert tokenizer.unknown_words("zxqwv 日本") == ()


def test_a_tokenizer_json_gives_the_same_ids(tmp_path, tokenizer):
    tokenizer.rules.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert torch.equal(again.encode(CAPTIONS, 77), tokenizer.encode(CAPTIONS, 77))


def test_the_vocabulary_has_the_published_size_and_ends(tokenizer):
    assert tokenizer.rules.get_vocab_size() == 49_408
    assert tokenizer.encode(["a"], 77)[0, :4].tolist() == [49_406, 320, 49_407, 0]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    from rs_embed import CheckpointError

    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_the_merges_are_those_of_open_clip(open_clip):
    from pathlib import Path

    rules = clip_rules(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz")
    ours = {k: i for k, i in rules.get_vocab().items() if not k.startswith("<|")}
    theirs = open_clip.tokenizer.SimpleTokenizer().encoder
    assert ours == {k: i for k, i in theirs.items() if not k.startswith(("<start_of", "<end_of", "<|"))}


SHAPES = (
    *((410, 410), (64, 96), (224, 300), (300, 224), (224, 224), (120, 121), (1, 1), (3, 7), (700, 231), (231, 700)),
    *((809, 269), (1400, 500), (1300, 1299), (30, 500), (500, 30), (4000, 40), (9, 1000), (2600, 700)),
)
"""Heights and widths: enlarged and reduced, of all aspects, with few and many coefficients a pixel."""


def pillow_chip(rgb, side=224):
    """Return what torchvision's Resize and CenterCrop give of a PIL image, whatever its aspect."""
    height, width = rgb.shape[:2]
    size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    left, top = round((size[0] - side) / 2.0), round((size[1] - side) / 2.0)
    image = Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("contrast", ["noise", "black and white"])
def test_products_resize_as_pillow_does_bit_for_bit(shape, contrast):
    rgb = np.random.default_rng(shape).integers(0, 256, (*shape, 3)).astype(np.uint8)
    if contrast == "black and white":  # overshoots on both sides
        rgb = (rgb > 127).astype(np.uint8) * 255
    got = resize_and_crop_levels(torch.from_numpy(rgb).permute(2, 0, 1), 224).permute(1, 2, 0)
    np.testing.assert_array_equal(got.numpy(), pillow_chip(rgb))
    np.testing.assert_array_equal(resize_and_crop(rgb, 224), pillow_chip(rgb))


@pytest.mark.parametrize("dn_range", [(0.0, 10_000.0), (0.0, 2750.0), (500.0, 3000.0)])
def test_the_device_stretches_every_value_as_the_host_does(dn_range):
    dn = np.arange(3 * 160 * 160, dtype=np.float32).reshape(3, 160, 160) * 0.5 - 1000
    for values in (dn, dn.clip(0).astype(np.uint16), dn.astype(np.int16), dn.astype(np.int64)):
        got = chips_of([pin(values)], dn_range, 160, torch.device("cpu"))[0]
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), to_uint8(values, dn_range))


def test_patches_of_many_shapes_and_types_keep_their_order_on_the_device():
    rng = np.random.default_rng(0)
    dn = [
        rng.integers(0, 12_000, (3, *shape)).astype(kind)
        for shape, kind in zip(SHAPES[:7] * 2, [np.uint16, np.float32] * 7, strict=True)
    ]
    levels = chips_of([pin(values) for values in dn], (0, 10_000), 224, torch.device("cpu"))
    chips = [resize_and_crop(to_uint8(values, (0, 10_000)), 224) for values in dn]
    np.testing.assert_array_equal(levels.permute(0, 2, 3, 1).numpy(), np.stack(chips))
    counts = [np.bincount(chip.ravel(), minlength=256) for chip in chips]
    np.testing.assert_array_equal(histograms_of(levels).numpy(), np.stack(counts))
    np.testing.assert_array_equal(grey_histogram(chips), np.sum(counts, axis=0))
    torch.testing.assert_close(standardise(levels), normalise(chips), rtol=0, atol=0)


@pytest.mark.parametrize("prep", ["resize", "tile"])
@pytest.mark.parametrize("output", [OutputSpec.pooled(), OutputSpec.pooled("projected"), OutputSpec.grid()], ids=str)
def test_an_embedder_that_is_given_dn_sees_the_same_chips(small, prep, output):
    card = find_card("remoteclip_s2rgb")
    embedder = load_embedder(card, checkpoint=small, device="cpu", precision="fp32")
    dn = np.random.default_rng(0).integers(1, 5000, (3, 410, 300)).astype(np.float32)
    dn[:, :60, :60] = np.nan
    found = []
    for stage in ("chips", "dn"):
        preparation = replace(embedder.preparation, stage=stage)
        [encoded] = embedder.encode([preparation.cut(dn, fill_value=0.0, prep=prep)], output)
        found.append(encoded)
    np.testing.assert_array_equal(found[0].array, found[1].array)
    assert found[0].levels == found[1].levels
    assert found[0].levels[2] > found[0].levels[1] > 0


def test_the_epilogue_of_cuda_computes_gelu_within_half_precision():
    config = VisionConfig(width=192, layers=2, heads=3, patch_px=32, image_px=64)
    exact, fused = (VisionTower(config, 64, "gelu") for _ in range(2))
    initialise(exact, 0)
    fused.load_state_dict(exact.state_dict())
    replace_linear(fused, fuse_gelu)
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        a, b = exact.encode_image(pixels), fused.encode_image(pixels)
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.999999


def test_quick_gelu_is_not_fused():
    tower = VisionTower(VisionConfig(width=192, layers=1, heads=3, patch_px=32, image_px=64), 64, "quick_gelu")
    initialise(tower, 0)
    before = tower.encode_image(torch.ones(1, 3, 64, 64))
    replace_linear(tower, fuse_gelu)
    assert torch.equal(tower.encode_image(torch.ones(1, 3, 64, 64)), before)
