"""Signals that end a run in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the first of Ctrl-C, SIGTERM and SIGUSR1 in a list; let a second one end the process at once.

    Batch systems send SIGTERM, or SIGUSR1 where they are asked to, some time before they kill.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, _frame: object) -> None:
        caught.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            before[each] = signal.signal(each, remember)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        before.clear()
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_on(caught: list[int]) -> None:
    """Raise the signal that was caught, if one was: for whoever handles it outside, else as KeyboardInterrupt."""
    if caught:
        signal.raise_signal(caught[0])
        raise KeyboardInterrupt
