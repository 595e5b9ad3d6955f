"""Names that a browser sends never lead out of where they belong, and nothing but pictures is shown as a picture."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from foveal.annotate.project import Project
from foveal.features.extract import Model
from foveal.features.extraction import open_extraction
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet
from foveal.serve.app import create_app
from foveal.serve.guard import App, Message
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web.annotate import annotate_page
from foveal.serve.web.annotator import Annotator
from foveal.serve.web.explore import explore_page
from foveal.serve.web.explorer import Explorer

pytestmark = pytest.mark.anyio
API = "/annotate/api"
SECRET = b"nobody may read this"
HOSTILE = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
# Each would leave a folder, name another file, or end a name early, if it were put into a path as it is.
NAMES = (
    "../secret.txt",
    "..",
    "../../../../../../etc/passwd",
    "/etc/passwd",
    "a/../../secret.txt",
    "..\\secret.txt",
    "C:\\secret.txt",
    "....//secret.txt",
    "secret.txt\0.css",
    ".hidden",
    "a/b",
    "~/secret.txt",
    "file:///etc/passwd",
    "//host/share",
)
ADDRESSES = (
    "/static/../door.py",
    "/static/%2e%2e/door.py",
    "/static/..%2fdoor.py",
    "/static/%2e%2e%2fdoor.py",
    "/static/%252e%252e%252fdoor.py",
    "/static/..%5cdoor.py",
    "/static/%2fetc%2fpasswd",
    "/static//etc/passwd",
    "/static/....//door.py",
    "/static/door.py%00.css",
    "/static/%c0%ae%c0%ae/door.py",
    "/static/door.py",
    "/static/.",
    "/static/api.js/../../door.py",
    *(f"{API}/{kind}/{name}" for kind in ("pictures", "images", "masks") for name in ("..%2f0", "0%2f..", "%00", "-1")),
)


@dataclass
class Answer:
    """What an application said."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: App, address: str, *, body: Any = None, content: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """Send an address byte for byte, which clients of HTTP tidy up before they send it."""
    content = content if body is None else json.dumps(body).encode()
    path, _, query = address.partition("?")
    given = {"host": "127.0.0.1:8000", "content-type": "application/json", "content-length": str(len(content))}
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST" if content else "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in {**given, **(headers or {})}.items()],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8000),
    }
    told: list[Message] = []

    parts = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        if not parts:
            await asyncio.Event().wait()  # the client stays
        return parts.pop()

    async def send(message: Message) -> None:
        told.append(message)

    await app(scope, receive, send)
    found = {name.decode().lower(): value.decode() for name, value in told[0]["headers"]}
    return Answer(told[0]["status"], found, b"".join(one.get("body", b"") for one in told[1:]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """Pictures, two of which are none, a project of them, and a file that belongs to nobody's page."""
    folder = tmp_path_factory.mktemp("safety")
    (folder / "secret.txt").write_bytes(SECRET)
    (folder / "pictures").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{number}.png")
    (folder / "pictures/3.png").write_bytes(HOSTILE)
    (folder / "pictures/4.jpg").write_bytes(b"<!doctype html><script>alert(1)</script>")
    (folder / "pictures/5.png").symlink_to(folder / "secret.txt")
    images = ImageSet.open(folder / "pictures")
    assert len(images) == 6
    open_extraction(folder / "store", model, images, StoreSettings()).run(max_bad_share=1.0)
    with Project.create(folder / "project", images, model=model) as project:
        project.add_class("cat")
        project.label(images.uri(0), "cat")
    return folder


@asynccontextmanager
async def annotating(place: Path, model: Model) -> AsyncIterator[App]:
    with Project.open(place / "project", model=model) as project:
        service = Service(Loaded("tiny", model), ServeSettings())
        app = create_app(service, [annotate_page(Annotator(project, service, FeatureStore.open(place / "store")))])
        async with app.router.lifespan_context(app):
            yield app


def outside(place: Path) -> set[str]:
    """What lies in the folders around, and not in the project."""
    return {
        os.path.relpath(Path(folder) / name, place)
        for folder, folders, files in os.walk(place.parent)
        for name in (*folders, *files)
        if not (Path(folder) / name).is_relative_to(place / "project")
    }


