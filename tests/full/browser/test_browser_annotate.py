"""The page of annotation as people use it: labels, proposals, masks, undo, export, two windows, and a killed server."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accessible import faint, unnamed, walked
from annotate_steps import add_classes, button, labels, masks, saved
from page_server import PageServer
from page_window import GONE, Window
from playwright.sync_api import Page, expect

Open = Callable[[str], Window]


@pytest.fixture
def server(tmp_path: Path, pictures: Path, model: Path) -> Iterator[PageServer]:
    command = ("-m", "foveal", "annotate", tmp_path / "project", "--images", pictures, "--model", model, "--no-open")
    with PageServer(tmp_path, *command) as started:
        yield started


def labels_when(project: Path, said: dict[str, str]) -> dict[str, str]:
    """The labels of a project, as soon as they are those, or after ten seconds."""
    ends = time.monotonic() + 10
    while (found := labels(project)) != said and time.monotonic() < ends:
        time.sleep(0.1)
    return found


def offered(page: Page) -> str:
    """The file that the page asks about, once its picture is there: before that no key labels it."""
    shown = page.locator("#offered:not(.waiting)")
    expect(shown).to_be_visible()
    name = shown.get_attribute("alt")
    assert name is not None
    return re.search(r"[\w-]+\.jpg", name)[0]  # type: ignore[index]


def label_offered(page: Page, classes: tuple[str, ...]) -> tuple[str, str]:
    """Label the offered image with the key of its class, and wait for the next one."""
    image = offered(page)
    right = image.partition("-")[0]
    page.keyboard.press(str(classes.index(right) + 1))
    expect(page.get_by_role("img", name=image)).to_have_count(0)
    return image, right


CLASSES = ("chelsea", "coffee", "flower", "china")


def label_some(page: Page, count: int) -> dict[str, str]:
    add_classes(page, *CLASSES)
    return dict(label_offered(page, CLASSES) for _ in range(count))


def test_labels_propagate_are_corrected_undone_and_exported(
    server: PageServer, windows: Open, tmp_path: Path, picture_of: Callable[[Page, str], None]
) -> None:
    project = tmp_path / "project"
    page = windows(server.address).page
    saved(page)
    said = label_some(page, 12)
    saved(page)
    assert labels_when(project, said) == said
    picture_of(page, "annotate_classes")
    button(page, "^Review").click()
    button(page, "Propose labels").click()
    expect(page.get_by_text("are too few to show")).to_be_visible()
    tiles = page.locator("#tiles li")
    expect(tiles.first).to_be_visible()
    picture_of(page, "annotate_review")
    # The first proposal is taken as it is, the second one corrected to another class by its key.
    tiles.first.focus()
    page.keyboard.press("a")
    saved(page)
    one = {**labels(project)}
    assert len(one) == 13
    tiles.first.focus()
    image = re.search(r"[\w-]+\.jpg", tiles.first.inner_text())[0]  # type: ignore[index]
    page.keyboard.press("4")
    expect(page.get_by_role("listitem").filter(has_text=image)).to_have_count(0)
    saved(page)
    assert labels_when(project, {**one, image: "china"}) == {**one, image: "china"}
    page.keyboard.press("Control+z")
    expect(page.get_by_role("listitem").filter(has_text=image)).to_have_count(1)
    assert labels_when(project, one) == one
    page.keyboard.press("Control+Shift+z")
    expect(page.get_by_role("listitem").filter(has_text=image)).to_have_count(0)
    assert labels_when(project, {**one, image: "china"}) == {**one, image: "china"}
    button(page, "^Export").click()
    page.get_by_label("Format").select_option("coco")
    page.get_by_label("Name of the folder").fill("mine")
    page.get_by_role("dialog").get_by_role("button", name="Export").click()
    page.wait_for_timeout(3000)  # longer than the page takes to say again that all is saved
    expect(page.get_by_text("Exported to")).to_be_visible()
    assert any((project / "exports/mine").rglob("*.json"))


def test_a_mask_is_clicked_kept_corrected_and_undone(
    server: PageServer, windows: Open, tmp_path: Path, picture_of: Callable[[Page, str], None]
) -> None:
    project = tmp_path / "project"
    page = windows(server.address).page
    saved(page)
    add_classes(page, "cat")
    button(page, "^Masks").click()
    canvas = page.get_by_role("application")
    expect(canvas).to_be_visible()
    expect(page.get_by_text("1 of 36")).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(button(page, "Keep the mask")).to_be_enabled()
    page.mouse.click(box["x"] + 5, box["y"] + 5, button="right")
    expect(page.get_by_text("2 given")).to_be_visible()
    picture_of(page, "annotate_masks")
    page.keyboard.press("Enter")
    expect(page.get_by_text("mask cat, accepted")).to_be_visible()
    saved(page)
    assert masks(project) == [("chelsea-0.jpg", "cat")]
    # By keyboard alone, on the next image.
    page.keyboard.press("]")
    expect(page.get_by_text("2 of 36")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    expect(button(page, "Keep the mask")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page.get_by_text("mask cat, accepted")).to_be_visible()
    saved(page)
    assert len(masks(project)) == 2
    page.keyboard.press("Control+z")
    expect(page.get_by_text("mask cat, accepted")).to_have_count(0)
    saved(page)
    assert masks(project) == [("chelsea-0.jpg", "cat")]


def test_nothing_is_lost_when_the_server_is_killed(server: PageServer, windows: Open, tmp_path: Path) -> None:
    project = tmp_path / "project"
    window = windows(server.address)
    page = window.page
    saved(page)
    said = label_some(page, 5)
    saved(page)
    window.expect(*GONE)
    server.kill()
    # The page says so, keeps the answer of a person who goes on, and sends it when somebody listens again.
    expect(page.get_by_role("status").first).to_contain_text("does not answer")
    image = offered(page)
    page.keyboard.press("1")
    expect(page.get_by_role("status").first).to_contain_text("1 change waits")
    server.start()
    saved(page)
    assert labels_when(project, {**said, image: "chelsea"}) == {**said, image: "chelsea"}
    page.reload()
    saved(page)
    expect(button(page, "chelsea")).to_be_visible()
    assert offered(page) not in {*said, image}


def test_what_a_closed_window_could_not_send_is_sent_by_the_next(
    server: PageServer, windows: Open, tmp_path: Path
) -> None:
    window = windows(server.address)
    saved(window.page)
    add_classes(window.page, "chelsea")
    saved(window.page)
    image = offered(window.page)
    window.expect(*GONE)
    server.kill()
    window.page.keyboard.press("1")
    expect(window.page.get_by_role("status").first).to_contain_text("1 change waits")
    window.page.close()
    server.start()
    saved(windows(server.address).page)
    assert labels(tmp_path / "project") == {image: "chelsea"}


def test_two_windows_follow_each_other(server: PageServer, windows: Open) -> None:
    one, two = windows(server.address).page, windows(server.address).page
    saved(one)
    saved(two)
    add_classes(one, "chelsea", "coffee")
    expect(button(two, "coffee")).to_be_visible()
    add_classes(two, "flower")
    expect(button(one, "flower")).to_be_visible()
    offered(one)
    one.keyboard.press("1")
    expect(button(two, "chelsea")).to_contain_text("1")


def test_everybody_can_use_it(server: PageServer, windows: Open) -> None:
    page = windows(server.address).page
    saved(page)
    add_classes(page, "chelsea", "coffee")
    offered(page)
    page.keyboard.press("1")
    expect(button(page, "chelsea")).to_contain_text("1")
    saved(page)
    reached = walked(page)
    for name in ("Classes", "Masks", "Review", "Undo", "Export", "Skip", "Add"):
        assert any(one.startswith(name) for one in reached), (name, reached)
    for mode in ("^Classes", "^Masks", "^Review"):
        button(page, mode).click()
        saved(page)
        assert unnamed(page) == [], mode
        assert faint(page) == [], mode
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert faint(page) == []
