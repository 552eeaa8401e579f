"""Commands that are started again whatever ends them, until they succeed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

from soak.world import World

_CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]  # each process is number 1 in its own


def containers_allowed() -> bool:
    """Return True where this user may give a process a process table of its own."""
    try:
        return subprocess.run([*_CONTAINER, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass
class Record:
    """What happened: counts of events and of outcomes, and what must not have happened."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def find(self, text: str) -> None:
        """Note a defect."""
        self.findings.append(text)
        print(f"FOUND {text}", flush=True)


class Zygote:
    """A process that runs commands one after the other; in a container of its own where that is allowed."""

    def __init__(self, name: str, world: World, *, in_container: bool = False) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "soak.zygote", str(world.clock)]
        self.name, self.output = name, world.folder / f"{name}.log"
        self._process = subprocess.Popen(
            [*(_CONTAINER if in_container else []), *command],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, arguments: Sequence[str]) -> None:
        """Start a command."""
        self.output.write_text("")  # the command may be killed before it makes the file
        self._send(json.dumps([arguments, str(self.output)]))

    def kill(self, number: int) -> None:
        """Send a signal to the command."""
        self._send(f"kill {number}")

    def wait(self) -> tuple[int, str]:
        """Wait for the command, and return its exit status and what it printed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return int(line.split()[1]) if line else -99, self.output.read_text(errors="replace")

    def close(self) -> None:
        """End the process, and the command with it."""
        self._process.communicate()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


@dataclass(eq=False)
class Job:
    """One command of the package, run in a thread again and again until it succeeds or `stop` is called."""

    zygote: Zygote
    arguments: Sequence[str]
    record: Record
    retries: bool = False
    """Add --retry-failed once the command has failed."""
    stopped: threading.Event = field(default_factory=threading.Event)
    killed_by: int = 0
    _is_running: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Name of the command, for counts."""
        return self.arguments[0]

    @property
    def is_alive(self) -> bool:
        """True until the command has succeeded."""
        return self._thread.is_alive()

    @property
    def is_running(self) -> bool:
        """True while a process works that nobody has killed."""
        return self._is_running and not self.killed_by

    def kill(self, number: int) -> bool:
        """Send a signal to the process; False where none runs, or one has been sent."""
        with self._lock:
            if not self.is_running:
                return False
            self.killed_by = number
            self.zygote.kill(number)
            return True

    def stop(self) -> None:
        """End the command, and do not start it again."""
        self.stopped.set()
        self.kill(signal.SIGTERM)
        if not self.wait(30):
            self.zygote.kill(signal.SIGKILL)
            self.wait(30)

    def wait(self, seconds: float) -> bool:
        """Wait until the command has succeeded; False where it takes longer."""
        self._thread.join(seconds)
        return not self.is_alive

    def _run(self) -> None:
        more: list[str] = []
        while not self.stopped.is_set():
            with self._lock:
                self.killed_by, self._is_running = 0, True
                self.zygote.start([*self.arguments, *more])
            self.record.counts[f"{self.name}: started"] += 1
            code, output = self.zygote.wait()
            with self._lock:
                self._is_running = False
            if self._is_done(code, output):
                return
            more = ["--retry-failed"] if self.retries else []
            self.stopped.wait(0.3)

    def _is_done(self, code: int, output: str) -> bool:
        """Count how the process ended; what must not be is a finding."""
        counts, last = self.record.counts, (output.strip().splitlines() or [""])[-1]
        if "Traceback" in output or (code < 0 and code != -self.killed_by):
            self.record.find(f"{self.name} ended with {code}: {output[-3000:]}")
        if code == 0 and not self.killed_by:
            counts[f"{self.name}: finished"] += 1
            return True
        if self.killed_by:
            counts[f"{self.name}: killed by {signal.Signals(self.killed_by).name}"] += 1
        elif "cannot be written" in output:
            counts[f"{self.name}: refused by the full disk"] += 1
        elif " failed\n" in output or "the run stopped" in output:
            counts[f"{self.name}: places failed, tried again"] += 1
        else:
            counts[f"{self.name}: {last[:110]}"] += 1
        return False


def ask(job: Job, port: int, known: Sequence[str], record: Record) -> None:
    """Ask the served dataset for neighbours of rows that it should know, until its job is stopped."""
    number = 0
    while not job.stopped.wait(1.0):
        if not known:
            continue
        number += 1
        began, was_running = time.monotonic(), job.is_running
        try:
            name = quote(known[number * 7919 % len(known)])
            with urlopen(f"http://127.0.0.1:{port}/api/similar/{name}?k=50", timeout=60) as answer:
                hits = [hit["unique_id"] for hit in json.load(answer)["results"]]
        except HTTPError as error:
            kind = "row not there yet" if error.code == 404 else f"answered {error.code}"
            record.counts[f"served search: {kind}"] += 1
            if error.code != 404:
                record.find(f"a served search answered {error.code}: {error.read(500)!r}")
        except (URLError, OSError):
            if time.monotonic() - began > 50 and was_running and job.is_running:
                record.find("a served search took more than 50 s")
        else:
            record.counts["served search: answered"] += 1
            if len(hits) != len(set(hits)):
                record.find(f"a served search returned a row twice: {hits}")
