from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fakes import SMALL, towers, write_checkpoint
from rs_embed import (
    ModelError,
    NoImageryError,
    OutputSpec,
    PointBuffer,
    SensorSpec,
    TemporalSpec,
    UnknownModelError,
    describe_model,
    get_embedding,
    get_embeddings_batch,
    list_models,
    list_samples,
)
from rs_embed.clip.kernels import Int8Linear, PackedLinear, can_pack, replace_linear
from rs_embed.clip.model import VisionConfig, VisionTower, initialise
from rs_embed.clip.preprocess import CLIP_MEAN, CLIP_STD, normalise, resize_and_crop, to_uint8
from rs_embed.embedders import loading
from rs_embed.embedders.cards import find_card
from rs_embed.embedders.chips import ChipSize, Preparation, stitch
from rs_embed.embedders.onthefly_remoteclip import RemoteClipEmbedder
from rs_embed.embedding import Request
from rs_embed.pipeline import embed_prepared, prepare_all
from test_clip import oracle

MODEL = "remoteclip_s2rgb"
RNG = np.random.default_rng(0)


def pixels(height: int = 120, width: int = 120) -> np.ndarray:
    return RNG.integers(1, 4000, (3, height, width)).astype(np.uint16)


def expected_tokens(dn: np.ndarray, dn_range: tuple[float, float] = (0.0, 10_000.0)) -> torch.Tensor:
    """The small network's tokens by hand, without the library's batching."""
    vision, _ = towers()
    if can_pack():
        replace_linear(vision, PackedLinear)
    chip = resize_and_crop(to_uint8(dn, dn_range), 224)
    with torch.inference_mode():
        return vision.tokens(normalise([chip]))[0]


# --- outputs -----------------------------------------------------------------------------------------


def test_pooled_is_the_mean_of_all_tokens(small):
    dn = pixels()
    result = get_embedding(MODEL, input_chw=dn, checkpoint=small)
    tokens = expected_tokens(dn)
    assert result.data.dtype == np.float32
    np.testing.assert_allclose(result.data, tokens.mean(dim=0), atol=1e-6)
    assert result.meta["pooling"] == "token_mean"
    assert tokens.shape == (50, 64)  # CLS is one of them


def test_projected_is_the_clip_image_embedding_not_normalised(small):
    dn = pixels()
    result = get_embedding(MODEL, input_chw=dn, checkpoint=small, output=OutputSpec.pooled("projected"))
    vision, _ = towers()
    np.testing.assert_allclose(result.data, vision.project(expected_tokens(dn)[None])[0], atol=1e-6)
    assert result.data.shape == (32,)
    assert result.meta["pooling"] == "clip_projection"
    assert abs(np.linalg.norm(result.data) - 1) > 1e-3


def test_a_grid_is_the_patch_tokens_row_0_north(small):
    dn = pixels()
    grid = get_embedding(MODEL, input_chw=dn, checkpoint=small, output=OutputSpec.grid())
    expected = expected_tokens(dn)[1:].reshape(7, 7, 64).permute(2, 0, 1)
    np.testing.assert_allclose(grid.data.values, expected, atol=1e-6)
    assert grid.data.dims == ("d", "y", "x")
    assert grid.data.attrs["crs"] is None
    # without a place the coordinates are the patch's pixels: 7 tokens over 120 px
    np.testing.assert_allclose(grid.data.x.values, (np.arange(7) + 0.5) * 120 / 7)
    facts = {k: grid.meta[k] for k in ("tokens_kind", "token_count", "dim", "grid_hw", "cls_removed", "grid_type")}
    assert facts == {
        "tokens_kind": "patch_tokens_of_the_last_block",
        "token_count": 49,
        "dim": 64,
        "grid_hw": [7, 7],
        "cls_removed": True,
        "grid_type": "vit_tokens",
    }


def test_the_bright_card_stretches_3000_dn(small):
    dn = pixels()
    result = get_embedding("remoteclip_s2rgb_bright", input_chw=dn, checkpoint=small)
    np.testing.assert_allclose(result.data, expected_tokens(dn, (0, 3000)).mean(dim=0), atol=1e-6)


