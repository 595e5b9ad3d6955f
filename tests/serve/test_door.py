"""The door of the pages: token, cookie, host and origin, and files with their types."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from serving import tiny_model

from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web import pages
from foveal.serve.web.door import kept_token
from foveal.serve.web.pages import Page, static_files

pytestmark = pytest.mark.anyio
TOKEN = "a-token-of-twenty-chars"


@pytest.fixture(autouse=True)
def explore_html(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page beside the files that all pages share."""
    files = {**static_files(), "explore.html": b"<!doctype html><title>page</title>"}
    monkeypatch.setattr(pages, "static_files", lambda: files)


def page() -> Page:
    router = APIRouter()
    router.add_api_route("/explore/api/thing", lambda: {"thing": 7}, methods=["GET", "POST"])
    return Page("explore", router)


@asynccontextmanager
async def visited(*keys: str, host: str = "127.0.0.1:8000") -> AsyncIterator[httpx.AsyncClient]:
    service = Service(Loaded("tiny", tiny_model()), ServeSettings(api_keys=keys))
    app = create_app(service, [page()])
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client,
    ):
        yield client


async def test_token_becomes_a_cookie_and_leaves_the_address() -> None:
    async with visited(TOKEN) as client:
        first = await client.get(f"/explore?token={TOKEN}&image=3")
        assert (first.status_code, first.headers["location"]) == (303, "/explore?image=3")
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert cookie.startswith("foveal-8000=")
        assert (await client.get("/explore")).status_code == 200
        assert (await client.get("/explore/api/thing")).json() == {"thing": 7}
        assert (await client.post("/v1/embeddings", json={"input": []})).status_code == 422


@pytest.mark.parametrize("address", ["/explore", "/", "/static/api.js", "/explore/api/thing", "/v1/models", "/metrics"])
async def test_without_the_token_nothing_is_given(address: str) -> None:
    async with visited(TOKEN) as client:
        for cookies in ({}, {"foveal-8000": "wrong" * 5}, {"foveal-9000": TOKEN}):
            answer = await client.get(address, headers={"cookie": "; ".join(f"{k}={v}" for k, v in cookies.items())})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "no_token")
        wrong = await client.get("/explore?token=wrong")
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        assert (await client.get("/health/live")).status_code == 200


async def test_a_key_in_a_header_is_as_good_as_a_cookie() -> None:
    async with visited(TOKEN) as client:
        right = await client.get("/explore/api/thing", headers={"authorization": f"Bearer {TOKEN}"})
        wrong = await client.get("/explore/api/thing", headers={"authorization": "Bearer no"})
        assert (right.status_code, wrong.status_code) == (200, 401)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost:x", "localhost:99999", ""]
)
async def test_names_that_could_be_rebound_are_refused(host: str) -> None:
    async with visited() as client:
        answer = await client.get("/explore", headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "192.168.1.5:8000"])
async def test_addresses_cannot_be_rebound(host: str) -> None:
    async with visited() as client:
        assert (await client.get("/explore", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
async def test_other_sites_cannot_ask(headers: dict[str, str]) -> None:
    async with visited() as client:
        answer = await client.post("/explore/api/thing", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")
        same = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
        assert (await client.post("/explore/api/thing", headers=same)).status_code == 200


async def test_health_is_told_without_the_token() -> None:
    async with visited(TOKEN) as client:
        for address in ("/health/live", "/v2/health/live"):
            assert (await client.get(address)).status_code == 200


async def test_files_have_their_types_and_every_answer_its_policy() -> None:
    async with visited() as client:
        for name, kind in (("api.js", "text/javascript"), ("style.css", "text/css"), ("explore.html", "text/html")):
            answer = await client.get(f"/static/{name}")
            assert answer.headers["content-type"].startswith(kind)
        for address in ("/explore", "/static/api.js", "/static/none.js", "/explore/api/thing", "/nowhere"):
            headers = (await client.get(address)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    "name", ["../door.py", "..%2fdoor.py", "%2e%2e/door.py", "/etc/passwd", "__init__.py", "api.js%00.html", "."]
)
async def test_nothing_but_static_files_is_given_out(name: str) -> None:
    async with visited() as client:
        assert (await client.get(f"/static/{name}")).status_code == 404


def test_pages_weigh_less_than_400_kb_and_hold_no_inline_script() -> None:
    files = static_files()
    assert 0 < sum(map(len, files.values())) < 400_000
    for name, content in files.items():
        if name.endswith(".html"):
            text = content.decode()
            assert text.count("<script") == text.count('<script type="module" src="/static/')
            assert "style=" not in text
            assert "http" not in text


def test_kept_token_is_the_same_again_and_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "token"
    token = kept_token(path)
    assert len(token) >= 32
    assert kept_token(path) == token
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert kept_token(path) != token


async def test_browsers_that_ask_for_an_icon_get_no_error() -> None:
    async with visited(TOKEN) as client:
        client.headers["cookie"] = f"foveal-8000={TOKEN}"
        assert (await client.get("/favicon.ico")).status_code == 204
