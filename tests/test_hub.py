"""The hub's own client against a hub on loopback, in a process of its own: the client reads HF_ENDPOINT once."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from shutil import disk_usage

import pytest

from fakes import Hub, serve_hub, write_checkpoint
from hostile_server import drip, drip_headers, endless, redirect, send

REPO = "owner/small"
CODE = """
import asyncio, json, sys, numpy as np
import time, huggingface_hub, torch
from rs_embed import RSEmbedError, get_embedding
async def cell():  # in a running event loop, as in a notebook
    started = time.monotonic()
    try:
        e = get_embedding("remoteclip_s2rgb", input_chw=np.full((3, 64, 64), 900.0), checkpoint=sys.argv[1])
        print(json.dumps({"dim": len(e.data), "ckpt": e.meta["ckpt"], "sha": e.meta["weights_sha256"]}))
    except RSEmbedError as error:
        seconds = time.monotonic() - started
        print(json.dumps({"error": type(error).__name__, "text": str(error), "seconds": seconds}))
asyncio.run(cell())
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_checkpoint(tmp_path_factory.mktemp("served"))
    names = ("model.safetensors", "config.json")
    return {name: (folder / name).read_bytes() for name in names} | {"tokenizer.json": b"{}", "README.md": b"# hi"}


def ask(hub: Hub, cache: Path, reference: str = REPO, **variables: str) -> dict[str, object]:
    """Embed in a fresh process whose hub is `hub` and whose cache is `cache`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE"))}
    environment = kept | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HOME": str(cache)}
    environment |= variables or {"HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, reference], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_repo_is_downloaded_once_and_then_used_without_a_request(files, tmp_path):
    with serve_hub(Hub(files)) as hub:
        first = ask(hub, tmp_path)
        assert first["dim"] == 64
        assert first["ckpt"] == REPO
        asked = list(hub.requests)
        assert any("config.json" in r for r in asked)
        assert any("tokenizer.json" in r for r in asked)
        assert not any("README" in r for r in asked)
        assert ask(hub, tmp_path, f"hf:{REPO}") == first
        assert ask(hub, tmp_path, f"{REPO}:model.safetensors")["sha"] == first["sha"]
        assert hub.requests == asked
    assert ask(hub, tmp_path) == first  # and with the hub gone
    assert (tmp_path / "hub" / "models--owner--small").is_dir()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        (("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HOME"), "HF_HUB_CACHE"),
        (("HUGGINGFACE_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HOME"), "HUGGINGFACE_HUB_CACHE"),
        (("HF_HOME", "HUGGINGFACE_HOME"), "HF_HOME/hub"),
        (("HUGGINGFACE_HOME",), "HUGGINGFACE_HOME/hub"),
    ],
)
def test_the_cache_lies_where_the_first_variable_says(files, tmp_path, variables, folder):
    with serve_hub(Hub(files)) as hub:
        assert "dim" in ask(hub, tmp_path, **{name: str(tmp_path / name) for name in variables})
    found = [p.parent.relative_to(tmp_path) for p in tmp_path.rglob("models--owner--small") if ".locks" not in str(p)]
    assert found == [Path(folder)]


def test_a_revision_and_a_file_can_be_named(files, tmp_path):
    with serve_hub(Hub(files | {"other.safetensors": files["model.safetensors"]})) as hub:
        assert ask(hub, tmp_path, f"{REPO}@v1")["ckpt"] == f"{REPO}@v1"
        assert any("/revision/v1" in r for r in hub.requests)
        assert ask(hub, tmp_path, f"{REPO}@v1:other.safetensors")["dim"] == 64
        wrong = ask(hub, tmp_path, f"{REPO}:missing.pt")
        assert "has no file 'missing.pt'" in wrong["text"]
        assert "other.safetensors" in wrong["text"]
        assert "no revision 'v9'" in ask(hub, tmp_path, f"{REPO}@v9")["text"]


@pytest.mark.parametrize(
    ("hub", "reference", "says"),
    [
        (Hub(private=True), REPO, ("private (401)", "hf auth login")),
        (Hub(), "owner/none", ("not on 127.0.0.1", "(404)")),
        (Hub(status=500), REPO, ("answered 500", "try again later")),
        (Hub({"README.md": b"#"}), REPO, ("holds no weights", "model.safetensors")),
        (Hub({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}), REPO, ("git-lfs pointer",)),
        (Hub({"model.safetensors": b"<html>sign in</html>"}), REPO, ("web page",)),
    ],
    ids=["401", "404", "500", "no weights", "pointer", "html"],
)
def test_a_hub_that_does_not_give_weights_is_one_clear_error(tmp_path, hub, reference, says):
    with serve_hub(hub):
        got = ask(hub, tmp_path, reference)
    assert got["error"] == "CheckpointError"
    for text in says:
        assert text in got["text"]


def test_a_download_cut_short_is_an_error_and_leaves_no_weights(files, tmp_path):
    with serve_hub(Hub(files, cut=1000)) as hub:
        got = ask(hub, tmp_path)
        assert got["error"] == "CheckpointError"
        assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
        hub.cut = 0
        assert ask(hub, tmp_path)["dim"] == 64


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_no_network_is_an_error_within_10_s_that_says_what_works_without(tmp_path, silent):
    with serve_hub(Hub(silent_s=60)) as hub:
        pass  # its port is closed again
    if silent:
        with serve_hub(Hub(silent_s=60)) as hub:
            got = ask(hub, tmp_path)
    else:
        got = ask(hub, tmp_path)
    assert got["seconds"] < 10 + 5  # on a busy machine
    assert got["error"] == "CheckpointError"
    for text in ("is not cached", "cannot be reached", "checkpoint='FOLDER'", "clip_eurosat_s2rgb"):
        assert text in got["text"]


def test_offline_mode_is_named(tmp_path):
    got = ask(Hub(url="http://127.0.0.1:9"), tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in got["text"]


def test_a_path_wins_over_a_repo_of_the_same_name(files, tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "owner" / "small")
    monkeypatch.chdir(tmp_path)
    with serve_hub(Hub(files)) as hub:
        assert "dim" in ask(hub, tmp_path)
        assert "dim" in ask(hub, tmp_path, f"{folder}:model.safetensors")
        assert hub.requests == []


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("/no/such/folder", "no file or folder"),
        ("./weights.pt", "no file or folder"),
        ("a/b/c", "no file or folder"),
        ("owner/small:../../etc/passwd", "outside of its repo"),
        ("", "no file or folder"),
    ],
)
def test_a_reference_that_is_nothing_is_refused_without_a_request(reference, says):
    from rs_embed import CheckpointError
    from rs_embed.clip.weights import resolve

    with pytest.raises(CheckpointError, match=says):
        resolve(reference)


def test_a_token_never_shows(tmp_path):
    with serve_hub(Hub(private=True)) as hub:
        got = ask(hub, tmp_path, HF_HOME=str(tmp_path), HF_TOKEN="hf_secretsecret")
    assert "hf_secret" not in json.dumps(got)


def test_clips_tokenizer_is_beside_the_weights_or_that_of_open_clip(tmp_path, small, monkeypatch):
    from rs_embed.clip import hub
    from rs_embed.clip.tokenizer import Tokenizer

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    from_merges = hub.resolve_tokenizer(small / "model.safetensors")
    assert from_merges.rules.get_vocab_size() == 49_408
    copied = tmp_path / "with"
    shutil.copytree(small, copied)
    expected = Tokenizer.from_open_clip_merges()
    assert expected is not None
    expected.rules.save(str(copied / "tokenizer.json"))
    beside = hub.resolve_tokenizer(copied / "model.safetensors")
    assert beside.rules.get_vocab() == expected.rules.get_vocab()


# --- a hub that means harm -------------------------------------------------------------------------------


@pytest.fixture
def hostile(files, tmp_path, monkeypatch):
    """A hub in this process, with the waits of production divided by 30."""
    from huggingface_hub import constants

    from rs_embed.clip import hub_client

    monkeypatch.setattr(hub_client, "HUB", replace(hub_client.HUB, deadline_s=1.0))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(Hub(dict(files))) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def refusal(hub: Hub) -> str:
    """The one error for a repo of the hub, which comes within seconds."""
    from rs_embed import CheckpointError
    from rs_embed.clip.weights import resolve

    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        resolve(REPO)
    assert time.monotonic() - started < 15  # on a busy machine
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (endless, "sends an answer of over 16 MB"),
        (drip, "has sent .* bytes within"),
        (drip_headers, "cannot be reached .TimeoutError"),
        (lambda h: send(h, gzip.compress(bytes(1 << 20)), b"Content-Encoding: gzip"), "sends a compressed answer"),
        (lambda h: redirect(h, h.path), "cannot be reached .TooManyRedirects"),
        (lambda h: redirect(h, "file:///etc/passwd"), "redirects from http to file"),
        (lambda h: send(h, b"{}", *[b"X-%d: " % i + b"x" * 60_000 for i in range(5)]), "cannot be reached"),
        (lambda h: send(h, b"[" * 100_000), "as no hub does .RecursionError"),
        (lambda h: send(h, b"[1, 2]"), "as no hub does .TypeError"),
        (lambda h: send(h, b'{"id": "a", "siblings": 7}'), "as no hub does"),
        (lambda h: send(h, b"<html>sign in</html>"), "as no hub does .JSONDecodeError"),
    ],
)
def test_an_answer_of_a_hub_is_bounded(hostile, answer, says):
    def api(handler: BaseHTTPRequestHandler, path: str) -> bool:
        if path.startswith("/api/"):
            answer(handler)
        return path.startswith("/api/")

    hostile.answer = api
    assert re.search(says, refusal(hostile))


def test_a_download_is_as_large_as_the_hub_has_stated_and_fits_the_disk(hostile, tmp_path):
    def answer(handler: BaseHTTPRequestHandler, path: str) -> bool:
        is_weights = handler.command == "GET" and path.endswith("safetensors")
        if is_weights:
            endless(handler)
        return is_weights

    hostile.answer = answer
    size = len(hostile.files["model.safetensors"])
    assert f"sends an answer of over {size >> 20} MB" in refusal(hostile)
    assert sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*")) < size
    hostile.sizes = {"model.safetensors": 1 << 50}
    assert "at most" in refusal(hostile)
    hostile.sizes = {"model.safetensors": 60 << 30}
    if disk_usage(tmp_path).free < 60 << 30:
        assert re.search("has 64,425 MB, and .*cache has room for .*: make room, or set HF_HOME", refusal(hostile))
    hostile.sizes = {"config.json": 40 << 20}
    assert "config.json of the hub repo owner/small has 41,943,040 bytes, at most 33,554,432" in refusal(hostile)


@pytest.mark.parametrize("field", ["commit", "etag"])
def test_no_name_of_a_hub_leads_out_of_its_cache(hostile, tmp_path, field):
    setattr(hostile, field, "../../../outside")
    assert "names a file" in refusal(hostile)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])