def test_the_alias_is_the_model(small):
    dn = pixels()
    [a, b] = (get_embedding(name, input_chw=dn, checkpoint=small) for name in (MODEL, "remoteclip"))
    np.testing.assert_array_equal(a.data, b.data)
    assert b.meta["model"] == MODEL


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_a_single_request_is_a_batch_of_one(small, monkeypatch, size):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_BATCH_SIZE", str(size))
    arrays = [pixels(h, w) for h, w in ((120, 120), (64, 64), (10, 90), (300, 224), (120, 120))]
    for output in (OutputSpec.pooled(), OutputSpec.grid()):
        batch = get_embeddings_batch(MODEL, input_chws=arrays, checkpoint=small, output=output)
        for array, result in zip(arrays, batch, strict=True):
            alone = np.asarray(get_embedding(MODEL, input_chw=array, checkpoint=small, output=output).data)
            assert np.abs(np.asarray(result.data) - alone).max() <= 1e-5 * np.abs(alone).max()


def test_what_the_model_saw_is_told(small):
    dn = np.full((3, 100, 200), 4000, np.uint16)
    meta = get_embedding(MODEL, input_chw=dn, checkpoint=small).meta
    assert meta["model_input"]["p50"] == 102
    assert meta["model_input"]["cropped_frac"] == 0.5
    assert any("50% was cut off" in w and "input_prep='tile'" in w for w in meta["warnings"])


# --- pixels that were passed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((4, 10, 10)), r"exactly 3 bands.*\(4, 10, 10\)"),
        (np.ones((10, 10, 3)), r"CHW.*\(10, 10, 3\)"),
        (np.ones((10, 10)), r"\(10, 10\)"),
        (np.ones((3, 0, 10)), r"empty axis.*\(3, 0, 10\)"),
        (np.full((3, 4, 4), "x"), r"dtype <U1"),
        (np.ones((3, 4, 4), bool), "dtype bool"),
        (np.full((3, 4, 4), np.nan), "all NaN"),
        (np.ones((3, 4, 4), complex), "complex"),
        ([[[1, 2], [3]]] * 3, "array of numbers"),
        (np.where(np.eye(4) > 0, np.inf, np.full((3, 4, 4), 500.0)), r"12 infinite value\(s\) of 48: set them to NaN"),
        (np.full((3, 4, 4), -np.inf), "48 infinite"),
        (np.full((3, 4, 4), 0.23), r"up to 0\.23.*multiply it by 10000"),
        (np.where(np.eye(4) > 0, np.nan, np.linspace(0, 1.2, 48).reshape(3, 4, 4)), "multiply it by 10000"),
        (np.ma.masked_less(np.full((3, 4, 4), 0.3, np.float16), 0.1), "multiply it by 10000"),
        (np.ma.masked_all((3, 4, 4), np.uint16), "all NaN"),
        (np.ma.masked_equal(np.ones((3, 4, 4), bool), True), "dtype bool"),
    ],
)
def test_pixels_that_are_none_are_refused(small, array, says):
    with pytest.raises(ModelError, match=says):
        get_embedding(MODEL, input_chw=array, checkpoint=small)


