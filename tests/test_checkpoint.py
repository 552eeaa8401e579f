from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import rs_embed
from fakes import SMALL, SMALL_JSON, small_config, state_dict, towers, write_checkpoint
from rs_embed import CheckpointError, embed_text, get_embedding
from rs_embed.clip.checkpoint import open_checkpoint, save_checkpoint
from rs_embed.clip.formats import infer_config
from rs_embed.clip.weights import find_file
from rs_embed.digest import digest_of

PIXELS = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names of transformers' CLIPModel (its conversion script, the other way round)."""
    out: dict[str, torch.Tensor] = {
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "text_projection.weight": state["text_projection"].T.contiguous(),
        "logit_scale": state["logit_scale"],
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for name, kind in (("visual.ln_pre", "pre_layrnorm"), ("visual.ln_post", "post_layernorm")):
        for end in ("weight", "bias"):
            out[f"vision_model.{kind}.{end}"] = state[f"{name}.{end}"]
    for end in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{end}"] = state[f"ln_final.{end}"]
    for stem, tower in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for layer in range(2):
            old, new = f"{stem}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for end in ("weight", "bias"):
                for a, b in parts.items():
                    out[f"{new}.{b}.{end}"] = state[f"{old}.{a}.{end}"]
                out[f"{new}.self_attn.out_proj.{end}"] = state[f"{old}.attn.out_proj.{end}"]
                for letter, part in zip("qkv", state[f"{old}.attn.in_proj_{end}"].chunk(3), strict=True):
                    out[f"{new}.self_attn.{letter}_proj.{end}"] = part.contiguous()
    return out


def as_safetensors(folder: Path, prefix: str) -> Path:
    save_file(state_dict(prefix=prefix), folder / "model.safetensors")
    return folder / "model.safetensors"


def as_torch(folder: Path, content: object, **options: object) -> Path:
    torch.save(content, folder / "weights.pt", **options)
    return folder / "weights.pt"


LAYOUTS = {
    "hub mixin": lambda f: as_safetensors(f, "model."),
    "open_clip": lambda f: as_safetensors(f, ""),
    "official .pt": lambda f: as_torch(f, state_dict()),
    ".pt before torch 1.6": lambda f: as_torch(f, state_dict(), _use_new_zipfile_serialization=False),
    "training checkpoint": lambda f: as_torch(f, {"epoch": 3, "state_dict": state_dict(prefix="module.")}),
    "transformers": lambda f: as_torch(f, to_transformers(state_dict())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(tmp_path, layout):
    (tmp_path / "config.json").write_text(json.dumps(SMALL_JSON))
    file = LAYOUTS[layout](tmp_path)
    checkpoint = open_checkpoint(file)
    assert checkpoint.config == SMALL
    vision, text = towers()
    ids = torch.tensor([[49_406, 320, 49_407] + [0] * 74])
    torch.testing.assert_close(checkpoint.load_vision().encode_image(PIXELS), vision.encode_image(PIXELS))
    torch.testing.assert_close(checkpoint.load_text().encode_text(ids), text.encode_text(ids))
    assert digest_of(file).result() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_half_precision_weights_are_read_as_float32(tmp_path):
    vision, text = towers()
    file = save_checkpoint(tmp_path / "half", vision, text, {"model_name": "small"})
    loaded = open_checkpoint(file).load_vision()
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["vision_cfg"] == {"heads": 1}
    assert sorted(p.name for p in file.parent.iterdir()) == ["config.json", "model.safetensors"]


def test_loaded_towers_cannot_be_trained_by_accident(small):
    tower = open_checkpoint(small / "model.safetensors").load_vision()
    assert not tower.training
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "gelu"),
        ({"model_name": "small-quickgelu"}, "quick_gelu"),
        ({"quick_gelu": True}, "quick_gelu"),
        ({"vision_config": {"hidden_act": "quick_gelu"}}, "quick_gelu"),
        ({"vision_config": {"hidden_act": "gelu"}}, "gelu"),
        ({"vision_config": {}, "text_config": {}}, "quick_gelu"),  # transformers' default for CLIP
    ],
)
def test_the_activation_is_gelu_unless_the_config_says_otherwise(tmp_path, config, activation):
    heads = {"vision_cfg": {"heads": 1}, "text_cfg": {"heads": 1}}
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(heads | config))
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.config.activation == activation
    expected, _ = towers(small_config(activation))
    torch.testing.assert_close(checkpoint.load_vision().encode_image(PIXELS), expected.encode_image(PIXELS))


