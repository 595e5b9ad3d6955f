"""The explorer as people use it: heat maps, colours, searches, a dropped file, the map, selections, a killed server."""

import base64
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accessible import faint, unnamed, walked
from page_server import PageServer
from page_window import GONE, Window
from playwright.sync_api import Locator, Page, Route, expect

from foveal.images.imageset import ImageSet

Open = Callable[[str], Window]
Shoot = Callable[[Page, str], None]
DROP = """([base, name]) => {
  const bytes = Uint8Array.from(atob(base), (one) => one.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""
# Of each picture in sight, the share of its pixels that something lies over.
COVERED = """() => {
  const over = [...document.querySelectorAll("[role=option] canvas")].filter((one) => !one.hidden && one.width > 1);
  return over.map((one) => {
    const { data } = one.getContext("2d").getImageData(0, 0, one.width, one.height);
    return data.filter((value, at) => at % 4 === 3 && value > 0).length / (data.length / 4);
  });
}"""
# What the map shows, as soon as it is computed: addresses, its width and height, and where their points are on it.
MAP = """async () => {
  let answer;
  do answer = await fetch("/explore/api/map?method=pca"); while (!answer.headers.has("x-foveal-array"));
  const points = new Float32Array(await answer.arrayBuffer());
  const { images } = await (await fetch(`/explore/api/images?start=0&count=${points.length / 2}`)).json();
  const { clientWidth: width, clientHeight: height } = document.querySelector("#points");
  const edge = Math.min(width, height) - 24;
  const place = (row) => [width / 2 + (points[2 * row] - 0.5) * edge, height / 2 + (points[2 * row + 1] - 0.5) * edge];
  return [images.map((one) => one.uri), width, height, images.map((one) => place(one.row))];
}"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explore")


@pytest.fixture(scope="module")
def server(out: Path, pictures: Path, model: Path) -> Iterator[PageServer]:
    command = ("-m", "foveal", "explore", pictures, "--model", model, "--out", out, "--no-open")
    with PageServer(out, *command) as started:
        yield started


def ready(window: Window) -> Page:
    expect(window.page.get_by_role("status")).to_contain_text("36 images")
    expect(options(window.page)).to_have_count(36)
    return window.page


def options(page: Page) -> Locator:
    return page.get_by_role("listbox", name="Images").get_by_role("option")


def names(page: Page) -> list[str]:
    """The files in the grid in their order."""
    found = options(page).all()
    return [re.search(r"[\w-]+\.jpg", one.get_attribute("aria-label") or "")[0] for one in found]  # type: ignore[index]


def test_a_patch_lights_up_what_is_like_it_everywhere(server: PageServer, windows: Open, picture_of: Shoot) -> None:
    window = windows(server.address)
    window.expect("willReadFrequently")  # we read what the page has painted
    page = ready(window)
    first = page.get_by_role("option", name=re.compile("chelsea-4"))
    first.hover()
    expect(page.locator(".heated").first).to_be_visible()
    picture_of(page, "explore")
    first.click()
    side = page.get_by_role("complementary")
    expect(side).to_contain_text("cosine 1.00")  # of the patch to itself
    expect(page.locator("[role=option].heated")).to_have_count(36)
    covered = page.evaluate(COVERED)
    assert len(covered) == 36
    page.get_by_role("button", name="Where else is this patch?").click()
    expect(page.get_by_text("with a patch like the held one").first).to_be_visible()
    assert names(page)[0] == "chelsea-4.jpg"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Show all images").click()
    expect(options(page)).to_have_count(36)


def test_neighbours_of_an_image_by_keys_alone(server: PageServer, windows: Open, picture_of: Shoot) -> None:
    page = ready(windows(server.address))
    page.get_by_role("listbox", name="Images").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("application", name=re.compile("^Patches"))).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("complementary")).to_contain_text("cosine 1.00")
    like = page.get_by_role("button", name="Images like this")
    like.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("the most alike first").first).to_be_visible()
    expect(options(page)).to_have_count(35)
    found = names(page)
    assert len({one.partition("-")[0] for one in found[:3]}) == 1, found  # crops of the same photograph
    picture_of(page, "explore_neighbours")


def test_pca_colours_follow_the_sliders(server: PageServer, windows: Open, picture_of: Shoot) -> None:
    window = windows(server.address)
    window.expect("willReadFrequently")
    page = ready(window)
    page.get_by_label("Over the images").select_option("pca")
    expect(page.locator("[role=option] canvas:not([hidden])")).to_have_count(36)
    one = "() => [...document.querySelector('[role=option] canvas').getContext('2d').getImageData(0, 0, 4, 4).data]"
    before = page.evaluate(one)
    picture_of(page, "explore_pca")
    page.get_by_label("Components").fill("3")
    expect(page.get_by_text(re.compile(r"^4\W6$"))).to_be_visible()
    expect(page.locator("[role=option] canvas:not([hidden])")).to_have_count(36)
    page.wait_for_timeout(500)
    assert page.evaluate(one) != before


