"""`/annotate`: the endpoints of the page of annotation. Every change goes through `/annotate/api/write`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from foveal.annotate.formats import write_annotations
from foveal.annotate.queries import Filter
from foveal.annotate.records import Edit, ImageState, Record, Written
from foveal.annotate.types import Mask, State
from foveal.errors import UnwritableProjectError
from foveal.serve.limits import parse_json
from foveal.serve.problems import Problem
from foveal.serve.web import annotate_words as words
from foveal.serve.web.about import IMAGE_SETS, about_project, key_of
from foveal.serve.web.annotator import Annotator, mask_png
from foveal.serve.web.pages import Page
from foveal.serve.web.proposing import Works, add_proposing
from foveal.serve.web.spreading import Spreader

API = "/annotate/api"
EXPORTS = "exports"  # folder in the project
_LARGEST = 1280
_PRIVATE = {"cache-control": "private, max-age=600"}


def annotate_page(annotator: Annotator) -> Page:
    """Return the page and its endpoints."""
    key, spreader = key_of(annotator.project), Spreader(annotator)

    async def of_this_project(project: str = Query(key, max_length=64)) -> None:
        """Refuse a window of the project that was served at this address before."""
        if project != key:
            raise Problem(
                409,
                "other_project",
                f"another project, '{annotator.project.folder.name}', is served at this address now; start the one of "
                "this window again, or reload the window for the other",
            )

    router = APIRouter(prefix=API, dependencies=[Depends(of_this_project)])
    _add_reading(router, annotator, spreader)
    _add_pictures(router, annotator)
    _add_writing(router, annotator)
    add_proposing(router, annotator, spreader)
    return Page("annotate", router)


def _add_reading(router: APIRouter, annotator: Annotator, spreader: Spreader) -> None:
    project, aside = annotator.project, annotator.service.aside

    @router.get("/project")
    async def about(client: str = Query(pattern=r"^[A-Za-z0-9-]{1,64}$")) -> JSONResponse:
        """Return the project as a window needs it first."""
        return JSONResponse(await aside(partial(about_project, annotator, client)))

    @router.get("/changes")
    async def changes(since: int = Query(ge=0)) -> JSONResponse:
        """Return what changed after a revision, so that windows follow each other."""
        found = await aside(lambda: project.changes_since(since))
        return JSONResponse(
            {
                "revision": found.revision,
                "images": list(found.images),
                "classes": found.classes,
                "everything": found.everything,
                "looking": spreader.done,
            }
        )

    @router.get("/images")
    async def images(
        start: int = Query(0, ge=0),
        count: int = Query(60, ge=1, le=200),
        state: ImageState | None = None,
        class_name: str | None = Query(None, max_length=200),
        annotation_state: list[State] = Query([]),  # noqa: B008 (as FastAPI has it)
    ) -> JSONResponse:
        """Return a page of the images that a filter leaves, and how many these are."""
        chosen = Filter(state, class_name, tuple(annotation_state))

        def read() -> dict[str, Any]:
            found = project.page(start, count, chosen=chosen)
            return {"total": project.count(chosen), "images": [words.image_json(one) for one in found]}

        return JSONResponse(await aside(read))

    @router.get("/annotations")
    async def annotations(
        state: State, start: int = Query(0, ge=0), count: int = Query(24, ge=1, le=100)
    ) -> JSONResponse:
        """Return the annotations in a state on a page of images, and how many images have one."""
        chosen = Filter(annotation_states=(state,))

        def read() -> dict[str, Any]:
            found = project.page(start, count, chosen=chosen)
            records = [one for image in found for one in project.annotations(image.uri, states=[state])]
            return {"total": project.count(chosen), "annotations": [words.record_json(one) for one in records]}

        return JSONResponse(await aside(read))

    @router.get("/images/{index}")
    async def image(index: int) -> JSONResponse:
        """Return an image with all that is said of it."""

        def read() -> dict[str, Any]:
            [found] = project.images([index])
            # One that cannot be read has none, unless it was known before: what is said of it is shown all the same.
            width, height = project.sizes([found.uri], missing=True).get(found.uri, (None, None))
            records = [words.record_json(one) for one in project.annotations(found.uri)]
            return {**words.image_json(found), "width": width, "height": height, "annotations": records}

        return JSONResponse(await aside(read))


def _add_pictures(router: APIRouter, annotator: Annotator) -> None:
    @router.get("/pictures/{index}")
    async def picture(index: int, side: Literal["160", "320", "1280"] = "320") -> Response:
        """Return an image as JPEG, whatever kind of file it is."""
        annotator.check(index)
        return Response(await annotator.picture(index, int(side)), media_type="image/jpeg", headers=_PRIVATE)

    @router.get("/masks/{id}")
    async def mask(id: int, side: Literal["160", "320", "1280"] = "1280") -> Response:
        """Return a stored mask as PNG, white on black."""

        def drawn() -> bytes:
            found = annotator.project.annotations(ids=[id])
            if not found or found[0].annotation.mask is None:
                raise Problem(404, "mask_not_found", "this mask is gone; look at the image again")
            return mask_png(found[0].annotation.mask.pixels(), int(side))

        return Response(await annotator.service.aside(drawn), media_type="image/png")

    @router.post("/masks")
    async def preview(request: Request) -> Response:
        """Return what prompts make of an image, as PNG; nothing is written."""
        asked = parse_json(words.MaskRequest, await request.body())
        pixels = await _mask(annotator, asked.image, asked.prompts)
        png = await annotator.service.aside(lambda: mask_png(pixels, _LARGEST))
        return Response(
            png, media_type="image/png", headers={"x-foveal-array": json.dumps({"num_pixels": int(pixels.sum())})}
        )


def _add_writing(router: APIRouter, annotator: Annotator) -> None:
    works = Works()

    @router.post("/write")
    async def write(request: Request) -> JSONResponse:
        """Make one change; it is durable once this is answered, and done once however often it is sent."""
        asked = parse_json(words.WriteRequest, await request.body())
        try:
            written = await annotator.service.aside(lambda: annotator.project.done_already(asked.request))
            if written is None:
                mask = await _mask_of(annotator, asked.action)
                written = await annotator.service.aside(lambda: _write(annotator, asked, mask))
        except UnwritableProjectError as error:  # the window keeps the change and sends it again
            raise Problem(503, "not_written", str(error), retry_after_s=1) from error
        about = await annotator.service.aside(partial(about_project, annotator, asked.client))
        return JSONResponse({**words.written_json(written), "project": about})

    @router.post("/export")
    async def export(request: Request) -> JSONResponse:
        """Write what was accepted into a new folder of the project."""
        asked = parse_json(words.ExportRequest, await request.body())
        outcome = await works.outcome(
            asked.request, lambda: annotator.service.searched(lambda: _export(annotator, asked))
        )
        return JSONResponse({"looking": None}, 202) if outcome is None else JSONResponse(outcome)


async def _mask_of(annotator: Annotator, action: words.Action) -> Mask | None:
    if not isinstance(action, words.PutMask):
        return None
    return Mask.of(await _mask(annotator, action.image, action.prompts))


def _write(annotator: Annotator, asked: words.WriteRequest, mask: Mask | None) -> Written:
    project, action = annotator.project, asked.action
    by: dict[str, Any] = {"client": asked.client, "request": asked.request}
    match action:
        case words.Label():
            return project.label(annotator.uri(action.image), action.class_name, seen=action.seen, **by)
        case words.PutMask():
            assert mask is not None
            uri = annotator.uri(action.image)
            verb = "correct" if action.id else "add"
            edit = words.edit_of(action, uri=uri, mask=mask)
            return project.write([edit], words=f"{verb} a mask of '{action.class_name}' on {uri}", **by)
        case words.Judge():
            return project.write(_judged(annotator, action), words=_judgement(action), **by)
        case words.Remove():
            return project.write(remove=action.annotations, **by)
        case words.SetState():
            return project.write(states={annotator.uri(action.image): action.state}, **by)
        case words.TakeBack():
            take_back = project.undo if action.act == "undo" else project.redo
            return take_back(**by) or Written(project.revision, words="")
        case words.Settle():
            return project.settle(action.conflict, action.take, client=asked.client)
        case words.AddClass():
            there = any(one.name == action.name.strip() for one in project.classes())  # by another window, as wanted
            return Written(project.revision) if there else project.add_class(action.name, **by)
        case words.RenameClass():
            return project.rename_class(action.name, action.new, **by)
        case words.MergeClass():
            return project.merge_class(action.name, action.into, **by)
        case words.RemoveClass():
            return project.remove_class(action.name, with_annotations=action.with_annotations, **by)


def _judged(annotator: Annotator, action: words.Judge) -> list[Edit]:
    """Return annotations as a person decided about them; what is gone by now is refused with both versions."""
    found: dict[int | None, Record] = {
        one.annotation.id: one
        for one in annotator.project.annotations(ids=[number for number, _ in action.annotations])
    }
    edits = []
    for number, seen in action.annotations:
        if number not in found:
            raise Problem(409, "gone", "a proposal is gone: newer ones have taken its place; look at these")
        record = found[number]
        changed = replace(
            record.annotation,
            state=action.state,
            class_name=action.class_name or record.annotation.class_name,
        )
        edits.append(Edit(changed, record.prompts, seen))
    return edits


def _judgement(action: words.Judge) -> str:
    count = len(action.annotations)
    verb = "accept" if action.state == "accepted" else "reject"
    return f"{verb} {count} proposal{'s' if count > 1 else ''}"


def _export(annotator: Annotator, asked: words.ExportRequest) -> dict[str, Any]:
    project = annotator.project
    out = project.folder / EXPORTS / asked.name
    if asked.format in IMAGE_SETS:
        out.parent.mkdir(exist_ok=True)
        notes: Sequence[str] = project.save_image_set(out, of=IMAGE_SETS[asked.format]).notes
    else:
        notes = write_annotations(project.to_set(), out, format=asked.format)
    return {"folder": str(out), "notes": list(notes)}


async def _mask(annotator: Annotator, index: int, prompts: list[words.PromptPart]) -> np.ndarray:
    annotator.check(index)
    return await annotator.mask_of(index, [one.prompt() for one in prompts])