def test_an_open_clip_config_is_read_too(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    inner = {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 2}, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": inner}))
    config = open_checkpoint(tmp_path / "model.safetensors").config
    assert (config.vision.heads, config.text.heads, config.activation) == (2, 2, "quick_gelu")


def broken(change) -> dict[str, torch.Tensor]:
    state = state_dict(prefix="model.")
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("model.visual.ln_post.bias"), r"missing key.*visual\.ln_post\.bias"),
        (lambda s: s.pop("model.token_embedding.weight"), r"missing key.*token_embedding\.weight"),
        (lambda s: s.update({"model.visual.extra": torch.ones(1)}), r"unexpected key.*visual\.extra"),
        (lambda s: s.update({"model.visual.ln_post.bias": torch.ones(3)}), r"misshapen.*ln_post\.bias \(3,\)"),
        (lambda s: s["model.visual.proj"].fill_(torch.nan), r"visual\.proj holds NaN"),
        (lambda s: s["model.visual.proj"][0, 0].fill_(torch.inf), r"visual\.proj holds NaN or infinity"),
        (lambda s: s.update({"model.visual.proj": torch.ones(64, 32, dtype=torch.int8)}), r"visual\.proj holds .*int8"),
        (lambda s: [s.pop(k) for k in list(s) if "resblocks.1." in k and "visual" not in k], "^$|shape|key"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, says):
    save_file(broken(change), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL_JSON))
    if says.startswith("^$"):
        checkpoint = open_checkpoint(tmp_path / "model.safetensors")  # a shallower text tower is a network of its own
        assert checkpoint.config.text.layers == 1
        return
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(tmp_path / "model.safetensors").load_vision()
    assert "model.safetensors" in str(error.value)


def test_an_odd_width_needs_a_config(tmp_path):
    save_file(state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"64 wide.*config\.json"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"model_name": "ViT-L-14", "vision_cfg": {"heads": 1}, "text_cfg": {"heads": 1}}', "ViT-L-14"),
        ('{"model_name": "RN50", "vision_cfg": {"heads": 1}, "text_cfg": {"heads": 1}}', "ResNet"),
        ('{"vision_cfg": {"heads": 7}}', "7 heads"),
        ("{", "not readable as JSON"),
        ("[]", "expected an object"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(tmp_path, config, says):
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path / "model.safetensors")


class Evil:
    def __reduce__(self):
        return (Path.write_text, (Path("/tmp/rs_embed_was_here"), "x"))


def torch_script(file: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and published CLIPs still use it
        torch.jit.script(torch.nn.Linear(2, 2)).save(file)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs pointer"),
        (lambda f: f.write_text("<!DOCTYPE html><html>sign in</html>"), "web page"),
        (lambda f: f.write_bytes(b""), "is empty"),
        (lambda f: f.write_bytes(b"\x01" * 100), "neither safetensors nor"),
        (lambda f: f.write_bytes(pickle.dumps({"a": Evil()})), "would run code"),
        (lambda f: torch.save({"a": Evil()}, f), "would run code"),
        (lambda f: torch.save([1, 2], f), "no state dict"),
        (lambda f: torch.save({"a": torch.ones(2)}, f), "no CLIP ViT"),
        (lambda f: torch.save({"visual.layer1.0.conv1.weight": torch.ones(2)}, f), "ResNet"),
        (torch_script, "TorchScript"),
    ],
    ids=["pointer", "html", "empty", "noise", "pickle", "torch pickle", "list", "other", "resnet", "torchscript"],
)
def test_what_is_no_checkpoint_is_refused_with_the_reason(tmp_path, write, says):
    file = tmp_path / "weights.pt"
    write(file)
    with pytest.raises(CheckpointError, match=says) as error:
        open_checkpoint(file)
    assert "weights.pt" in str(error.value)
    assert not Path("/tmp/rs_embed_was_here").exists()


