"""The bounded background iterator: threads that work ahead of one consumer, by so many items and bytes at most.

Use `in_background` to run an iterator in a thread, `map_in_background` to call a function in several threads, and
a `Channel` for any other producer. An event loop, for example, calls `channel.offer(item)`, which never blocks, and
awaits a moment where the channel is full:

    channel: Channel[Place] = Channel(limit=16)
    yield from channel.consume([lambda: asyncio.run(sweep(channel))])

All threads are daemons, so that Ctrl-C ends the program without waiting for reads in flight. Closing the iterator
stops the threads: each finishes the item it has, and takes no more. The consumer raises what a producer raised.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ConsumerGone(Exception):
    """Raised in a producer's thread once nobody takes its items any more."""


@dataclass(eq=False, slots=True)
class Channel(Generic[T]):
    """Items on their way from background threads to one consumer."""

    limit: int
    """Items in the making or waiting; one item always fits."""
    limit_bytes: int = sys.maxsize
    """Bytes that they may take; one item always fits, however large."""
    is_closed: bool = field(default=False, init=False)
    """True once nobody takes items any more."""
    items: queue.SimpleQueue[tuple[Future[T], int] | None] = field(default_factory=queue.SimpleQueue, init=False)
    """Items that have their room, each with its size; they may still be in the making. None as a producer ends."""
    _count: int = field(default=0, init=False)
    _bytes: int = field(default=0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)

    def enter(self, size: int = 0, *, wait: bool = True) -> bool:
        """Take room for an item of `size` bytes, and wait for it if `wait`; return False if there is none."""
        with self._changed:
            while not self.is_closed and self._count > 0:
                if self._count < self.limit and self._bytes + size <= self.limit_bytes:
                    break
                if not wait:
                    return False
                self._changed.wait()
            if self.is_closed:
                raise ConsumerGone
            self._count, self._bytes = self._count + 1, self._bytes + size
            return True

    def leave(self, size: int = 0) -> None:
        """Give back the room of one item."""
        with self._changed:
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._changed.notify_all()

    def offer(self, item: T, *, wait: bool = False) -> bool:
        """Hand over an item if there is room for it now, or once there is if `wait`."""
        if not self.enter(wait=wait):
            return False
        done: Future[T] = Future()
        done.set_result(item)
        self.items.put((done, 0))
        return True

    def consume(
        self,
        producers: Sequence[Callable[[], None]],
        quiet_s: float | None = None,
        on_quiet: Callable[[], None] = lambda: None,
    ) -> Generator[T, None, None]:
        """Run each producer in a thread, and yield what they hand over until all have returned.

        After each `quiet_s` without an item, `on_quiet` is called in the consumer's thread.
        """
        try:
            for produce in producers:
                threading.Thread(target=self._run, args=(produce,), name="rs-embed-background", daemon=True).start()
            running = len(producers)
            while running:
                try:
                    message = self.items.get(timeout=quiet_s)
                except queue.Empty:
                    on_quiet()
                    continue
                if message is None:
                    running -= 1
                    continue
                item, size = message
                self.leave(size)
                yield item.result()
        finally:
            with self._changed:
                self.is_closed = True
                self._changed.notify_all()

    def _run(self, produce: Callable[[], None]) -> None:
        try:
            produce()
        except ConsumerGone:
            pass
        except BaseException as error:  # noqa: BLE001  (the consumer raises it)
            failed: Future[T] = Future()
            failed.set_exception(error)
            self.items.put((failed, 0))
        finally:
            self.items.put(None)


def in_background(items: Iterable[T], limit: int) -> Generator[T, None, None]:
    """Run an iterator in a thread, at most `limit` items ahead of the consumer. A generator is closed in the end."""
    return map_in_background(lambda item: item, items, workers=1, limit=limit)


def map_in_background(
    work: Callable[[S], T],
    items: Iterable[S],
    *,
    workers: int,
    limit: int,
    size_of: Callable[[S], int] = lambda item: 0,
    limit_bytes: int = sys.maxsize,
    ordered: bool = False,
) -> Generator[T, None, None]:
    """Call `work` on every item in threads, and yield the results as they are finished, or in order if `ordered`.

    At most `limit` results of `limit_bytes` are in the making or wait for the consumer.
    """
    channel: Channel[T] = Channel(limit, limit_bytes)
    iterator: Iterator[S] = iter(items)
    taking = threading.Lock()  # also held while waiting for room, so that items start in their order

    def run() -> None:
        try:
            while True:
                with taking:
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                    size = size_of(item)
                    channel.enter(size)
                    result: Future[T] = Future()
                    if ordered:
                        channel.items.put((result, size))
                try:
                    result.set_result(work(item))
                except BaseException as error:  # noqa: BLE001  (the consumer raises it)
                    result.set_exception(error)
                if not ordered:
                    channel.items.put((result, size))
        finally:
            with taking:
                if isinstance(iterator, Generator):
                    iterator.close()

    return channel.consume([run] * workers)


def within(seconds: float, call: Callable[[], T], is_late: Callable[[], bool] = lambda: True) -> T:
    """Return the result of a call, or give it up as a TimeoutError: it goes on in a thread that nobody waits for.

    After each period of `seconds` the call is given up if `is_late`.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001  (the caller raises it)
            result.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    while True:
        try:
            return result.result(timeout=seconds)
        except TimeoutError:
            if not result.done() and is_late():
                raise


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread with an event loop of its own: a notebook's thread has one already."""
    [result] = map_in_background(asyncio.run, [coroutine], workers=1, limit=1)
    return result