def drop(page: Page, content: bytes, name: str) -> None:
    page.evaluate(DROP, [base64.b64encode(content).decode(), name])


SHOWN = """() => {
  const one = document.getElementById("large");
  return !one.hidden && one.complete && one.naturalWidth > 0;
}"""


def shows_its_picture(page: Page) -> bool:
    """Whether the picture of the image that is open is there."""
    return bool(page.evaluate(SHOWN))


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_dropped_file_finds_what_is_like_it(server: PageServer, windows: Open, pictures: Path) -> None:
    window = windows(server.address)
    page = ready(window)
    drop(page, (pictures / "coffee-4.jpg").read_bytes(), "mine.jpg")
    expect(page.get_by_text("like mine.jpg").first).to_be_visible()
    assert names(page)[0] == "coffee-4.jpg"
    until(lambda: shows_its_picture(page))
    page.get_by_role("application", name=re.compile("^Patches")).click()  # its patches can be searched for
    expect(page.locator(".heated").first).to_be_visible()
    page.get_by_role("button", name="Where else is this patch?").click()
    expect(page.get_by_text("with a patch like the held one").first).to_be_visible()
    assert names(page)[0] == "coffee-4.jpg"
    page.get_by_role("button", name="Let go").click()
    window.expect("the server responded with a status of 4")
    drop(page, b"<svg onload='alert(1)'/>", "bad.jpg")
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"\w+ \w+"))
    assert names(page)[0] == "coffee-4.jpg"


def test_a_file_that_is_too_large_is_said_and_not_sent(server: PageServer, windows: Open) -> None:
    page = ready(windows(server.address))
    page.evaluate(DROP.replace("new File([bytes]", "new File([new ArrayBuffer(40e6)]"), ["", "large.tif"])
    expect(page.get_by_role("alert")).to_contain_text("large.tif has 40 MB")
    expect(page.get_by_role("status")).to_contain_text("36 images")


def test_what_is_gone_is_said_where_it_was(server: PageServer, windows: Open, pictures: Path) -> None:
    window = windows(server.address)
    page = ready(window)
    window.expect("the server responded with a status of 410")
    path = pictures / "flower-3.jpg"
    kept = path.read_bytes()
    path.unlink()
    try:
        page.get_by_role("option", name=re.compile("flower-3")).click()
        expect(page.get_by_role("complementary")).to_contain_text(re.compile("flower-3.jpg cannot be read"))
        path.write_bytes(kept[:-1])
        page.get_by_role("option", name=re.compile("flower-3")).click()
        expect(page.get_by_role("complementary")).to_contain_text("has changed since its features were made")
    finally:
        path.write_bytes(kept)
    page.get_by_role("option", name=re.compile("flower-3")).click()
    until(lambda: shows_its_picture(page))
    expect(page.get_by_role("complementary")).not_to_contain_text("has changed")


def test_late_answers_never_take_the_place_of_newer_ones(server: PageServer, windows: Open) -> None:
    page = ready(windows(server.address))
    page.get_by_role("option", name=re.compile("chelsea-4")).click()
    until(lambda: shows_its_picture(page))
    late: list[Route] = []
    page.route("**/neighbours?*", lambda route: late.append(route))
    page.get_by_role("button", name="Images like this").click()
    until(lambda: bool(page.wait_for_timeout(50) or late))
    page.get_by_role("button", name="Where else is this patch?").click()
    found = page.get_by_text("with a patch like the held one").first
    expect(found).to_be_visible()
    with page.expect_response("**/neighbours?*"):
        late.pop().continue_()
    page.wait_for_timeout(300)
    expect(found).to_be_visible()
    page.get_by_role("button", name="Show all images").click()
    page.route("**/picture/*", lambda route: late.append(route))
    page.get_by_role("option", name=re.compile("coffee-4")).click()
    expect(page.get_by_role("heading", name="coffee-4.jpg")).to_be_visible()
    until(lambda: bool(page.wait_for_timeout(50) or late))
    assert not shows_its_picture(page)  # least of all the one of before
    late.pop().continue_()
    until(lambda: bool(page.wait_for_timeout(50)) or shows_its_picture(page))


def test_images_in_sight_stay_when_the_window_changes(server: PageServer, windows: Open) -> None:
    page = ready(windows(server.address))
    page.get_by_label("Size").fill("320")
    box = page.get_by_role("listbox", name="Images")
    box.evaluate("(box) => { box.scrollTop = 3000; }")
    first = """() => {
        const top = document.getElementById("grid").getBoundingClientRect().top;
        const all = [...document.querySelectorAll("[role=option]")];
        const cells = all.filter((one) => one.getBoundingClientRect().top > top - 9);
        return Math.min(...cells.map((one) => Number(one.getAttribute("aria-posinset"))));
    }"""
    page.wait_for_timeout(300)
    before = page.evaluate(first)
    assert before > 9
    page.set_viewport_size({"width": 800, "height": 800})
    page.wait_for_timeout(300)
    assert abs(page.evaluate(first) - before) <= 2  # in one line with it


