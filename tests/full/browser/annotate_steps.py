"""What tests of the page of annotation do on it, and what its project then holds."""

import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from foveal.annotate.project import Project

SAVED = "All changes are saved"


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=re.compile(name)).locator("visible=true").first


def saved(page: Page) -> None:
    expect(page.get_by_role("status").first).to_contain_text(SAVED)


def labels(project: Path) -> dict[str, str]:
    """Image -> its accepted label, as the database has it."""
    with Project.open(project) as opened:
        found = opened.to_set().annotations
        return {one.image: one.class_name for one in found if one.state == "accepted" and one.mask is None}


def masks(project: Path) -> list[tuple[str, str]]:
    """(image, class) of each accepted mask."""
    with Project.open(project) as opened:
        found = opened.to_set().annotations
        return [(one.image, one.class_name) for one in found if one.state == "accepted" and one.mask is not None]


def add_classes(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_label("Name of a new class").fill(name)
        page.keyboard.press("Enter")
        expect(button(page, name)).to_be_visible()