@pytest.mark.parametrize("layout", ["hub mixin", "official .pt"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.99])
def test_a_file_cut_short_is_refused(tmp_path, layout, share):
    file = LAYOUTS[layout](tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "config.json"], "model.safetensors"),
        (["RemoteCLIP-ViT-B-32.pt", "README.md"], "RemoteCLIP-ViT-B-32.pt"),
        (["a.pt", "b.pt"], r"a\.pt, b\.pt: name one of them.*:a\.pt"),
        (["README.md"], "holds no weights"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "cut into parts"),
    ],
)
def test_a_folder_has_one_weights_file_or_says_what_it_has(tmp_path, names, chosen):
    for name in names:
        (tmp_path / name).touch()
    if chosen in names:
        assert find_file(tmp_path).name == chosen
    else:
        with pytest.raises(CheckpointError, match=chosen):
            find_file(tmp_path)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    (tmp_path / "secret.pt").touch()
    (tmp_path / "folder").mkdir()
    for name in ("../secret.pt", str(tmp_path / "secret.pt")):
        with pytest.raises(CheckpointError, match="holds no file"):
            find_file(tmp_path / "folder", name)


def test_the_image_tower_alone_is_read(tmp_path):
    """A NaN in the text tower is met only when the text tower is loaded."""
    state = broken(lambda s: s["model.text_projection"].fill_(torch.nan))
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL_JSON))
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    checkpoint.load_vision()
    with pytest.raises(CheckpointError, match="text_projection holds NaN"):
        checkpoint.load_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_one_cold_embedding_at_full_size_stays_under_700_mib(tmp_path):
    """ViT-B/32, pooled, in a process of its own.

    Read as VmHWM, which is ru_maxrss without what a child inherits from the test runner; it counts the mapped file.
    """
    from test_clip import B32

    save_file(state_dict(B32, prefix="model."), tmp_path / "model.safetensors")
    code = (
        "import sys, numpy; from rs_embed import get_embedding\n"
        "get_embedding('remoteclip_s2rgb', input_chw=numpy.ones((3, 120, 120)), checkpoint=sys.argv[1])\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert 300 < int(done.stdout) / 1024 <= 700


def _header(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Rewrite the header of a safetensors file."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return damage


def _key(**facts: object) -> dict[str, object]:
    return {"dtype": "F16", "shape": [0], "data_offsets": [0, 0], **facts}


def _config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


def _weights(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def _bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
        archive.writestr("archive/version", "3")


BLOCK = "model.visual.transformer.resblocks"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            _weights((2**63).to_bytes(8, "little") + b"{" + b"x" * 100),
            "has a header of 9,223,372,036,854,775,808 bytes",
        ),
        (
            _weights((99_000_000).to_bytes(8, "little") + b'{"a":' + b"[" * 98_999_995),
            "has a header of 99,000,000 bytes",
        ),
        (_header(lambda h: h["model.visual.proj"].update(shape=[2**31, 2**31])), "cut short or damaged"),
        (_header(lambda h: h["model.visual.proj"].update(data_offsets=[0, 2**60])), "cut short or damaged"),
        (_header(lambda h: h.update({f"x{i}": _key() for i in range(11_000)})), "keys, at most 10,000 are read"),
        (_header(lambda h: h.update({f"{BLOCK}.20000.ln_1.weight": _key()})), "3 layers and a key .*20000"),
        (_header(lambda h: h.update({f"{BLOCK}.{'9' * 5000}.ln_1.weight": _key()})), "3 layers and a key"),
        (_header(lambda h: h.update({f"{BLOCK}.²3.ln_1.weight": _key()})), "layers and a key|unexpected"),
        (_config('{"a":' * 100_000), "nested too deep"),
        (_config(" " * (2 << 20)), "at most 1,048,576 are read"),
        (_config('{"vision_cfg":5}'), "has 5 as vision_cfg"),
        (_config('{"vision_config":[]}'), "has .. as vision_config"),
        (_config('{"vision_cfg":{"heads":1000000000}}'), "gives the vision tower 1000000000 heads"),
        (_config('{"vision_cfg":{"head_width":0}}'), "gives the vision tower heads of width 0"),
        (_config('{"vision_cfg":{"head_width":"x"}}'), "gives the vision tower heads of width 'x'"),
        (_config('{"model_cfg":5}'), "holds a int, expected an object"),
        (_bomb, "is a compressed archive"),
    ],
)
def test_a_checkpoint_that_means_harm_is_refused_at_once(tmp_path, small, damage, says):
    folder = Path(shutil.copytree(small, tmp_path / "ck"))
    damage(folder)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(folder / "model.safetensors")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual.conv1.weight", (100_000, 3, 32, 32)),
        ("token_embedding.weight", (10**9, 64)),
        ("visual.proj", (64, 10**6)),
    ],
)
def test_sizes_beyond_any_clip_are_refused_before_memory_is_set_aside(name, shape):
    shapes = {key: tuple(value.shape) for key, value in state_dict().items()}
    with pytest.raises(CheckpointError, match=r"tower has \w+ [\d,]+, expected 1 to"):
        infer_config(shapes | {name: shape}, {"vision_cfg": {"heads": 1}, "text_cfg": {"heads": 1}})