def test_nan_is_not_observed_and_zero_is_a_dn(small):
    dn = pixels().astype(np.float32)
    dn[:, :60] = np.nan
    meta = get_embedding(MODEL, input_chw=dn, checkpoint=small).meta
    assert meta["valid_frac"] == 0.5
    assert any("only 50% of the place was observed" in w for w in meta["warnings"])
    black = get_embedding(MODEL, input_chw=np.zeros((3, 120, 120)), checkpoint=small)
    assert black.meta["valid_frac"] == 1.0
    filled = np.nan_to_num(dn, nan=1234.0)
    sensor = SensorSpec(fill_value=1234.0)
    a = get_embedding(MODEL, input_chw=dn, checkpoint=small, sensor=sensor)
    b = get_embedding(MODEL, input_chw=filled, checkpoint=small)
    np.testing.assert_array_equal(a.data, b.data)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_masked_pixels_are_not_observed(small, kind):
    dn = pixels().clip(0, 100).astype(kind) if kind == np.uint8 else pixels().astype(kind)
    hidden = np.zeros(dn.shape, bool)
    hidden[1, :60] = True  # one band is enough
    loud = np.where(hidden, np.iinfo(np.uint8).max, dn).astype(kind)
    expected = get_embedding(MODEL, input_chw=np.where(hidden, np.nan, dn), checkpoint=small)
    for given in (np.ma.array(loud, mask=hidden), [np.ma.array(b, mask=m) for b, m in zip(loud, hidden, strict=True)]):
        single = get_embedding(MODEL, input_chw=given, checkpoint=small)
        [batch] = get_embeddings_batch(MODEL, input_chws=[given], checkpoint=small)
        for result in (single, batch):
            assert result.meta["valid_frac"] == 0.5
            np.testing.assert_array_equal(result.data, expected.data)
    unmasked = np.ma.array(dn, mask=False)
    np.testing.assert_array_equal(
        get_embedding(MODEL, input_chw=unmasked, checkpoint=small).data,
        get_embedding(MODEL, input_chw=dn, checkpoint=small).data,
    )


def test_dn_of_a_dark_place_are_not_reflectance(small):
    for dark in (np.zeros((3, 40, 40)), np.ones((3, 40, 40)), np.full((3, 40, 40), 2, np.uint16)):
        assert np.isfinite(get_embedding(MODEL, input_chw=dark, checkpoint=small).data).all()


def test_one_pixel_is_enough(small):
    assert np.isfinite(get_embedding(MODEL, input_chw=np.full((3, 1, 1), 500), checkpoint=small).data).all()


def test_a_batch_names_the_array_that_is_wrong(small):
    with pytest.raises(ModelError, match=r"input_chws\[1\]"):
        get_embeddings_batch(MODEL, input_chws=[pixels(), np.ones((2, 2))], checkpoint=small)


# --- tiles -------------------------------------------------------------------------------------------


def chips_of(height: int, width: int, valid: np.ndarray | None = None):
    dn = pixels(height, width).astype(np.float32)
    if valid is not None:
        dn[:, ~valid] = np.nan
    return dn, Preparation((0, 10_000), ChipSize(224, 32)).cut(dn, fill_value=0.0, prep="tile")


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 448), (500, 480), (225, 255), (256, 300), (700, 224)])
def test_tiles_cover_the_place_in_whole_tokens(height, width):
    dn, chips = chips_of(height, width)
    rows, cols = height // 32, width // 32
    assert chips.grid_hw == (rows, cols)
    seen = np.zeros((rows, cols), int)
    for (row, col), image in zip(chips.corners, chips.images, strict=True):
        seen[row : row + 7, col : col + 7] += 1
        window = dn[:, row * 32 : row * 32 + 224, col * 32 : col * 32 + 224]
        np.testing.assert_array_equal(image, to_uint8(window, (0, 10_000)))
    assert (seen >= 1).all()
    assert chips.corners[0] == (0, 0)
    assert chips.cropped_frac == pytest.approx(1 - rows * cols * 32 * 32 / (height * width))


def test_the_first_chips_tokens_count_where_two_overlap():
    _, chips = chips_of(224, 300)
    tokens = [np.full((7, 7, 2), float(i), np.float32) for i in range(len(chips.images))]
    grid = stitch(tokens, chips)
    assert grid.shape == (2, 7, 9)
    assert (grid[:, :, :7] == 0).all()
    assert (grid[:, :, 7:] == 1).all()


