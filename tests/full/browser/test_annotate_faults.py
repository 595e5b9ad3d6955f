"""The page of annotation where things go wrong: slow answers, other servers, full storage, images that are gone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from annotate_steps import add_classes, button, labels, masks, saved
from page_server import PageServer
from page_window import GONE, Window
from playwright.sync_api import Page, Route, expect
from test_browser_annotate import labels_when, offered

from foveal.annotate.project import Project

Open = Callable[[str], Window]
CLASSES = ("chelsea", "coffee", "flower", "china")


def server_of(folder: Path, pictures: Path, model: Path, *, port: int | None = None) -> PageServer:
    command = ("-m", "foveal", "annotate", folder / "project", "--images", pictures, "--model", model)
    return PageServer(folder, *command, port=port)


@pytest.fixture
def server(tmp_path: Path, pictures: Path, model: Path) -> Iterator[PageServer]:
    with server_of(tmp_path, pictures, model) as started:
        yield started


def held(page: Page, address: str) -> list[Route]:
    """Hold back the answers of an address, until `let_go`."""
    found: list[Route] = []
    page.route(address, lambda route: found.append(route))
    return found


def let_go(page: Page, address: str, routes: list[Route]) -> None:
    for route in routes:
        route.continue_()
    page.unroute(address)


def shown(page: Page) -> None:
    """Wait until the offered image may be labelled."""
    expect(page.locator("#offered:not(.waiting)")).to_be_visible()


def test_a_window_of_another_project_changes_nothing_and_keeps_what_it_has(
    server: PageServer, windows: Open, tmp_path: Path, pictures: Path, model: Path
) -> None:
    old = windows(server.address)
    saved(old.page)
    add_classes(old.page, *CLASSES)
    saved(old.page)
    image = offered(old.page)
    old.expect(*GONE, "401", "409")  # 401 while the browser has the token of the other server
    server.kill()
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    with server_of(other_folder, pictures, model, port=server.port) as other:
        new = windows(other.address)
        saved(new.page)
        add_classes(new.page, *CLASSES)
        saved(new.page)
        old.page.keyboard.press("1")
        expect(old.page.get_by_role("status").first).to_contain_text("another project")
        expect(old.page.get_by_role("status").first).to_contain_text("1 change waits")
        assert labels(other_folder / "project") == {}
        new.expect(*GONE, "401", "409")
        new.page.close()
    server.start()
    windows(server.address)  # whose token the browser then has again
    saved(old.page)
    assert labels_when(tmp_path / "project", {image: "chelsea"}) == {image: "chelsea"}


def test_no_key_labels_an_image_that_nobody_has_seen(server: PageServer, windows: Open, tmp_path: Path) -> None:
    window = windows(server.address)
    page = window.page
    saved(page)
    add_classes(page, *CLASSES)
    saved(page)
    shown(page)
    first = offered(page)
    pictures = held(page, "**/pictures/*")
    page.keyboard.press("1")
    expect(page.locator("#classes .count").first).to_have_text("1")
    page.keyboard.press("2")  # the next picture is on its way
    page.wait_for_timeout(500)
    assert labels(tmp_path / "project") == {first: "chelsea"}
    let_go(page, "**/pictures/*", pictures)
    shown(page)
    page.keyboard.down("1")
    page.keyboard.down("1")  # held: the system repeats it
    expect(page.locator("#classes .count").first).to_have_text("2")
    shown(page)
    page.keyboard.down("1")
    page.keyboard.up("1")
    page.wait_for_timeout(500)
    saved(page)
    assert len(labels(tmp_path / "project")) == 2
    # A class by mouse: Enter takes the guess then, and does not press its button again.
    shown(page)
    button(page, "coffee").click()
    expect(page.locator("#view")).to_be_focused()


def test_what_is_refused_is_said_until_a_person_does_something(
    server: PageServer, windows: Open, tmp_path: Path
) -> None:
    window = windows(server.address)
    page = window.page
    saved(page)
    add_classes(page, "chelsea", "coffee")
    saved(page)
    shown(page)
    window.expect("422", "ERR_FAILED")
    page.route("**/changes*", lambda route: route.abort())  # this window has not heard of it yet
    with Project.open(tmp_path / "project") as project:
        project.remove_class("coffee")
    page.keyboard.press("2")
    error = page.locator("#error")
    expect(error).to_contain_text("the project has no class 'coffee'")
    page.unroute("**/changes*")
    page.wait_for_timeout(2000)
    expect(error).to_contain_text("the project has no class 'coffee'")
    shown(page)
    page.keyboard.press("1")
    expect(error).to_be_empty()
    page.keyboard.press("e")
    page.get_by_label("Name of the folder").fill("mine")
    page.get_by_role("dialog").get_by_role("button", name="Export").click()
    expect(page.get_by_text("Exported to")).to_be_visible()
    page.wait_for_timeout(2000)
    expect(page.get_by_text("Exported to")).to_be_visible()


def test_a_class_that_is_gone_is_not_replaced_by_its_neighbour(
    server: PageServer, windows: Open, tmp_path: Path
) -> None:
    page = windows(server.address).page
    saved(page)
    add_classes(page, "chelsea", "coffee", "flower")
    saved(page)
    page.keyboard.press("F2")
    page.keyboard.press("2")
    expect(page.get_by_text("Class: coffee")).to_be_visible()
    with Project.open(tmp_path / "project") as project:
        project.remove_class("coffee")
    expect(page.get_by_text("No class is chosen")).to_be_visible()


def test_full_storage_and_answers_cut_short_lose_nothing(server: PageServer, windows: Open, tmp_path: Path) -> None:
    window = windows(server.address)
    page = window.page
    saved(page)
    add_classes(page, "chelsea")
    saved(page)
    shown(page)
    first = offered(page)
    page.route("**/write*", lambda route: route.fulfill(status=200, body='{"revi', content_type="application/json"))
    page.keyboard.press("1")
    expect(page.get_by_role("status").first).to_contain_text("1 change waits here, kept in this browser")
    page.unroute("**/write*")
    saved(page)
    assert labels_when(tmp_path / "project", {first: "chelsea"}) == {first: "chelsea"}
    shown(page)
    second = offered(page)
    page.evaluate("""() => {
      for (const length of [1e6, 1e4, 10]) {
        try { for (let i = 0; ; i++) localStorage.setItem(`${length} ${i}`, "x".repeat(length)); } catch {}
      }
    }""")
    window.expect(*GONE, "ERR_INTERNET_DISCONNECTED")
    page.context.set_offline(True)
    page.keyboard.press("1")
    expect(page.get_by_role("status").first).to_contain_text("leave this window open")
    page.context.set_offline(False)
    saved(page)
    both = {first: "chelsea", second: "chelsea"}
    assert labels_when(tmp_path / "project", both) == both


def test_a_click_is_for_the_picture_that_is_seen(server: PageServer, windows: Open, tmp_path: Path) -> None:
    window = windows(server.address)
    page = window.page
    saved(page)
    add_classes(page, "cat")
    page.keyboard.press("F2")
    expect(page.get_by_text("1 of 36")).to_be_visible()
    pictures = held(page, "**/pictures/1?*")
    page.keyboard.press("]")
    page.wait_for_timeout(500)
    page.get_by_role("application").click(position={"x": 200, "y": 150})
    expect(button(page, "Keep the mask")).to_be_enabled()
    page.keyboard.press("Enter")
    expect(page.get_by_text("mask cat, accepted")).to_be_visible()
    saved(page)
    assert masks(tmp_path / "project") == [("chelsea-0.jpg", "cat")]
    let_go(page, "**/pictures/1?*", pictures)
    expect(page.get_by_text("2 of 36")).to_be_visible()
    for _ in range(3):
        page.keyboard.press("]")
    expect(page.get_by_text("5 of 36")).to_be_visible()
    # A picture that cannot be shown is said, and is no end.
    window.expect("422")
    said = '{"error": {"code": "unreadable", "message": "it is gone; restore it", "field": null}}'
    page.route("**/pictures/5?*", lambda route: route.fulfill(status=422, body=said, content_type="application/json"))
    page.keyboard.press("]")
    expect(page.get_by_text("6 of 36")).to_be_visible()
    expect(page.get_by_text("It cannot be shown: it is gone; restore it")).to_be_visible()
    page.keyboard.press("]")
    expect(page.get_by_text("7 of 36")).to_be_visible()
    expect(page.get_by_text("It cannot be shown")).to_have_count(0)
