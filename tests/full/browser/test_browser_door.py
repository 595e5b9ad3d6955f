"""The door of the pages as browsers see it: tokens, cookies, the policy, and other sites."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from page_server import PageServer
from page_window import Window
from playwright.sync_api import Browser, expect

Open = Callable[[str], Window]
POLICY = "Content Security Policy"
VISIT = 'address => fetch(address, {method: "POST", credentials: "include", mode: "no-cors"}).catch(() => "nothing")'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[PageServer]:
    with PageServer(tmp_path_factory.mktemp("door"), Path(__file__).with_name("door_page.py"), model) as started:
        yield started


@pytest.fixture
def other_site() -> Iterator[str]:
    """A site of somebody else on the same computer: to a browser the same site, and another origin."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>other</title><link rel=icon href='data:,'>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/"
        listening.shutdown()


def visits(window: Window, origin: str) -> int:
    count: int = window.page.evaluate("async (address) => (await (await fetch(address)).json()).visits", origin)
    return count


def test_the_token_leaves_the_address_and_scripts_inside_the_page_do_not_run(server: PageServer, windows: Open) -> None:
    window = windows("about:blank")
    window.expect(POLICY)
    window.page.goto(server.address)
    assert "token" not in window.page.url
    assert window.page.evaluate("document.cookie") == ""
    expect(window.page.get_by_text("as it came")).to_be_visible()
    window.page.reload()
    expect(window.page.get_by_role("heading", name="Inside")).to_be_visible()


def test_what_the_policy_refuses_is_a_complaint(server: PageServer, windows: Open) -> None:
    window = windows("about:blank")
    window.page.goto(server.address)
    expect(window.page.get_by_text("as it came")).to_be_visible()
    assert [one for one in window.complaints if POLICY in one]
    window.complaints.clear()


def test_without_the_token_a_browser_gets_words(server: PageServer, chromium: Browser) -> None:
    page = chromium.new_context().new_page()
    answer = page.goto(server.address.partition("?")[0])
    assert answer is not None
    assert answer.status == 401
    expect(page.get_by_text("open the address that the command printed")).to_be_visible()
    page.context.close()


def test_another_site_gets_nothing_done_and_frames_nothing(server: PageServer, windows: Open, other_site: str) -> None:
    window, other = windows("about:blank"), windows(other_site)
    window.expect(POLICY)
    window.page.goto(server.address)
    api = server.address.partition("/door")[0] + "/door/api/visit"
    before = visits(window, api)
    other.expect("403", "net::ERR_BLOCKED_BY_RESPONSE", POLICY)
    assert other.page.evaluate(VISIT, api) == "nothing"
    other.page.evaluate("(address) => { document.body.append(Object.assign(new Image(), {src: address})) }", api)
    with other.page.expect_response(lambda answer: answer.request.is_navigation_request()) as refused:
        other.page.evaluate(
            """(address) => {
              const form = Object.assign(document.createElement("form"), {action: address, method: "POST"});
              document.body.append(form);
              form.submit();
            }""",
            api,
        )
    assert refused.value.status == 403
    other.page.wait_for_url(api)
    other.page.goto(other_site)
    other.page.evaluate(
        """(address) => new Promise((resolve) => {
          const frame = Object.assign(document.createElement("iframe"), {src: address, onload: resolve});
          document.body.append(frame);
        })""",
        server.address.partition("?")[0],
    )
    assert all("Inside" not in frame.content() for frame in other.page.frames)
    assert visits(window, api) == before + 1