def test_a_tiled_grid_is_the_chips_side_by_side(small):
    dn = pixels(256, 480)
    grid = get_embedding(MODEL, input_chw=dn, checkpoint=small, output=OutputSpec.grid(), input_prep="tile")
    first = expected_tokens(dn[:, :224, :224])[1:].reshape(7, 7, 64).permute(2, 0, 1)
    np.testing.assert_allclose(grid.data.values[:, :7, :7], first, atol=1e-5)
    last = expected_tokens(dn[:, 32:256, 256:480])[1:].reshape(7, 7, 64).permute(2, 0, 1)
    np.testing.assert_allclose(grid.data.values[:, 7, 14], last[:, 6, 6], atol=1e-5)
    assert grid.data.shape == (64, 8, 15)
    np.testing.assert_allclose(grid.data.y.values, (np.arange(8) + 0.5) * 32)


def test_a_tiled_vector_is_the_mean_over_chips(small):
    dn = pixels(224, 448)
    result = get_embedding(MODEL, input_chw=dn, checkpoint=small, input_prep="tile")
    parts = [expected_tokens(dn[:, :, :224]).mean(dim=0), expected_tokens(dn[:, :, 224:]).mean(dim=0)]
    np.testing.assert_allclose(result.data, torch.stack(parts).mean(dim=0), atol=1e-6)
    assert result.meta["model_input"]["chips"] == 2


def test_chips_under_half_observed_are_left_out(small):
    dn = pixels(224, 448).astype(np.float32)
    dn[:, :, 300:] = np.nan
    result = get_embedding(MODEL, input_chw=dn, checkpoint=small, input_prep="tile")
    np.testing.assert_allclose(result.data, expected_tokens(dn[:, :, :224]).mean(dim=0), atol=1e-6)
    grid = get_embedding(MODEL, input_chw=dn, checkpoint=small, input_prep="tile", output=OutputSpec.grid())
    assert np.isnan(grid.data.values[:, :, 7:]).all()
    assert not np.isnan(grid.data.values[:, :, :7]).any()
    dn[:, :, 100:] = np.nan
    with pytest.raises(NoImageryError, match="none of the 2 chips"):
        get_embedding(MODEL, input_chw=dn, checkpoint=small, input_prep="tile")


def test_a_place_too_small_for_tiles_is_sent_to_resize(small):
    with pytest.raises(ModelError, match=r"224 x 224 px, got 120 x 120.*input_prep='resize'"):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=small, input_prep="tile")


# --- ready objects as checkpoint ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(open_clip):
    return oracle(open_clip, SMALL)


def test_an_open_clip_vit_gives_tokens_grid_and_projection(open_clip, vit):
    from PIL import Image

    dn = pixels()
    transform = open_clip.transform.image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    image = transform(Image.fromarray(to_uint8(dn, (0, 10_000))))[None]
    caught: list[torch.Tensor] = []
    hook = vit.visual.transformer.register_forward_hook(lambda _m, _i, out: caught.append(out))
    with torch.inference_mode():
        projected = vit.encode_image(image)[0]
    hook.remove()
    pooled = get_embedding(MODEL, input_chw=dn, checkpoint=vit)
    np.testing.assert_allclose(pooled.data, caught[0][0].mean(dim=0), atol=1e-5)
    assert pooled.meta["pooling"] == "token_mean"
    assert pooled.meta["weights_sha256"] is None
    assert "open_clip" in pooled.meta["ckpt"]
    grid = get_embedding(MODEL, input_chw=dn, checkpoint=vit, output=OutputSpec.grid())
    np.testing.assert_allclose(grid.data.values[:, 0, 1], caught[0][0, 2], atol=1e-5)
    out = get_embedding(MODEL, input_chw=dn, checkpoint=vit, output=OutputSpec.pooled("projected"))
    np.testing.assert_allclose(out.data, projected, atol=1e-5)


def test_an_open_clip_rn50_is_pooled_only(open_clip):
    torch.manual_seed(0)
    model = open_clip.create_model("RN50")
    result = get_embedding(MODEL, input_chw=pixels(), checkpoint=model)
    assert result.data.shape == (1024,)
    assert result.meta["pooling"] == "model"
    with pytest.raises(ModelError, match=r"only pooled vectors.*no token sequence.*OutputSpec\.pooled\(\)"):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=model, output=OutputSpec.grid())


