"""Targets and their loop: inputs from a hypothesis strategy until the time is up; only our own errors may be raised."""

from __future__ import annotations

import json
import logging
import pickle
import resource
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from rs_embed.errors import RSEmbedError, visible

MEMORY_BYTES = 12 << 30  # of addresses: torch alone maps some GB
INPUT_S = 20
_BATCH = 50

Check = Callable[[Any, Path], object]


@dataclass(frozen=True)
class Target:
    """Inputs, and what is done with each of them in an empty folder."""

    inputs: SearchStrategy[Any]
    check: Check


TARGETS: dict[str, Target] = {}


def target(inputs: SearchStrategy[Any]) -> Callable[[Check], Check]:
    """Register a function of an input and an empty folder under its name."""

    def register(check: Check) -> Check:
        TARGETS[check.__name__] = Target(inputs, check)
        return check

    return register


def run(name: str, seconds: float, first_seed: int, last_input: Path) -> int:
    """Try inputs of a target for a while and return their number; what is no error of ours is raised.

    Each input is written to a file first, so that one that ends the process is known.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _out_of_time)
    logging.disable()
    socket.getaddrinfo = _no_network
    chosen, tried, stop = TARGETS[name], 0, time.monotonic() + seconds

    def attempt(value: Any) -> None:
        nonlocal tried
        tried += 1
        last_input.write_bytes(pickle.dumps(value))
        folder = Path(tempfile.mkdtemp())
        signal.alarm(INPUT_S)
        try:
            chosen.check(value, folder)
        except RSEmbedError as error:
            check_error(error)
        finally:
            signal.alarm(0)
            shutil.rmtree(folder, ignore_errors=True)

    while time.monotonic() < stop:
        options = settings(
            max_examples=_BATCH,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(first_seed + tried)(options(given(chosen.inputs)(attempt)))()
    return tried


def check_error(error: RSEmbedError) -> None:
    """Fail unless an error is one line without control characters."""
    assert visible(str(error)) == str(error), repr(error)


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"an input took over {INPUT_S} s")


def _no_network(host: object, *_: object, **__: object) -> None:
    raise OSError(f"no network while fuzzing: {host!r} was asked for")


ODD = st.sampled_from(
    [0, -1, 1, 2**31, 2**63, 10**30, True, "", "..", "../../x", "/etc/passwd", "a/b", "package:..", "\0"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | ODD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated_json(draw: DrawFn, document: Any, most: int = 4) -> Any:
    """Return a JSON value with a few values replaced, removed or added."""
    changed = {"": deepcopy(document)}
    for _ in range(draw(st.integers(1, most))):
        holder, key = _somewhere(draw, changed)
        match draw(st.sampled_from(("replace", "replace", "remove", "add"))):
            case "remove" if holder is not changed:
                del holder[key]
            case "add" if isinstance(holder, dict) and holder is not changed:
                holder[draw(st.text(max_size=8))] = draw(JSON)
            case _:
                holder[key] = draw(JSON)
    return changed[""]


def _somewhere(draw: DrawFn, root: dict[str, Any]) -> tuple[Any, Any]:
    """Return a container within a value, and a key of it."""
    holder: Any = root
    key: Any = ""
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 5)):
        holder = holder[key]
        key = (
            draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else draw(st.integers(0, len(holder) - 1))
        )
    return holder, key


@st.composite
def mutated_bytes(draw: DrawFn, seeds: Sequence[bytes], most: int = 12) -> bytes:
    """Return bytes with a few edits: bytes set, inserted, removed or repeated, numbers made odd, the end cut off."""
    content = bytearray(draw(st.sampled_from(list(seeds))))
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(content)) | st.integers(0, min(len(content), 64)))
        match draw(st.sampled_from(("set", "insert", "remove", "repeat", "number", "cut"))):
            case "set":
                content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[at:at] = draw(st.binary(max_size=8))
            case "remove":
                del content[at : at + draw(st.integers(1, 64))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 256))]
            case "number":
                size, number = (
                    draw(st.sampled_from((2, 4, 8))),
                    draw(st.sampled_from((0, 1, 2**15, 2**31, 2**63 - 1, -1))),
                )
                content[at : at + size] = (number % 256**size).to_bytes(size, draw(st.sampled_from(("little", "big"))))
            case _:
                del content[at:]
    return bytes(content)


def write_json(file: Path, value: Any) -> None:
    """Write a JSON value, NaN and all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")
