"""The page of annotation where things go wrong: slow answers, other servers, full storage, images that are gone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_server import PageServer
from page_window import GONE, Window
from playwright.sync_api import Page, expect
from test_browser_annotate import add_classes, labels, labels_when, offered, saved

Open = Callable[[str], Window]
CLASSES = ("chelsea", "coffee", "flower", "china")


def server_of(folder: Path, pictures: Path, model: Path, *, port: int | None = None) -> PageServer:
    command = ("-m", "foveal", "annotate", folder / "project", "--images", pictures, "--model", model)
    return PageServer(folder, *command, port=port)


@pytest.fixture
def server(tmp_path: Path, pictures: Path, model: Path) -> Iterator[PageServer]:
    with server_of(tmp_path, pictures, model) as started:
        yield started


def status(page: Page) -> str:
    return page.get_by_role("status").first.inner_text()


def test_a_window_of_another_project_changes_nothing_and_keeps_what_it_has(
    server: PageServer, windows: Open, tmp_path: Path, pictures: Path, model: Path
) -> None:
    old = windows(server.address)
    saved(old.page)
    add_classes(old.page, *CLASSES)
    saved(old.page)
    image = offered(old.page)
    old.expect(*GONE, "409")
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
        old.expect("401")
        new.page.close()
    server.start()
    windows(server.address)  # whose token the browser then has again
    saved(old.page)
    assert labels_when(tmp_path / "project", {image: "chelsea"}) == {image: "chelsea"}
