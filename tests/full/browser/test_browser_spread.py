"""One mask finds its class in similar images, and is followed through a video: reviewed, corrected, and kept."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotate_steps import add_classes, button, saved
from page_server import PageServer
from page_window import Window
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from touch import place

from foveal.annotate.project import Project
from foveal.annotate.types import Annotation

Open = Callable[[str], Window]
NUM_FRAMES = 5
HEIGHT, WIDTH, RADIUS = 120, 160, 26


@pytest.fixture
def server(tmp_path: Path, pictures: Path, model: Path) -> Iterator[PageServer]:
    command = ("-m", "foveal", "annotate", tmp_path / "project", "--images", pictures, "--model", model)
    with PageServer(tmp_path, *command) as started:
        yield started


@pytest.fixture
def video_server(tmp_path: Path, model: Path) -> Iterator[PageServer]:
    """Serves two folders: `still`, one picture, and `walk`, where a red disc goes to the right in front of grain."""
    grain = np.random.default_rng(0).integers(60, 110, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, name in enumerate(["still/0.png", *(f"walk/{number}.png" for number in range(NUM_FRAMES))]):
        path = tmp_path / "frames" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        frame = grain.copy()
        frame[disc(number)] = (220, 40, 30)
        Image.fromarray(frame).save(path)
    command = ("-m", "foveal", "annotate", tmp_path / "project", "--images", tmp_path / "frames", "--model", model)
    with PageServer(tmp_path, *command) as started:
        yield started


def disc(number: int) -> np.ndarray:
    """Where the disc is in a frame; (H, W) bool."""
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    found: np.ndarray = (down - 60) ** 2 + (across - 30 - 14 * number) ** 2 <= RADIUS**2
    return found


def said(project: Path) -> dict[str, Annotation]:
    """Image -> the mask that is said of it, in the order of images; one image has one mask here."""
    with Project.open(project) as opened:
        found = [one.annotation for one in opened.annotations() if one.annotation.mask is not None]
    assert len({one.image for one in found}) == len(found)
    return {one.image: one for one in sorted(found, key=lambda one: one.image)}


def summed(found: dict[str, Annotation]) -> dict[str, tuple[object, ...]]:
    return {image: (one.state, one.class_name, one.mask) for image, one in found.items()}


def until(project: Path, wanted: dict[str, Annotation]) -> None:
    """Wait until a project says that."""
    ends = time.monotonic() + 10
    while summed(said(project)) != summed(wanted):
        assert time.monotonic() < ends, ({one: two.state for one, two in said(project).items()}, wanted)
        time.sleep(0.1)


def undo(page: Page, project: Path, before: dict[str, Annotation]) -> None:
    page.keyboard.press("Control+z")
    until(project, before)


def iou(found: Annotation, truth: np.ndarray) -> float:
    assert found.mask is not None
    mask = found.mask.pixels()
    return float((mask & truth).sum() / (mask | truth).sum())


def export_coco(page: Page, project: Path) -> dict[str, Any]:
    """Export what is accepted, and return what was written."""
    button(page, "^Export").click()
    page.get_by_label("Format").select_option("coco")
    page.get_by_label("Name of the folder").fill("mine")
    page.get_by_role("dialog").get_by_role("button", name="Export").click()
    expect(page.get_by_text("Exported to")).to_be_visible()
    (path,) = (project / "exports/mine").rglob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def click(page: Page, across: float, down: float) -> None:
    """Click on a share of the image, and wait for the mask."""
    page.mouse.click(*place(page.get_by_role("application"), across, down))
    expect(button(page, "Keep the mask")).to_be_enabled()


def box_around(page: Page, truth: np.ndarray) -> None:
    """Draw a rectangle around what is true in a frame."""
    down, across = truth.nonzero()
    page.mouse.move(*place(page.get_by_role("application"), across.min() / WIDTH, down.min() / HEIGHT))
    page.mouse.down()
    page.mouse.move(*place(page.get_by_role("application"), across.max() / WIDTH, down.max() / HEIGHT), steps=3)
    page.mouse.up()


def tile(page: Page, image: str) -> Locator:
    return page.get_by_role("listitem").filter(has_text=image)


def press_at(page: Page, image: str, key: str) -> None:
    """Press a key on the tile of an image, and wait until the tile is gone."""
    tile(page, image).focus()
    page.keyboard.press(key)
    expect(tile(page, image)).to_have_count(0)


def begin(server: PageServer, windows: Open, name: str) -> Page:
    """Open the page, write a class, and turn to masks."""
    page = windows(server.address).page
    saved(page)
    add_classes(page, name)
    button(page, "^Masks").click()
    expect(page.get_by_text(re.compile("^1 of "))).to_be_visible()
    return page


def test_masks_found_in_similar_images_are_accepted_rejected_corrected_and_teach(
    server: PageServer, windows: Open, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    page = begin(server, windows, "eye")
    click(page, 0.4, 0.45)
    page.keyboard.press("Enter")
    page.keyboard.press("g")  # at once: the mask is still on its way
    expect(page.get_by_text(re.compile("'eye' is found in"))).to_be_visible()
    found = said(project)
    assert found.pop("chelsea-0.jpg").state == "accepted"
    assert len(found) > 4
    assert {one.state for one in found.values()} == {"unsure"}  # nothing is held out yet
    right, wrong, nearly, *others = found
    press_at(page, right, "a")
    press_at(page, wrong, "x")
    tile(page, nearly).focus()
    page.keyboard.press("c")
    expect(page.get_by_text(re.compile(f"^\\d+ of 36: .*{nearly}"))).to_be_visible()
    expect(page.get_by_text("1 given")).to_be_visible()  # the box around what was found
    click(page, 0.4, 0.45)
    expect(page.get_by_text("2 given")).to_be_visible()
    page.keyboard.press("Enter")
    expect(tile(page, others[0])).to_be_visible()  # the review again
    saved(page)
    decided = {"chelsea-0.jpg": "accepted", right: "accepted", wrong: "rejected", nearly: "accepted"}
    corrected = said(project)
    assert {image: one.state for image, one in corrected.items()} == {**decided, **dict.fromkeys(others, "unsure")}
    assert corrected[nearly].mask != found[nearly].mask
    assert corrected[right].mask == found[right].mask
    page.keyboard.press("m")
    expect(page.get_by_text("3 held-out answers")).to_be_visible()  # corrections teach
    again = said(project)
    assert {image: again[image] for image in decided} == {image: corrected[image] for image in decided}
    assert {one.state for image, one in again.items() if image not in decided} == {"unsure"}
    assert any(again[image].mask != found[image].mask for image in others if image in again)
    undo(page, project, corrected)
    undo(page, project, {**corrected, nearly: found[nearly]})
    undo(page, project, {**corrected, nearly: found[nearly], wrong: found[wrong]})
    for _ in range(2):
        page.keyboard.press("Control+Shift+z")
    until(project, corrected)
    exported = export_coco(page, project)
    files = {one["id"]: one["file_name"] for one in exported["images"]}
    kept = ["chelsea-0.jpg", right, nearly]
    assert sorted(files[one["image_id"]] for one in exported["annotations"]) == sorted(kept)
    page.reload()
    saved(page)
    assert summed(said(project)) == summed(corrected)
    button(page, "^Review").click()
    page.get_by_role("combobox", name="Show").select_option("accepted")
    expect(page.locator("#tiles li")).to_have_count(3)
    for image in kept:
        expect(tile(page, image)).to_be_visible()
    page.get_by_role("combobox", name="Show").select_option("rejected")
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(tile(page, wrong)).to_be_visible()


def test_a_mask_is_followed_through_the_frames_of_a_folder_and_one_is_corrected(
    video_server: PageServer, windows: Open, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    page = begin(video_server, windows, "disc")
    page.keyboard.press("]")
    expect(page.get_by_text("2 of 6: walk/0.png")).to_be_visible()
    click(page, 30 / WIDTH, 60 / HEIGHT)
    page.keyboard.press("Enter")
    page.keyboard.press("v")
    expect(page.get_by_text("'disc' is followed through 4 frames and seen in 4")).to_be_visible()
    found = said(project)
    frames = [f"walk/{number}.png" for number in range(NUM_FRAMES)]
    assert list(found) == frames  # and nothing in the other folder
    assert [one.state for one in found.values()] == ["accepted", *["unsure"] * 4]
    for number, image in enumerate(frames):
        assert iou(found[image], disc(number)) > 0.4, image
    expect(page.locator("#tiles li")).to_have_count(4)
    press_at(page, "walk/1.png", "a")
    press_at(page, "walk/2.png", "x")
    tile(page, "walk/4.png").get_by_role("button", name="Correct").click()
    expect(page.get_by_text("6 of 6: walk/4.png")).to_be_visible()
    page.keyboard.press("Escape")  # away with the box around what was found
    expect(page.get_by_text("Class: disc. Click on disc in the image.")).to_be_visible()
    page.keyboard.press("r")
    box_around(page, disc(4))
    expect(page.get_by_text("1 given. Nothing is found so")).to_be_visible()  # by a network that has learnt nothing
    expect(button(page, "Keep the mask")).to_be_disabled()
    page.keyboard.press("p")
    click(page, (30 + 14 * 4) / WIDTH, 60 / HEIGHT)
    page.keyboard.press("Enter")
    expect(page.get_by_role("combobox", name="Show")).to_be_visible()
    expect(tile(page, "walk/4.png")).to_have_count(0)
    saved(page)
    decided = said(project)
    assert [decided[image].state for image in frames] == ["accepted", "accepted", "rejected", "unsure", "accepted"]
    corrected, before = decided["walk/4.png"].mask, found["walk/4.png"].mask
    assert corrected is not None
    assert before is not None
    around = np.ix_(disc(4).any(axis=1), disc(4).any(axis=0))
    assert corrected.pixels()[around].sum() == corrected.pixels().sum() > 0  # nothing outside of the rectangle
    assert before.pixels()[around].sum() < before.pixels().sum()
    button(page, "^Masks").click()
    button(page, "Follow through the video").click()
    expect(page.get_by_text("'disc' is followed through 2 frames and seen in 2")).to_be_visible()
    expect(page.locator("#tiles li")).to_have_count(1)
    expect(tile(page, "walk/3.png")).to_be_visible()
    assert {image: said(project)[image] for image in frames if image != "walk/3.png"} == {
        image: decided[image] for image in frames if image != "walk/3.png"
    }
