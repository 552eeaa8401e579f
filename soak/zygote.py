"""A process that has imported everything and forks for each command, so that most of a command's life is work.

It reads lines: a JSON list of arguments and a file for the output, or `kill N`. It answers `exit CODE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch

import rs_embed
import rs_embed.export.run
import rs_embed.providers.stac.provider
import rs_embed.search.index
import rs_embed.web.server
from rs_embed.cli.main import main as run_command
from rs_embed.errors import RSEmbedError

_POLL_S = 0.01


def main() -> None:
    """Serve commands until the standard input is closed."""
    real = time.time
    time.time = lambda: real() + int(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    pixels = np.full((3, 64, 64), 900.0)
    rs_embed.get_embedding("clip_eurosat_s2rgb", input_chw=pixels)  # loads the weights, which all commands share
    child = 0
    while True:
        ready, *_ = select.select([0], [], [], _POLL_S if child else None)
        if ready:
            message = os.read(0, 1 << 16).decode()
            if not message:
                break
            for line in message.splitlines():
                if line.startswith("kill "):
                    if child:
                        os.kill(child, int(line[5:]))
                else:
                    child = _fork(*json.loads(line))
        if child:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                os.write(1, f"exit {os.waitstatus_to_exitcode(status)}\n".encode())
    if child:
        os.kill(child, 9)


def _fork(arguments: list[str], output: str) -> int:
    child = os.fork()
    if child:
        return child
    code: object = 3
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(0)
        run_command([*arguments, "--debug"])
    except SystemExit as stopped:
        code = stopped.code or 0
    except RSEmbedError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BaseException:  # noqa: BLE001  (what must not be: its text tells the soak)
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


main()