class Rshf:
    """Shaped as rshf's RemoteCLIP: the network in `.model`, and a `transform` of its own."""

    def __init__(self, model) -> None:
        self.model, self.seen = model, []

    def transform(self, rgb: np.ndarray, image_size: int) -> torch.Tensor:
        self.seen.append((rgb.dtype, rgb.shape, image_size))
        return torch.full((1, 3, image_size, image_size), 0.5)


def test_a_wrappers_own_transform_is_preferred(vit):
    wrapper = Rshf(vit)
    result = get_embedding(MODEL, input_chw=pixels(90, 100), checkpoint=wrapper, output=OutputSpec.pooled("projected"))
    assert wrapper.seen == [(np.dtype("uint8"), (90, 100, 3), 224)]
    with torch.inference_mode():
        expected = vit.encode_image(torch.full((1, 3, 224, 224), 0.5))[0]
    np.testing.assert_allclose(result.data, expected, atol=1e-5)
    assert result.meta["preprocess"] == "model.transform"


class OnlyVectors:
    def encode_image(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(2, 3))


def test_anything_that_encodes_images_will_do():
    result = get_embedding(MODEL, input_chw=pixels(), checkpoint=OnlyVectors())
    assert result.data.shape == (3,)
    assert result.meta["pooling"] == "model"
    with pytest.raises(ModelError, match="only pooled vectors"):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=OnlyVectors(), output=OutputSpec.grid())


def a_request() -> Request:
    return Request(
        place=None,
        temporal=None,
        sensor=SensorSpec(),
        output=OutputSpec.pooled(),
        input_prep="resize",
        backend=None,
        model=MODEL,
        precision="fp32",
        weights_sha256=None,
    )


class LittleMemory:
    """Encodes at most two images at a time, as a GPU with little memory would; or none."""

    def __init__(self, most: int) -> None:
        self.most, self.batches = most, []

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.mean(dim=(2, 3))


def test_a_batch_that_the_device_has_no_memory_for_is_embedded_in_halves():
    little, enough = LittleMemory(2), LittleMemory(8)
    patches = [pixels() for _ in range(7)]
    found, expected = (get_embeddings_batch(MODEL, input_chws=patches, checkpoint=n) for n in (little, enough))
    assert max(little.batches) == 7
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    with pytest.raises(ModelError, match="has no memory for one image"):
        get_embedding(MODEL, input_chw=patches[0], checkpoint=LittleMemory(0))


class OnCuda:
    """Notes when groups begin and when they are waited for."""

    device = torch.device("cuda")

    def __init__(self, embedder: RemoteClipEmbedder) -> None:
        self.embedder, self.events = embedder, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.embedder, name)

    def start(self, chips, output, *, step, with_tokens):
        number = sum(event.startswith("start") for event in self.events)
        self.events.append(f"start {number}")
        finish = self.embedder.start(chips, output, step=step, with_tokens=with_tokens)

        def noted():
            self.events.append(f"finish {number}")
            return finish()

        return noted


def test_a_gpu_is_given_the_next_group_before_the_last_is_waited_for(small, monkeypatch):
    monkeypatch.setenv("RS_EMBED_REMOTECLIP_BATCH_SIZE", "2")
    embedder = loading.load_embedder(find_card(MODEL), checkpoint=small, device="cpu", precision="fp32")
    patches = [pixels() for _ in range(5)]
    requests = dict.fromkeys(range(5), a_request())

    def run(subject: object) -> list[np.ndarray]:
        ready = prepare_all(embedder.preparation, requests, enumerate(patches))
        outcomes = list(embed_prepared(subject, ready, step=2))
        assert [o.position for o in outcomes] == list(range(5))
        return [o.result.data for o in outcomes]

    gpu = OnCuda(embedder)
    np.testing.assert_array_equal(run(gpu), run(embedder))
    assert gpu.events == ["start 0", "start 1", "finish 0", "start 2", "finish 1", "finish 2"]


