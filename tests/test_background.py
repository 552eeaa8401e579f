"""The bounded background iterator: bounds, order, errors, and threads that end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from rs_embed.background import Channel, ConsumerGone, in_background, map_in_background


def failing():
    yield 1
    raise KeyError("x")


def endless(closed):
    try:
        while True:
            yield 0
    finally:
        closed.set()


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_an_iterator_runs_at_most_so_many_items_ahead():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    for taken, item in enumerate(in_background(items(), 3), start=1):
        assert item == taken - 1
        time.sleep(0.001)
        assert len(made) - taken <= 3 + 1
    assert len(made) == 50


def test_no_items_and_no_workers_end_at_once():
    assert list(in_background([], 2)) == []
    assert list(map_in_background(str, [], workers=0, limit=2)) == []


def test_ordered_results_keep_the_order_and_the_bound():
    started = []

    def work(item):
        started.append(item)
        time.sleep(0.01 * (item % 3))
        return item * item

    results = map_in_background(work, range(30), workers=4, limit=6, ordered=True)
    for taken, result in enumerate(results):
        assert result == taken * taken
        assert len(started) <= taken + 1 + 6


def test_unordered_results_come_as_they_are_finished():
    first_may_end = threading.Event()

    def work(item):
        if item == 0:
            assert first_may_end.wait(5)
        return item

    results = map_in_background(work, range(3), workers=2, limit=4)
    assert next(results) == 1
    first_may_end.set()
    assert sorted(results) == [0, 2]


def test_large_results_wait_for_each_other():
    running, most = 0, 0
    lock = threading.Lock()

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return item

    results = map_in_background(work, range(6), workers=4, limit=8, size_of=lambda item: 600, limit_bytes=1000)
    assert sorted(results) == list(range(6))
    assert most == 1


@pytest.mark.parametrize("ordered", [False, True])
def test_a_defect_in_the_work_or_in_the_items_is_raised_by_the_consumer(ordered):
    def divide(item):
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(map_in_background(divide, [1, 0, 1], workers=2, limit=4, ordered=ordered))

    with pytest.raises(KeyError):
        list(map_in_background(divide, failing(), workers=2, limit=4, ordered=ordered))


@pytest.mark.parametrize("ordered", [False, True])
def test_closing_the_iterator_ends_the_threads_and_closes_the_items(ordered):
    before, closed = threading.active_count(), threading.Event()

    results = map_in_background(str, endless(closed), workers=3, limit=4, ordered=ordered)
    assert next(results) == "0"
    results.close()
    assert closed.wait(5)
    wait_until(lambda: threading.active_count() <= before)


def test_an_event_loop_hands_over_what_it_makes_and_is_told_when_nobody_takes_it():
    gone = threading.Event()

    async def count(channel):
        for i in range(1000):
            try:
                while not channel.offer(i):
                    await asyncio.sleep(0.001)
            except ConsumerGone:
                gone.set()
                raise

    channel: Channel[int] = Channel(limit=2)
    results = channel.consume([lambda: asyncio.run(count(channel))])
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert gone.wait(5)


def test_the_background_thread_hands_over_errors_and_stops():
    results = in_background(failing(), 2)
    assert next(results) == 1
    with pytest.raises(KeyError):
        next(results)
    closed = threading.Event()
    results = in_background(endless(closed), 2)
    next(results)
    results.close()
    assert closed.wait(5)