def test_a_selection_on_the_map_becomes_an_image_set(
    server: PageServer, windows: Open, out: Path, picture_of: Shoot
) -> None:
    window = windows(server.address)
    page = ready(window)
    page.get_by_role("button", name="Map", exact=True).click()
    points = page.get_by_role("application", name=re.compile("^Map of the set"))
    expect(points).to_be_visible()
    page.wait_for_timeout(500)
    box = points.bounding_box()
    assert box is not None
    left, top, right, bottom = box["x"] + 4, box["y"] + 4, box["x"] + box["width"] - 4, box["y"] + box["height"] - 4
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    expect(page.get_by_role("heading", name="36 images selected")).to_be_visible()
    picture_of(page, "explore_map")
    window.expect("the server responded with a status of 4")
    page.get_by_label("Name").fill("../mine")
    page.get_by_role("button", name="Save as an image set").click()
    expect(page.get_by_role("alert")).to_contain_text("up to 64 letters")
    page.get_by_label("Name").fill("mine")
    page.get_by_role("button", name="Save as an image set").click()
    expect(page.get_by_text("36 images saved")).to_be_visible()
    assert len(ImageSet.open(out / "selections/mine")) == 36


def test_the_map_shows_the_image_of_a_point(server: PageServer, windows: Open) -> None:
    page = ready(windows(server.address))
    page.get_by_role("button", name="Map", exact=True).click()
    points = page.get_by_role("application", name=re.compile("^Map of the set"))
    expect(points).to_be_visible()
    page.wait_for_timeout(500)
    box, (x, y) = points.bounding_box(), page.evaluate(MAP)[3][0]
    assert box is not None
    page.mouse.move(box["x"] + x, box["y"] + y)
    expect(page.get_by_role("figure")).to_contain_text("chelsea-0.jpg")
    page.mouse.move(box["x"] + box["width"] + 20, box["y"])
    expect(page.get_by_role("figure")).to_be_hidden()


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until something has the focus."""
    for _ in range(40):
        if wanted.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {wanted}")


def test_a_corner_of_the_map_is_selected_and_saved_by_keys_alone(server: PageServer, windows: Open, out: Path) -> None:
    page = ready(windows(server.address))
    tab_to(page, page.get_by_role("button", name="Map", exact=True))
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("application", name=re.compile("^Map of the set")))
    uris, width, height, places = page.evaluate(MAP)
    # The cross begins in the middle and stops at the edges: up, to the left, and down along the edge is a triangle.
    inside = [uri for uri, (x, y) in zip(uris, places, strict=True) if x / (width / 2) + y / height < 1]
    assert 0 < len(inside) < 36
    page.wait_for_timeout(300)
    expect(page.get_by_role("status")).to_contain_text("36 images")
    for key in ("ArrowUp", "ArrowLeft", "ArrowDown"):
        for _ in range(25):
            page.keyboard.press(f"Shift+{key}")
        page.keyboard.press("Space")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"{len(inside)} images selected")).to_be_visible()
    tab_to(page, page.get_by_label("Name"))
    page.keyboard.type("corner")
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"{len(inside)} images saved")).to_be_visible()
    kept = ImageSet.open(out / "selections/corner").rows.column("uri").to_pylist()
    assert sorted(Path(uri).name for uri in kept) == sorted(Path(uri).name for uri in inside)


def test_the_page_goes_on_when_a_killed_server_is_back(server: PageServer, windows: Open) -> None:
    window = windows(server.address)
    page = ready(window)
    window.expect(*GONE)
    address = server.address
    server.kill()
    page.get_by_role("option", name=re.compile("chelsea-4")).click()
    expect(page.get_by_role("alert")).to_contain_text("does not answer")
    server.start()
    assert server.address == address
    expect(page.get_by_role("alert")).to_be_hidden(timeout=20_000)
    until(lambda: shows_its_picture(page))  # of what was opened meanwhile
    page.get_by_role("option", name=re.compile("coffee-4")).click()
    expect(page.get_by_role("complementary")).to_contain_text("cosine 1.00")
    page.reload()
    ready(window)


def test_everybody_can_use_it(server: PageServer, windows: Open) -> None:
    page = ready(windows(server.address))
    reached = walked(page)
    for name in ("Grid", "Map", "Search with a picture", "Images"):
        assert any(one.startswith(name) for one in reached), (name, reached)
    page.get_by_role("option", name=re.compile("chelsea-4")).click()
    for view in ("Grid", "Map"):
        page.get_by_role("button", name=view, exact=True).click()
        assert unnamed(page) == [], view
        assert faint(page) == [], view