@pytest.mark.parametrize("processors", [1, 16])
def test_patches_are_prepared_in_the_order_in_which_they_arrive(monkeypatch, processors):
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    requests = dict.fromkeys(range(40), a_request())
    arrivals = ((i, pixels(600 if i % 7 == 0 else 20, 40)) for i in range(40))
    found = list(prepare_all(Preparation((0, 10_000), ChipSize(224, 32)), requests, arrivals))
    assert [item.position for item in found] == list(range(40))


def test_an_object_that_encodes_nothing_is_refused():
    with pytest.raises(ModelError, match="has no encode_image"):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=object())


# --- names, devices, loading -------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownModelError, match=r"'remoteclip_s2rbg'.*did you mean 'remoteclip_s2rgb'"):
        get_embedding("remoteclip_s2rbg", input_chw=pixels())


@pytest.mark.parametrize("name", ["remoteclip_s2rgb", "remoteclip_s2rgb_bright", "clip_eurosat_s2rgb"])
def test_describing_a_model_loads_nothing(name):
    assert name in list_models()
    card = describe_model(name)
    json.dumps(card, allow_nan=False)
    assert card["outputs"]["pooled('mean')"]
    assert card["licence"]
    assert card["limits"]


def test_the_table_of_place_sizes_is_in_the_card():
    sizes = {r["side_m"]: r for r in describe_model("remoteclip_s2rgb")["place_sizes"]}
    found = {k: (round(r["metres_per_pixel"], 1), round(r["metres_per_token"])) for k, r in sizes.items()}
    assert {k: found[k] for k in (640, 2240, 4096)} == {640: (2.9, 91), 2240: (10.0, 320), 4096: (18.3, 585)}


@pytest.mark.parametrize(("device", "says"), [("cuda:7", "cuda:7"), ("gpu", "'gpu'"), ("", "''")])
def test_a_device_that_is_not_there_is_refused(small, device, says):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match=f"{says}.*'cpu'"):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=small, device=device)


@pytest.mark.parametrize(("precision", "says"), [("fp8", "'fp32'.*got 'fp8'"), ("fp16", "slow on a CPU")])
def test_a_precision_that_is_none_or_not_for_this_device_is_refused(small, precision, says):
    with pytest.raises(ModelError, match=says):
        get_embedding(MODEL, input_chw=pixels(), checkpoint=small, precision=precision, device="cpu")


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("int8", 0.99)])
def test_a_lower_precision_is_near_and_says_what_it_is(precision, least):
    """On the model that ships, real imagery of the sample."""
    places = [PointBuffer(s.lon, s.lat, 600) for s in list_samples()]
    times = [TemporalSpec.range(s.start, s.end) for s in list_samples()]
    both = [
        get_embeddings_batch(
            "clip_eurosat_s2rgb",
            spatials=places,
            temporal=times,
            output=OutputSpec.pooled("projected"),
            backend="sample",
            precision=p,
        )
        for p in ("fp32", precision)
    ]
    for exact, near in zip(*both, strict=True):
        a, b = (e.data / np.linalg.norm(e.data) for e in (exact, near))
        assert least < a @ b < 1 - 1e-9
        assert near.meta["precision"] == precision
        assert near.data.dtype == np.float32
        assert near.meta["request_id"] != exact.meta["request_id"]


