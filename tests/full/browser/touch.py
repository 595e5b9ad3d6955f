"""Fingers on the screen: taps at a place, and lines drawn, as the browser gets them from the screen itself."""

from collections.abc import Sequence
from itertools import pairwise

from playwright.sync_api import Locator, Page


def place(shown: Locator, across: float, down: float) -> tuple[float, float]:
    """Return where a share of what is shown lies in the window, after scrolling to it."""
    shown.scroll_into_view_if_needed()
    box = shown.bounding_box()
    assert box is not None
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def tap(page: Page, shown: Locator, across: float = 0.5, down: float = 0.5) -> None:
    """Tap on a share of what is shown."""
    page.touchscreen.tap(*place(shown, across, down))


def draw(page: Page, shown: Locator, line: Sequence[tuple[float, float]], *, steps: int = 5) -> None:
    """Draw a line with one finger, through shares of what is shown."""
    corners = [place(shown, *one) for one in line]
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        found = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    touch("touchStart", corners[0])
    for (left, top), (right, bottom) in pairwise(corners):
        for step in range(1, steps + 1):
            share = step / steps
            touch("touchMove", (left + share * (right - left), top + share * (bottom - top)))
    touch("touchEnd")
    session.detach()
