"""The dataset's HTTP service as users run it: uvicorn on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from rs_embed.web.server import create_app, listen, server_config


@contextmanager
def serving(folder: Path, *, save_concepts: bool = False) -> Iterator[str]:
    """The address of a server over a dataset, on a free port."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_config(create_app(folder, save_concepts=save_concepts)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()
