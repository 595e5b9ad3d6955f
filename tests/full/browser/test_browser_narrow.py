"""Both pages in narrow windows, with fingers: nothing lies over anything, and all can be reached and done."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accessible import faint, unreached
from page_server import PageServer
from page_window import Window
from playwright.sync_api import Page, expect
from touch import draw, tap

Open = Callable[..., Window]
SIZES = ((400, 700), (800, 600))


@pytest.fixture(scope="module")
def explorer(tmp_path_factory: pytest.TempPathFactory, pictures: Path, model: Path) -> Iterator[PageServer]:
    out = tmp_path_factory.mktemp("explore")
    command = ("-m", "foveal", "explore", pictures, "--model", model, "--out", out, "--no-open")
    with PageServer(out, *command) as started:
        yield started


@pytest.fixture(scope="module")
def annotator(tmp_path_factory: pytest.TempPathFactory, pictures: Path, model: Path) -> Iterator[PageServer]:
    out = tmp_path_factory.mktemp("annotate")
    command = ("-m", "foveal", "annotate", out / "project", "--images", pictures, "--model", model)
    with PageServer(out, *command) as started:
        yield started


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_explorer_has_room_for_all_and_takes_fingers(
    explorer: PageServer, windows: Open, width: int, height: int
) -> None:
    page: Page = windows(explorer.address, width=width, height=height, touch=True).page
    first = page.get_by_role("option", name=re.compile("chelsea-0"))
    expect(first).to_be_visible()
    assert unreached(page) == []
    tap(page, first, 0.2, 0.6)
    side = page.get_by_role("complementary")
    expect(side).to_contain_text("cosine 1.00")
    held = page.locator("#words").inner_text()
    tap(page, page.get_by_role("application", name=re.compile("^Patches")), 0.9, 0.1)
    expect(page.locator("#words")).not_to_have_text(held)
    expect(page.locator("#words")).to_contain_text("cosine 1.00")
    page.get_by_role("button", name="Where else is this patch?").click()
    expect(page.get_by_text("with a patch like the held one").first).to_be_visible()
    assert unreached(page) == []
    page.get_by_role("button", name="Map", exact=True).click()
    points = page.get_by_role("application", name=re.compile("^Map of the set"))
    expect(page.get_by_role("status")).to_contain_text("36 images")
    page.wait_for_timeout(500)
    draw(page, points, [(0.02, 0.03), (0.98, 0.03), (0.98, 0.97), (0.02, 0.97)])
    expect(page.get_by_role("heading", name="36 images selected")).to_be_visible()
    assert unreached(page) == []
    assert faint(page) == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_page_of_annotation_has_room_for_all_and_takes_fingers(
    annotator: PageServer, windows: Open, width: int, height: int
) -> None:
    page: Page = windows(annotator.address, width=width, height=height, touch=True).page
    expect(page.get_by_role("status")).to_contain_text("All changes are saved")
    name = f"what the window of {width} pixels shows"
    page.get_by_label("Name of a new class").fill(name)
    page.get_by_role("button", name="Add").click()
    chosen = page.get_by_role("button", name=re.compile(rf"^\d {name}"))
    expect(chosen).to_be_visible()
    assert unreached(page) == []
    page.get_by_role("button", name="Masks", exact=True).click()
    chosen.click()
    image = page.get_by_role("application")
    tap(page, image)
    expect(page.get_by_text("1 given")).to_be_visible()
    page.get_by_role("button", name="Stroke").click()
    draw(page, image, [(0.4, 0.3), (0.6, 0.3), (0.6, 0.7)])
    expect(page.get_by_text("2 given")).to_be_visible()
    page.get_by_role("button", name="does not").click()
    page.get_by_role("button", name="Box").click()
    draw(page, image, [(0.1, 0.1), (0.2, 0.2)])
    expect(page.get_by_text("3 given")).to_be_visible()
    assert unreached(page) == []
    keep = page.get_by_role("button", name="Keep the mask")
    expect(keep).to_be_enabled()
    keep.click()
    expect(page.get_by_text(f"mask {name}, accepted")).to_be_visible()
    page.get_by_role("button", name="Find in similar images").click()
    found = page.locator("#tiles li").filter(has_text=name)
    expect(found.first).to_be_visible()
    assert unreached(page) == []
    assert faint(page) == []
    before = found.count()
    found.first.get_by_role("button", name="Accept").click()
    expect(found).to_have_count(before - 1)
    for button, dialog in (("Keyboard shortcuts", "Keyboard shortcuts"), ("Export", "Export")):
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.get_by_role("dialog", name=dialog).get_by_role("heading")).to_be_in_viewport(ratio=1)
        assert unreached(page) == []
        page.keyboard.press("Escape")
