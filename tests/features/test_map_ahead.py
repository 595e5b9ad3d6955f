"""`map_ahead`: order, errors, an early end, and no lock that Ctrl-C could leave behind."""

import sys
import threading
import time
from types import FrameType

import pytest

from foveal.features.batches import map_ahead


def test_results_come_in_the_order_of_the_items_and_never_too_many_ahead() -> None:
    begun: list[int] = []

    def slow_first(item: int) -> int:
        begun.append(item)
        time.sleep(0.02 if item == 0 else 0)
        return 10 * item

    found = []
    for number, result in enumerate(map_ahead(slow_first, range(9), 3, ahead=4)):
        assert len(begun) <= number + 5
        found.append(result)
    assert found == [10 * item for item in range(9)]
    assert list(map_ahead(slow_first, [], 2, ahead=1)) == []


def test_an_error_is_raised_in_its_place_and_ends_the_threads() -> None:
    before = threading.active_count()
    results = map_ahead(lambda item: 1 // (2 - item), range(100), 2, ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    left = map_ahead(lambda item: item, range(100), 2, ahead=3)
    assert next(left) == 0
    left.close()
    ends = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < ends:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_caller_takes_no_lock_in_python() -> None:
    """An exception between such a lock and its `with` would leave it locked, and the threads waiting for ever."""
    seen: set[str] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename == threading.__file__:
            seen.add(frame.f_code.co_qualname)

    results = map_ahead(lambda item: item, range(50), 2, ahead=4)
    next(results)  # threads are started by now
    sys.setprofile(profile)
    try:
        assert len(list(results)) == 49
    finally:
        sys.setprofile(None)
    assert not seen
