"""Items made ahead by a thread: the same items, errors and end."""

import threading
from collections.abc import Iterator

import pytest

from dataset.batches import prefetch


def _threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_the_same_items_in_order_from_another_thread(count: int) -> None:
    makers = set()

    def items() -> Iterator[int]:
        for number in range(count):
            makers.add(threading.current_thread())
            yield number

    assert list(prefetch(items(), depth=3)) == list(range(count))
    assert threading.current_thread() not in makers
    assert _threads() == 0


def test_it_stays_a_bounded_number_of_items_ahead() -> None:
    made = []
    ready = prefetch((made.append(number) or number for number in range(100)), depth=3)
    for number in range(10):
        assert next(ready) == number
        assert len(made) <= number + 1 + 3
    ready.close()
    assert len(made) <= 13


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("the third")

    ready = prefetch(items(), depth=4)
    assert [next(ready), next(ready)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(ready)
    assert _threads() == 0


def test_the_thread_ends_when_the_consumer_stops() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    source = items()
    for number in (ready := prefetch(source)):
        if number == 5:
            break
    assert _threads() == 1
    ready.close()
    assert _threads() == 0
    source.close()  # the thread has left it
    assert closed.is_set()
