"""Serves a page with a script inside, which the policy refuses, and one endpoint: the door alone, without features.

Usage: door_page.py MODEL --port PORT
"""

import argparse

from fastapi import APIRouter

from foveal.serve.loaded import Source, open_source
from foveal.serve.server import serve
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web import pages
from foveal.serve.web.door import new_token
from foveal.serve.web.pages import Page, static_files

HTML = b"""<!doctype html><html lang="en"><title>door</title><link rel="stylesheet" href="/static/style.css">
<h1>Inside</h1><p id="words">as it came</p>
<script>document.getElementById("words").textContent = "changed"</script></html>"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    token, visits = new_token(), []

    def visit() -> dict[str, int]:
        visits.append(1)
        return {"visits": len(visits)}

    router = APIRouter()
    router.add_api_route("/door/api/visit", visit, methods=["GET", "POST"])
    files = {**static_files(), "door.html": HTML}
    pages.static_files = lambda: files  # type: ignore[assignment]
    service = Service(open_source(Source(given.model)), ServeSettings(port=given.port, api_keys=(token,)))
    page = Page("door", router)
    serve(service, [page], listening=lambda url: print(f"{url}{page.path}?token={token}", flush=True))


if __name__ == "__main__":
    main()
