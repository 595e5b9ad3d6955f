"""`/explore`: the endpoints of the explorer. Arrays travel as little-endian bytes, described by `x-foveal-array`."""

import asyncio
import json
import re
import shlex
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from foveal.features.search import Neighbours
from foveal.serve.inputs import Part
from foveal.serve.limits import parse_json
from foveal.serve.problems import Problem
from foveal.serve.service import unawaited
from foveal.serve.web.explorer import Explorer, has_umap
from foveal.serve.web.pages import Page

API = "/explore/api"
SELECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_VISIBLE, _MOST_FOUND = 1000, 500
_KEPT = {"cache-control": "private, max-age=3600"}

Count = Annotated[int, Query(ge=1, le=_MOST_FOUND)]


class _Asked(Part):
    """One patch: of an image of the store (row), or of a dropped one (upload)."""

    row: int | None = Field(default=None, ge=0)
    upload: str | None = Field(default=None, max_length=64)
    patch: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_image(self) -> "_Asked":
        if (self.row is None) == (self.upload is None):
            raise ValueError("give row or upload, one of them")
        return self


class HeatRequest(_Asked):
    """A patch, and the images on which its heat map is wanted."""

    rows: list[Annotated[int, Field(ge=0)]] = Field(max_length=_MOST_VISIBLE)


class FindRequest(_Asked):
    """A patch, and how many images with a similar one are wanted."""

    count: int = Field(default=60, ge=1, le=_MOST_FOUND)


class SelectionRequest(Part):
    """Images to be saved as a set of their own."""

    name: str = Field(max_length=200)
    rows: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=1_000_000)


def explore_page(explorer: Explorer) -> Page:
    """Return the page and its endpoints."""

    @asynccontextmanager
    async def measuring(_: object) -> AsyncIterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=explorer.measure, args=(ended,), name="measure")
        thread.start()
        yield
        ended.set()
        await asyncio.to_thread(thread.join)

    router = APIRouter(prefix=API, lifespan=measuring)
    _add_set(router, explorer)
    _add_patches(router, explorer)
    _add_neighbours(router, explorer)
    _add_map(router, explorer)
    return Page("explore", router)


def _add_set(router: APIRouter, explorer: Explorer) -> None:
    aside = explorer.service.aside

    @router.get("/set")
    async def about() -> JSONResponse:
        """Return what there is to explore."""
        return JSONResponse(await aside(partial(_about, explorer)))

    @router.get("/images")
    async def images(start: int = Query(0, ge=0), count: int = Query(100, ge=1, le=500)) -> JSONResponse:
        """Return names, sizes and labels of some images."""
        rows = range(start, min(start + count, len(explorer.store)))
        return JSONResponse({"images": await aside(partial(_described, explorer, list(rows)))})

    @router.get("/thumbnail/{row}")
    async def thumbnail(row: int) -> Response:
        """Return a small JPEG of what the model saw of an image."""
        return Response(await aside(partial(explorer.thumbnail, row)), media_type="image/jpeg", headers=_KEPT)

    @router.get("/picture/{row}")
    async def picture(row: int, side: int = Query(1024, ge=16, le=1024)) -> Response:
        """Return the same larger."""
        return Response(await aside(partial(explorer.picture, row, side)), media_type="image/jpeg", headers=_KEPT)

    @router.post("/selection")
    async def selection(request: Request) -> JSONResponse:
        """Save images as an image set in the output folder."""
        asked = parse_json(SelectionRequest, await request.body())
        if not SELECTION.fullmatch(asked.name):
            raise Problem(
                422,
                "invalid_name",
                "call it by up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
                field="name",
            )
        folder = await aside(partial(explorer.save, asked.name, asked.rows))
        command = f"foveal annotate PROJECT --images {shlex.quote(str(folder))} --model MODEL"
        return JSONResponse({"path": str(folder), "images": len(set(asked.rows)), "command": command})


def _about(explorer: Explorer) -> dict[str, Any]:
    store = explorer.store
    patches = None
    if explorer.heat is not None:
        patches = {"grid": list(explorer.heat.grid), "components": explorer.num_components}
    return {
        "name": explorer.name,
        "model": explorer.service.loaded.name,
        "images": len(store),
        "unreadable": store.bad_rows.num_rows,
        "unfinished": not store.complete,
        "revision": explorer.revision,
        "patches": patches,
        "maps": ["pca", *(["umap"] if has_umap() else [])],
        "classes": explorer.classes,
        "most_bytes": explorer.service.settings.max_body_bytes,
    }


