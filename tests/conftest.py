from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fakes import write_checkpoint

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the defaults, whatever the machine has set."""
    for name in ("RS_EMBED_BACKEND", "RS_EMBED_REMOTECLIP_FETCH_WORKERS", "RS_EMBED_REMOTECLIP_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data that is not part of the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED.name}/ of the data that lies outside of the repository")
    return SHARED


@pytest.fixture(scope="session")
def open_clip() -> Iterator[ModuleType]:
    """The oracle. torchvision's own operators are not built for a CPU torch, and open_clip needs none of them."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, on import
        import open_clip

        yield open_clip


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a small ViT with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("small"))