async def test_addresses_lead_to_no_other_file(place: Path, model: Model) -> None:
    async with annotating(place, model) as app:
        assert (await ask(app, "/static/api.js")).status == 200
        assert (await ask(app, f"{API}/pictures/0")).status == 200
        for address in ADDRESSES:
            answer = await ask(app, address)
            assert answer.status in (404, 422), (address, answer)
            assert set(json.loads(answer.body)) == {"error"}, address
            assert b"secrets" not in answer.body, address  # a word of door.py
            assert b"root:" not in answer.body, address  # a word of /etc/passwd


@pytest.mark.parametrize("name", NAMES)
async def test_names_of_exports_lead_nowhere_else(place: Path, model: Model, name: str) -> None:
    before = outside(place)
    async with annotating(place, model) as app:
        answer = await ask(app, f"{API}/export", body={"name": name, "format": "coco"})
        assert answer.status == 422
        assert "name" in answer.body.decode()
    assert outside(place) == before
    assert not (place / "project/exports").exists()


async def test_an_export_follows_no_link(place: Path, model: Model) -> None:
    before = outside(place)
    exports = place / "project/exports"
    exports.mkdir()
    for name, target in (("dangling", "nothing"), ("elsewhere", "pictures")):
        (exports / name).symlink_to(place / target)
    async with annotating(place, model) as app:
        for name in ("dangling", "elsewhere"):
            answer = await ask(app, f"{API}/export", body={"name": name, "format": "coco"})
            assert (answer.status, (exports / name).is_symlink()) == (422, True)
    assert outside(place) == before
    (exports / "dangling").unlink()
    (exports / "elsewhere").unlink()
    exports.rmdir()


@pytest.mark.parametrize("index", [3, 4, 5])
async def test_what_is_no_picture_is_never_shown_as_it_is(place: Path, model: Model, index: int) -> None:
    async with annotating(place, model) as app:
        answer = await ask(app, f"{API}/pictures/{index}", headers={"accept": "image/svg+xml, text/html"})
        assert answer.status == 422
        assert answer.headers["content-type"].startswith("application/json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not any(part in answer.body for part in (b"alert", SECRET))


async def test_all_kinds_of_pictures_come_as_jpeg(place: Path, model: Model) -> None:
    async with annotating(place, model) as app:
        answer = await ask(app, f"{API}/pictures/0", headers={"accept": "text/html"})
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.body.startswith(b"\xff\xd8\xff")


async def test_names_of_classes_are_words_and_no_paths(place: Path, model: Model) -> None:
    before = outside(place)
    async with annotating(place, model) as app:
        for number, name in enumerate(NAMES):
            action = {"act": "add_class", "name": name}
            await ask(app, f"{API}/write", body={"client": "one", "request": f"request-{number}", "action": action})
        for number, format in enumerate(("coco", "yolo", "voc", "cvat", "label_studio", "fiftyone")):
            await ask(app, f"{API}/export", body={"name": f"out-{number}", "format": format})
    assert outside(place) == before


@asynccontextmanager
async def exploring(place: Path, model: Model) -> AsyncIterator[App]:
    service = Service(Loaded("tiny", model), ServeSettings())
    explorer = Explorer(FeatureStore.open(place / "store"), service, place / "project/selections")
    app = create_app(service, [explore_page(explorer)])
    async with app.router.lifespan_context(app):
        yield app


async def test_names_of_selections_lead_nowhere_else(place: Path, model: Model) -> None:
    before = outside(place)
    async with exploring(place, model) as app:
        for name in (*NAMES, "", " "):
            answer = await ask(app, "/explore/api/selection", body={"name": name, "rows": [0]})
            assert answer.status in (400, 422), (name, answer)
            assert set(json.loads(answer.body)) == {"error"}
        for address in ("..%2f0", "0%2f..", "%00", "-1", "99"):
            for kind in ("thumbnail", "picture", "pca"):
                assert (await ask(app, f"/explore/api/{kind}/{address}")).status in (400, 404, 422), (kind, address)
    assert outside(place) == before
    assert not (place / "project/selections").exists()


@pytest.mark.parametrize("kind", ["image/svg+xml", "text/html", "image/png"])
async def test_uploads_that_are_no_pictures_are_refused(place: Path, model: Model, kind: str) -> None:
    async with exploring(place, model) as app:
        answer = await ask(app, "/explore/api/neighbours?count=2", content=HOSTILE, headers={"content-type": kind})
        assert answer.status in (400, 415, 422)
        assert answer.headers["content-type"].startswith("application/json")
        assert b"alert" not in answer.body
