"""Attack one dataset for some minutes, and compare it with a calm run: `python -m soak [--minutes N] [--seed N]`."""

from __future__ import annotations

import argparse
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from soak.jobs import Job, Record, Zygote, ask, containers_allowed
from soak.judge import compare, faults_of_dataset, faults_of_index, read_vectors
from soak.world import World, open_world

PLACES_A_CYCLE = 24
ATTACK_S = 60.0
CALM_S = 900.0  # for the commands of a cycle to finish once nothing attacks them, on a busy machine
ARCHIVE_FAULTS = ("errors", "resets", "corrupt", "lost scene")
CLOCKS_S = (0, 3_600, -86_400, 400 * 86_400, -30 * 86_400)


def main() -> None:
    """Exit with 1 if anything was lost, doubled, different, or a raw exception."""
    parser = argparse.ArgumentParser(prog="python -m soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the commands are ended and the disk is unmounted
    record, began = Record(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="rs-embed-soak-") as scratch,
        open_world(Path(scratch), options.seed) as world,
    ):
        worst = soak(world, record, began + 60 * options.minutes)
    print(f"\nseed {options.seed}, {(time.monotonic() - began) / 60:.0f} minutes, {len(world.places)} places")
    for name, count in sorted(record.counts.items()):
        print(f"| {name} | {count:,} |")
    print(f"largest difference from the calm run: {worst:.1e}; findings: {len(record.findings)}")
    sys.exit(bool(record.findings))


def soak(world: World, record: Record, until: float) -> float:
    """Run cycles until a time of the monotonic clock, then the calm run; return the largest difference from it."""
    contained = containers_allowed()
    zygotes = {
        name: Zygote(name, world, in_container=contained and name.startswith("export"))
        for name in ("export-1", "export-2", "index", "search", "serve")
    }
    record.counts["two containers with equal process numbers"] = int(contained)
    try:
        cycles(zygotes, world, record, until)
        run_calmly(zygotes["export-1"], record, world.export(world.folder / "calm"))
    finally:
        for zygote in zygotes.values():
            zygote.close()
    worst, faults = compare(world.dataset, world.folder / "calm")
    for fault in faults:
        record.find(fault)
    return worst


def cycles(zygotes: Mapping[str, Zygote], world: World, record: Record, until: float) -> None:
    """Run cycles; the dataset is served from the second one on, and asked all the time."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    known: list[str] = []
    service = None
    try:
        while time.monotonic() < until:
            world.add_places(PLACES_A_CYCLE)
            run_cycle(zygotes, world, record, service)
            known[:] = read_vectors(world.dataset)[0]
            if service is None:
                service = Job(zygotes["serve"], ["serve", str(world.dataset), "--port", str(port)], record)
                threading.Thread(target=ask, args=(service, port, known, record), daemon=True).start()
            record.counts["cycles of append, export, index, search"] += 1
            print(f"{len(known)} rows, {record.counts.total()} events, {len(record.findings)} finding(s)", flush=True)
    finally:
        if service is not None:
            service.stop()


def run_cycle(zygotes: Mapping[str, Zygote], world: World, record: Record, service: Job | None) -> None:
    """Append, export by two processes, index and search under attack; then let them finish, and judge."""
    data = str(world.dataset)
    exports = [Job(zygotes[f"export-{i}"], world.export(world.dataset), record, retries=True) for i in (1, 2)]
    jobs = [*exports]
    if service is not None:
        rebuild = ["--rebuild"] if world.chance.random() < 0.3 else []
        jobs.append(Job(zygotes["index"], ["index", data, *rebuild], record))
        jobs.append(Job(zygotes["search"], ["search", data, "--like", "p3", "--k", "5"], record))
    attack(world, record, [*jobs, *([service] if service else [])], exports)
    deadline = time.monotonic() + CALM_S
    for job in jobs:
        if not job.wait(max(1.0, deadline - time.monotonic())):
            record.find(f"{job.name} did not finish within {CALM_S:.0f} s once nothing attacked it")
            job.stop()
    run_calmly(zygotes["export-1"], record, world.export(world.dataset, "--retry-failed"))
    run_calmly(zygotes["index"], record, ["index", data])
    for fault in (*faults_of_dataset(world.dataset, len(world.places)), *faults_of_index(world.dataset)):
        record.find(fault)


def attack(world: World, record: Record, jobs: list[Job], exports: list[Job]) -> None:
    """Do one harm after the other for some time, or until the exports have finished."""
    until = time.monotonic() + ATTACK_S
    while time.monotonic() < until and any(job.is_alive for job in exports):
        time.sleep(world.chance.uniform(0.1, 1.5))
        harm = world.chance.choice(("SIGKILL", "SIGKILL while writing", "SIGTERM", "full disk", "archive", "clock"))
        if harm == "SIGKILL while writing":
            wait_for_write(world)
        if harm.startswith("SIG"):
            number = signal.SIGTERM if harm == "SIGTERM" else signal.SIGKILL
            hit = world.chance.choice(jobs).kill(number)
            record.counts[f"event: {harm}"] += hit
        elif harm == "full disk" and world.has_small_disk:
            record.counts["event: full disk"] += 1
            with world.full_disk():
                time.sleep(world.chance.uniform(1, 4))
        elif harm == "archive":
            kind = world.chance.choice(ARCHIVE_FAULTS)
            record.counts[f"event: archive, {kind}"] += 1
            world.misbehave(kind)
            time.sleep(world.chance.uniform(2, 5))
            world.misbehave()
        elif harm == "clock":
            record.counts["event: clock moved"] += 1
            world.move_clock(world.chance.choice(CLOCKS_S))


def wait_for_write(world: World) -> None:
    """Wait some seconds at most until a file is being written to the dataset."""
    parts, until = world.dataset / ".rs-embed" / "parts", time.monotonic() + 4
    while time.monotonic() < until and not (parts.is_dir() and any(parts.iterdir())):
        time.sleep(0.001)


def run_calmly(zygote: Zygote, record: Record, arguments: list[str]) -> None:
    """Run a command that nothing attacks, and that must succeed at once."""
    zygote.start(arguments)
    code, output = zygote.wait()
    record.counts[f"{arguments[0]}: finished without an attack"] += 1
    if code:
        record.find(f"{arguments[0]} ended with {code} although nothing attacked it: {output[-2000:]}")


main()
