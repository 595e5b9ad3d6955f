"""What the page of annotation asks the features for: the next image, proposed labels, and masks of other images."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from foveal.errors import ProjectError
from foveal.serve.limits import parse_json
from foveal.serve.web import annotate_words as words
from foveal.serve.web.about import about_project
from foveal.serve.web.annotator import Annotator
from foveal.serve.web.spreading import Spread, Spreader

_PATIENCE_S = 1.0  # how long a request waits for work; it is sent again as long as this is not done
_MOST_KEPT = 16  # pieces of work whose outcome is kept


class Works:
    """Work that goes on when the request that began it has ended: minutes of it outlast any, and closed windows."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, asyncio.Task[dict[str, Any]]] = OrderedDict()

    async def outcome(
        self, request: str, work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    ) -> dict[str, Any] | None:
        """Begin the work of a request, or go on waiting for it; None while it is not done."""
        if request not in self._tasks:
            self._tasks[request] = asyncio.create_task(work())
            self._tasks[request].add_done_callback(lambda task: task.cancelled() or task.exception())
            while len(self._tasks) > _MOST_KEPT and next(iter(self._tasks.values())).done():
                self._tasks.popitem(last=False)
        task = self._tasks[request]
        done, _ = await asyncio.wait({task}, timeout=_PATIENCE_S)
        return task.result() if done else None


def add_proposing(router: APIRouter, annotator: Annotator, spreader: Spreader) -> None:
    """Add the endpoints."""
    service = annotator.service

    @router.get("/next")
    async def next_image(skip: list[int] = Query([], max_length=200)) -> JSONResponse:  # noqa: B008 (as FastAPI has it)
        """Return the image whose label is worth most, why, what the head makes of it, and how well that does."""
        return JSONResponse(await service.searched(lambda: _next(annotator, skip)))

    works = Works()

    @router.post("/propose")
    async def propose(request: Request) -> JSONResponse:
        """Propose labels, or masks, for images that have none; they take the place of what was proposed before.

        202 while it is not done: the same request, sent again, waits on.
        """
        asked = parse_json(words.ProposeRequest, await request.body())
        outcome = await works.outcome(asked.request, partial(_propose, annotator, spreader, asked))
        if outcome is None:
            return JSONResponse({"looking": spreader.done}, 202)
        return JSONResponse(
            {**outcome, "project": await service.aside(partial(about_project, annotator, asked.client))}
        )


async def _propose(annotator: Annotator, spreader: Spreader, asked: words.ProposeRequest) -> dict[str, Any]:
    match asked.wanted:
        case words.ProposeLabels():
            found = await annotator.service.searched(partial(_labels, annotator, asked.wanted.count))
        case words.ProposeSimilar():
            found = await spreader.to_similar(asked.wanted.class_name, asked.wanted.count)
        case words.ProposeVideo():
            annotator.check(asked.wanted.image)
            found = await spreader.along_video(asked.wanted.image, asked.wanted.class_name)
    by = {"client": asked.client, "request": asked.request}
    outcome = await annotator.service.aside(lambda: annotator.project.propose(found.annotations, **by))
    num_unsure = sum(one.state == "unsure" for one in found.annotations)
    left = f" {outcome.left} of these were decided already, and stay." if outcome.left else ""
    return {
        **words.written_json(outcome),
        "num_proposed": len(found.annotations) - num_unsure,
        "num_unsure": num_unsure,
        "summary": f"{len(found.annotations) - num_unsure} proposed, {num_unsure} unsure.{left} {found.words}",
    }


def _next(annotator: Annotator, skip: list[int]) -> dict[str, Any]:
    annotator.learn()
    learner, project = annotator.learner, annotator.project
    found = learner.next_image(np.concatenate([project.closed_rows(), np.array(skip, np.int64)]))
    if found is None:
        return {"image": None, "guess": None, "why": "Every image has a label.", "learning": learner.summary()}
    index, why = found
    guess = learner.guess(index)
    return {
        "image": words.image_json(project.images([index])[0]),
        "why": why,
        "guess": guess and guess._asdict(),
        "learning": learner.summary(),
    }


def _labels(annotator: Annotator, count: int) -> Spread:
    found = annotator.label_proposals(count)
    if not found:
        raise ProjectError("nothing is proposed: label images of two classes first, and leave some without a label")
    return Spread(found, f"{annotator.learner.summary()['calibration'].capitalize()}.")
