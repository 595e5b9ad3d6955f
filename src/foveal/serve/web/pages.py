"""Pages: what an application needs to know of one, and the files that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from foveal.serve.problems import Problem

STATIC = "/static/"
# Files of any other kind are not given out: a browser could run them.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(frozen=True)
class Page:
    """A page and its endpoints.

    Attributes:
        name: the page is at /NAME, its file is static/NAME.html.
        router: its endpoints, by custom below /NAME/api/.
    """

    name: str
    router: APIRouter = field(repr=False, compare=False)

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/{self.name}"


@cache
def static_files() -> dict[str, bytes]:
    """Return the files that pages are made of, by name; what is not among them is not given out."""
    folder = resources.files("foveal.serve.web") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if "." + file.name.rpartition(".")[2] in TYPES}


def pages_router(pages: Sequence[Page]) -> APIRouter:
    """Return the addresses of pages, of their files, and of the first page at /."""
    found = APIRouter()

    def shown(name: str) -> Response:
        content = static_files().get(name)
        if content is None:
            raise Problem(404, "not_found", "no such file of a page")
        return Response(content, headers={"content-type": TYPES["." + name.rpartition(".")[2]]})

    for page in pages:
        found.add_api_route(page.path, lambda name=page.name: shown(f"{name}.html"), methods=["GET"])
        found.include_router(page.router)
    found.add_api_route(STATIC + "{name}", shown, methods=["GET"])
    # Browsers ask for it, whatever a page says.
    found.add_api_route("/favicon.ico", lambda: Response(status_code=204), methods=["GET"])
    found.add_api_route("/", lambda: RedirectResponse(pages[0].path, 303), methods=["GET"])
    return found