def _described(explorer: Explorer, rows: list[int]) -> list[dict[str, Any]]:
    columns = ["uri", "width", "height", "label"]
    table = explorer.store.rows.select(columns).take(rows).to_pylist() if rows else []
    return [{"row": row, **one} for row, one in zip(rows, table, strict=True)]


def _add_patches(router: APIRouter, explorer: Explorer) -> None:
    service = explorer.service

    @router.post("/heat")
    async def heat(request: Request) -> Response:
        """Return the similarity of a patch to those of visible images: 0 to 255 are the cosines -1 to 1."""
        asked = parse_json(HeatRequest, await request.body())
        for row in asked.rows:
            explorer.check_row(row)

        def compared() -> np.ndarray:
            vector = explorer.query(asked.row, asked.upload, asked.patch)
            return np.rint((explorer.maps().maps(vector, asked.rows) + 1) * 127.5).astype(np.uint8)

        return _array(await service.aside(compared))

    @router.post("/find")
    async def find(request: Request) -> JSONResponse:
        """Return the images of the whole set that have the patches most similar to one, the best first."""
        asked = parse_json(FindRequest, await request.body())

        def found() -> list[dict[str, Any]]:
            best = explorer.maps().scan(explorer.query(asked.row, asked.upload, asked.patch))
            count = min(asked.count, len(best.scores))
            rows = np.argpartition(-best.scores, count - 1)[:count]
            rows = rows[np.argsort(-best.scores[rows], kind="stable")].tolist()
            described = _described(explorer, rows)
            return [
                {**one, "score": float(best.scores[one["row"]]), "patch": int(best.patches[one["row"]])}
                for one in described
            ]

        return JSONResponse({"images": await service.searched(found)})

    @router.get("/pca/{row}")
    async def pca(row: int, first: int = Query(0, ge=0)) -> Response:
        """Return three components of the patches of an image as red, green and blue."""
        return _array(await service.aside(partial(explorer.colours, row, first)))


def _add_neighbours(router: APIRouter, explorer: Explorer) -> None:
    service = explorer.service

    @router.get("/neighbours")
    async def neighbours(row: int = Query(ge=0), count: Count = 60) -> JSONResponse:
        """Return the images most similar to one of the set."""
        found = await service.searched(partial(explorer.neighbours, row, count))
        return JSONResponse({"images": await service.aside(partial(_listed, explorer, found))})

    @router.post("/neighbours")
    async def of_a_file(request: Request, count: Count = 60) -> JSONResponse:
        """Return the images most similar to a picture, which is the body."""
        name, made = await explorer.upload(await request.body())
        found = await service.searched(partial(explorer.similar, made.vector, count))
        grid = None if explorer.heat is None else list(made.patches.shape[:2])
        images = await service.aside(partial(_listed, explorer, found))
        return JSONResponse({"images": images, "upload": name, "grid": grid})

    @router.get("/upload/{name}")
    async def uploaded(name: str) -> Response:
        """Return what the model saw of a picture that was sent, as a JPEG."""
        return Response(explorer.uploaded(name).picture, media_type="image/jpeg", headers=_KEPT)


def _listed(explorer: Explorer, found: Neighbours) -> list[dict[str, Any]]:
    described = _described(explorer, found.indices[0].tolist())
    return [{**one, "score": score} for one, score in zip(described, found.similarities[0].tolist(), strict=True)]


def _add_map(router: APIRouter, explorer: Explorer) -> None:
    making: dict[str, asyncio.Task[np.ndarray]] = {}

    @router.get("/map")
    async def scatter(method: Literal["pca", "umap"] = "pca") -> Response:
        """Return a place on the plane for every image; 202 while UMAP is at work."""
        if method == "pca":
            return _array(await explorer.service.searched(lambda: explorer.pca_map))
        if not has_umap():
            raise Problem(409, "no_umap", "UMAP is not installed: pip install 'foveal[explore]'; or look at the PCA")
        if method not in making:
            making[method] = asyncio.create_task(unawaited(lambda: explorer.umap_map))
        if not making[method].done():
            return JSONResponse({"state": "computing"}, status_code=202)
        if (error := making[method].exception()) is not None:
            del making[method]  # so that it may be asked for again
            raise Problem(500, "umap_failed", f"UMAP ended with {error!r}; look at the PCA instead") from error
        return _array(making[method].result())


def _array(values: np.ndarray) -> Response:
    """Return an array as bytes, its type and shape in a header."""
    about = json.dumps({"dtype": values.dtype.name, "shape": list(values.shape)})
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return Response(little.tobytes(), media_type="application/octet-stream", headers={"x-foveal-array": about})