def test_packed_products_are_those_of_torch():
    """The tower as it is, against itself with packed products, for both activations and any number of images."""
    if not can_pack():
        pytest.skip("this torch has no packed products")
    rng = torch.Generator().manual_seed(0)
    for kind in ("gelu", "quick_gelu"):
        tower = VisionTower(VisionConfig(width=64, layers=3, heads=2, patch_px=32, image_px=224), 32, kind).eval()
        initialise(tower, 0)
        images = torch.rand(5, 3, 224, 224, generator=rng)
        with torch.inference_mode():
            before = tower.tokens(images), tower.encode_image(images)
            replace_linear(tower, PackedLinear)
            assert isinstance(tower.transformer.resblocks[0].mlp.c_fc, PackedLinear)
            for n in (1, 5):
                torch.testing.assert_close(tower.tokens(images[:n]), before[0][:n], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(tower.encode_image(images[:n]), before[1][:n], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(tower.project(tower.tokens(images[:n])), before[1][:n], atol=1e-5, rtol=1e-5)


def test_int8_products_are_rounded_products():
    """Against the definition, row by row and column by column, in float32 as there."""
    tower = VisionTower(VisionConfig(width=64, layers=1, heads=2, patch_px=32, image_px=224), 32, "gelu").eval()
    initialise(tower, 0)
    mlp, x = tower.transformer.resblocks[0].mlp, torch.randn(2, 50, 256, generator=torch.Generator().manual_seed(1))
    w, b = mlp.c_proj.weight.detach().clone(), mlp.c_proj.bias.detach()
    replace_linear(tower, Int8Linear)
    scale, own = w.abs().amax(dim=1) / 127, x.abs().amax(dim=-1, keepdim=True) / 127
    expected = (x / own).round() @ (w / scale[:, None]).round().T * own * scale + b
    torch.testing.assert_close(mlp.c_proj(x), expected, atol=1e-5, rtol=1e-4)
    exact = x @ w.T + b
    assert (expected - exact).square().mean() < 1e-3 * exact.square().mean()


def test_numbers_do_not_depend_on_how_many_images_a_network_has_seen(small, monkeypatch):
    if not can_pack():
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr(loading, "_images", type(loading._images)())
    dn = pixels()
    one = get_embedding(MODEL, input_chw=dn, checkpoint=small, device="cpu")
    (loaded,) = loading._images.made.values()
    assert isinstance(loaded.tower.transformer.resblocks[0].attn.in_proj, PackedLinear)
    many = get_embeddings_batch(MODEL, input_chws=[dn] * 30, checkpoint=small, device="cpu")
    for result in many:
        np.testing.assert_allclose(result.data, one.data, atol=1e-5 * np.abs(one.data).max())
    again = get_embedding(MODEL, input_chw=dn, checkpoint=small, device="cpu")
    np.testing.assert_array_equal(again.data, one.data)


def test_the_last_two_networks_stay_loaded_and_a_changed_file_is_read_again(tmp_path):
    dn = pixels()
    folders = [write_checkpoint(tmp_path / str(seed), seed=seed) for seed in range(3)]
    vectors = [get_embedding(MODEL, input_chw=dn, checkpoint=f).data for f in folders]
    assert len(loading._images.made) == 2
    assert not np.array_equal(vectors[0], vectors[1])
    write_checkpoint(folders[2], seed=0)
    np.testing.assert_array_equal(get_embedding(MODEL, input_chw=dn, checkpoint=folders[2]).data, vectors[0])


def test_checkpoint_wins_over_the_sensors_collection(tmp_path, small):
    other = write_checkpoint(tmp_path / "other", seed=9)
    dn, sensor = pixels(), SensorSpec(collection=f"hf:{other}")
    by_sensor = get_embedding(MODEL, input_chw=dn, sensor=sensor)
    assert by_sensor.meta["ckpt"] == str(other)
    both = get_embedding(MODEL, input_chw=dn, sensor=sensor, checkpoint=small)
    assert both.meta["ckpt"] == str(small)
    assert not np.array_equal(by_sensor.data, both.data)


def test_the_small_networks_sizes_are_what_the_tests_think():
    assert SMALL.vision.grid == 7


def test_a_chip_without_place_and_date_is_embedded_as_pixels():
    """spyndex's 300 x 300 px chip of real reflectance has neither, so it is passed as it is, in DN."""
    spyndex = pytest.importorskip("spyndex")
    chip = spyndex.datasets.open("sentinel")  # (band, y, x)
    dn = chip.sel(band=["B04", "B03", "B02"]).values.astype(np.float32)
    dn = dn * 10_000 if dn.max() <= 2 else dn
    whole = get_embedding("clip_eurosat_s2rgb", input_chw=dn)
    assert whole.data.shape == (192,)
    tiled = get_embedding("clip_eurosat_s2rgb", input_chw=dn, input_prep="tile", output=OutputSpec.grid())
    assert tiled.data.shape == (192, 9, 9)
    assert np.isfinite(tiled.data.values).all()
