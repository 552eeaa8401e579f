"""The digest of a weights file: what hashlib says, of the file as it is now, also in another process."""

from __future__ import annotations

import hashlib
import os
import pickle

import pytest

from rs_embed import CheckpointError
from rs_embed.digest import digest_of


def test_it_is_that_of_the_file_as_it_is_now(tmp_path):
    file = tmp_path / "weights"
    for content in (b"", b"a" * 100, os.urandom(40 << 20)):  # more than two blocks
        file.write_bytes(content)
        assert digest_of(file).result() == hashlib.sha256(content).hexdigest()
    assert digest_of(file) is digest_of(tmp_path / "." / "weights")


def test_it_is_computed_once_while_the_file_stays_the_same(tmp_path, monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr("rs_embed.digest._sha256", lambda file: asked.append(file) or "1")
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    assert [digest_of(file).result() for _ in range(3)] == ["1"] * 3
    file.write_bytes(b"longer")
    assert digest_of(file).result() == "1"
    assert len(asked) == 2


def test_another_process_gets_the_digest_itself(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    assert pickle.loads(pickle.dumps(digest_of(file).result())) == hashlib.sha256(b"x").hexdigest()


def test_a_file_that_could_not_be_read_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr("rs_embed.digest._sha256", lambda file: (_ for _ in ()).throw(OSError("gone for a moment")))
        with pytest.raises(CheckpointError, match="weights cannot be read: gone for a moment"):
            digest_of(file).result()
    assert digest_of(file).result() == hashlib.sha256(b"x").hexdigest()
    with pytest.raises(FileNotFoundError):
        digest_of(tmp_path / "none")
