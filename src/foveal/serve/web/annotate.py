"""`/annotate`: the endpoints of the page of annotation. Every change goes through `/annotate/api/write`."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from foveal.annotate.formats import WRITTEN, write_annotations
from foveal.annotate.queries import Filter
from foveal.annotate.records import Edit, ImageState, Record, Written
from foveal.annotate.types import Annotation, Mask, State
from foveal.errors import ProjectError
from foveal.serve.limits import parse_json
from foveal.serve.problems import Problem
from foveal.serve.web import annotate_words as words
from foveal.serve.web.annotator import Annotator, mask_png
from foveal.serve.web.pages import Page

API = "/annotate/api"
EXPORTS = "exports"  # folder in the project
_SIDES = (160, 320, 1280)
_PRIVATE = {"cache-control": "private, max-age=600"}


def annotate_page(annotator: Annotator) -> Page:
    """Return the page and its endpoints."""
    router = APIRouter(prefix=API)
    _add_reading(router, annotator)
    _add_pictures(router, annotator)
    _add_writing(router, annotator)
    _add_features(router, annotator)
    return Page("annotate", router)


def _add_reading(router: APIRouter, annotator: Annotator) -> None:
    project, aside = annotator.project, annotator.service.aside

    @router.get("/project")
    async def about(client: str = Query(pattern=r"^[A-Za-z0-9-]{1,64}$")) -> JSONResponse:
        """Return the project as a window needs it first."""
        return JSONResponse(await aside(partial(_about, annotator, client)))

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
            width, height = project.size(found.uri)
            records = [words.record_json(one) for one in project.annotations(found.uri)]
            return {**words.image_json(found), "width": width, "height": height, "annotations": records}

        return JSONResponse(await aside(read))


def _about(annotator: Annotator, client: str) -> dict[str, Any]:
    project = annotator.project
    undo, redo = project.can(client=client)
    return {
        "name": project.folder.name,
        "created": project.created,
        "model": annotator.service.loaded.name,
        "num_images": project.num_images,
        "revision": project.revision,
        "classes": [
            {"name": one.name, "colour": one.colour, "num_annotations": one.num_annotations}
            for one in project.classes()
        ],
        "undo": undo,
        "redo": redo,
        "conflicts": [words.conflict_json(one) for one in project.conflicts()],
        "num_undecided": project.count(Filter(annotation_states=("proposed", "unsure"))),
        "formats": list(WRITTEN),
    }


def _add_pictures(router: APIRouter, annotator: Annotator) -> None:
    @router.get("/pictures/{index}")
    async def picture(index: int, side: Literal["160", "320", "1280"] = "320") -> Response:
        """Return an image as JPEG, whatever kind of file it is."""
        if not 0 <= index < annotator.project.num_images:
            raise _no_image(annotator)
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
        png = await annotator.service.aside(lambda: mask_png(pixels, _SIDES[-1]))
        return Response(png, media_type="image/png", headers={"x-mask-share": f"{pixels.mean():.6f}"})


def _add_writing(router: APIRouter, annotator: Annotator) -> None:
    @router.post("/write")
    async def write(request: Request) -> JSONResponse:
        """Make one change; it is durable once this is answered, and done once however often it is sent."""
        asked = parse_json(words.WriteRequest, await request.body())
        action = asked.action
        mask = None
        if isinstance(action, words.PutMask):
            mask = Mask.of(await _mask(annotator, action.image, action.prompts))
        written = await annotator.service.aside(lambda: _write(annotator, asked, mask))
        about = await annotator.service.aside(partial(_about, annotator, asked.client))
        return JSONResponse({**words.written_json(written), "project": about})

    @router.post("/export")
    async def export(request: Request) -> JSONResponse:
        """Write what was accepted into a new folder of the project."""
        asked = parse_json(words.ExportRequest, await request.body())
        return JSONResponse(await annotator.service.searched(lambda: _export(annotator, asked)))


def _write(annotator: Annotator, asked: words.WriteRequest, mask: Mask | None) -> Written:
    project, action = annotator.project, asked.action
    by: dict[str, Any] = {"client": asked.client, "request": asked.request}
    match action:
        case words.Label():
            return project.label(_uri(annotator, action.image), action.class_name, seen=action.seen, **by)
        case words.PutMask():
            assert mask is not None
            uri = _uri(annotator, action.image)
            verb = "correct" if action.id else "add"
            edit = words.edit_of(action, uri=uri, mask=mask)
            return project.write([edit], words=f"{verb} a mask of '{action.class_name}' on {uri}", **by)
        case words.Judge():
            return project.write(_judged(annotator, action), words=_judgement(action), **by)
        case words.Remove():
            return project.write(remove=action.annotations, **by)
        case words.SetState():
            return project.write(states={_uri(annotator, action.image): action.state}, **by)
        case words.TakeBack():
            take_back = project.undo if action.act == "undo" else project.redo
            return take_back(**by) or Written(project.revision, words="")
        case words.Settle():
            return project.settle(action.conflict, action.take, client=asked.client)
        case _:
            return _change_classes(annotator, asked)


def _change_classes(annotator: Annotator, asked: words.WriteRequest) -> Written:
    """Change the classes; what is so already stays so, since a window may send a change again."""
    project, action, client = annotator.project, asked.action, asked.client
    names = {one.name for one in project.classes()}
    if isinstance(action, words.AddClass) and action.name.strip() not in names:
        return project.add_class(action.name, client=client)
    if isinstance(action, words.RenameClass):
        return project.rename_class(action.name, action.new, client=client)
    if isinstance(action, words.RemoveClass) and action.name in names:
        return project.remove_class(action.name, with_annotations=action.with_annotations, client=client)
    return Written(project.revision)


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


def _add_features(router: APIRouter, annotator: Annotator) -> None:
    project, searched = annotator.project, annotator.service.searched

    @router.get("/next")
    async def next_image(skip: list[int] = Query([], max_length=200)) -> JSONResponse:  # noqa: B008
        """Return the image whose label is worth most, why, what the head makes of it, and how well that does."""

        def read() -> dict[str, Any]:
            annotator.learn()
            closed = np.concatenate([annotator.closed(), np.array(skip, np.int64)])
            found = annotator.learner.next_image(closed)
            if found is None:
                return {"image": None, "why": "every image has a label", "learning": annotator.learner.summary()}
            index, why = found
            guess = annotator.learner.guess(index)
            return {
                "image": words.image_json(project.images([index])[0]),
                "why": why,
                "guess": guess and guess._asdict(),
                "learning": annotator.learner.summary(),
            }

        return JSONResponse(await searched(read))

    @router.post("/propose")
    async def propose(request: Request) -> JSONResponse:
        """Propose labels for images without one."""
        asked = parse_json(words.ProposeRequest, await request.body())

        def written() -> dict[str, Any]:
            found = annotator.label_proposals(asked.count)
            if not found:
                raise ProjectError("nothing is proposed yet: label images of two classes first")
            outcome = project.propose(found, client=asked.client, request=asked.request)
            return {**words.written_json(outcome), **_proposed(found, annotator)}

        outcome = await searched(written)
        return JSONResponse(
            {**outcome, "project": await annotator.service.aside(partial(_about, annotator, asked.client))}
        )


def _proposed(found: list[Annotation], annotator: Annotator) -> dict[str, Any]:
    num_unsure = sum(one.state == "unsure" for one in found)
    num_held_out = annotator.learner.summary()["num_held_out"]
    return {
        "num_proposed": len(found) - num_unsure,
        "num_unsure": num_unsure,
        "summary": f"{len(found) - num_unsure} proposed, {num_unsure} unsure; {num_held_out} held-out labels measure.",
    }


def _export(annotator: Annotator, asked: words.ExportRequest) -> dict[str, Any]:
    project = annotator.project
    out = project.folder / EXPORTS / asked.name
    notes = write_annotations(project.to_set(), out, format=asked.format)
    return {"folder": str(out), "notes": notes}


async def _mask(annotator: Annotator, index: int, prompts: list[words.PromptPart]) -> np.ndarray:
    if index >= annotator.project.num_images:
        raise _no_image(annotator)
    return await annotator.mask_of(index, [one.prompt() for one in prompts])


def _uri(annotator: Annotator, index: int) -> str:
    if index >= annotator.project.num_images:
        raise _no_image(annotator)
    return annotator.images.uri(index)


def _no_image(annotator: Annotator) -> Problem:
    return Problem(404, "image_not_found", f"no such image; the project has {annotator.project.num_images}, from 0 on")
