"""Work for the next steps, done while this one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def prefetch(items: Iterable[T], depth: int = 4) -> Generator[T, None, None]:
    """The same items, made by a background thread while the caller is busy.

    An error of `items` is raised where its item would have come. The thread ends with the items, or
    when this generator is closed.

    Args:
        items: what to go through; from the first item on only the thread touches it.
        depth: items made ahead, at least 1.
    """
    source = iter(items)
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    try:
        ahead = deque(worker.submit(next, source, _END) for _ in range(depth))
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(worker.submit(next, source, _END))
            yield item
    finally:
        worker.shutdown(cancel_futures=True)
