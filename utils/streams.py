"""Processing a stream in threads or processes, with little of it in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def bounded_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map` over threads, in order, with at most `workers` + 1 results that wait to be taken.

    An exception of `function` is raised in the place of its result.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from map_in_pool(pool, function, items, most=workers + 1)


def map_in_pool(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], most: int
) -> Iterator[R]:
    """Like `bounded_map` in the threads or processes of `pool`, with at most `most` such results."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def end_with_parent() -> None:
    """Initializer of a process pool, whose processes wait for work for ever when their parent is killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()