def test_a_config_or_tokenizer_that_changed_beside_the_same_weights_is_noticed(tmp_path, small):
    """Also where its size and time of change are the same as before."""
    folder, pixels = Path(shutil.copytree(small, tmp_path / "ck")), np.full((3, 64, 64), 900, np.uint16)

    def made() -> np.ndarray:
        return np.asarray(get_embedding("remoteclip_s2rgb", input_chw=pixels, checkpoint=str(folder)).data)

    plain, config = made(), folder / "config.json"
    state = config.stat()
    quick = json.dumps(SMALL_JSON | {"model_name": "s-quickgelu"})
    config.write_text(quick)
    os.utime(config, ns=(state.st_atime_ns, state.st_mtime_ns))
    changed = made()
    assert np.abs(changed - plain).max() > 1e-4
    config.write_text(quick.replace("s-quickgelu", "s-otherkind"))
    os.utime(config, ns=(state.st_atime_ns, state.st_mtime_ns))
    np.testing.assert_array_equal(made(), plain)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a readable"):
        embed_text("remoteclip_s2rgb", ["lake"], checkpoint=str(folder))


BUNDLED = Path(rs_embed.__file__).parent / "embedders" / "clip_eurosat"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda rules: rules["model"]["vocab"].update(dict.fromkeys(list(rules["model"]["vocab"])[:5], 2**31)),
            "vocabulary",
        ),
        (lambda rules: rules.update(pre_tokenizer=_split("(a+)+$")), "cannot be used .*retry-limit"),
        (lambda rules: rules["model"].update(type="Nope"), "not a readable"),
        (lambda rules: rules.pop("model"), "not a readable"),
    ],
)
def test_a_tokenizer_that_means_harm_is_refused(tmp_path, change, says):
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "ck", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
    rules = json.loads((folder / "tokenizer.json").read_text())
    change(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    words = [*list(rules.get("model", {}).get("vocab", {}))[:5], "a" * 60 + "!"]
    with pytest.raises(CheckpointError, match=says):
        embed_text("clip_eurosat_s2rgb", words, checkpoint=str(folder), template=None)


def _split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def test_a_tokenizer_that_asks_for_padding_to_any_length_gets_none(tmp_path):
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "ck", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
    rules = json.loads((folder / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 2**33}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    rules["padding"] = padding | {"pad_type_id": 0, "pad_token": "[PAD]"}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    asked = ("clip_eurosat_s2rgb", ["lake", "forest by a river"])
    np.testing.assert_array_equal(embed_text(*asked, checkpoint=str(folder)), embed_text(*asked))
