"""`/v1/heads/NAME`: what a head reads in pictures: labels, masks or depth."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from foveal.serve.features import NPY
from foveal.serve.inputs import ImageInputs, Part, read_request
from foveal.serve.openapi import TINY_PNG, body, problems
from foveal.serve.problems import Problem
from foveal.serve.service import Service, find_head
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import HeadCard
from foveal.tasks.predict import Predictor
from foveal.tasks.written import written_answer

PNG = "image/png"


class HeadRequest(Part):
    """Pictures that a head is to read.

    Attributes:
        images: one image or several.
        size: of masks and depth: the short side at which the model sees pictures, pixels; left out: the head's.
        top: of classes: so many labels, the most probable first.
    """

    images: ImageInputs = Field(union_mode="left_to_right")
    size: int | None = Field(None, ge=1, le=16384)
    top: int = Field(default=5, ge=1, le=100_000)


BODIES = (HeadRequest,)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["heads"])
    binary = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (NPY, PNG)}

    @found.post(
        "/v1/heads/{name}",
        openapi_extra=body(HeadRequest, {"images": [TINY_PNG]}, field="images"),
        responses={**problems(), 200: {"description": "Answers.", "content": {"application/json": {}, **binary}}},
        response_class=Response,
    )
    async def head(request: Request, name: str) -> Response:
        """Return labels, masks or depth; as npy, or one mask or depth as PNG, where `Accept` asks for it."""
        loaded = service.loaded
        predictor = find_head(loaded, name)
        options, images = await read_request(request, service, HeadRequest, field="images")
        accept = request.headers.get("accept", "")
        kind = NPY if NPY in accept else PNG if PNG in accept else "application/json"
        if kind == PNG and (isinstance(predictor, ClassPredictor) or len(images) != 1):
            raise Problem(422, "invalid_value", "PNG holds the mask or depth of one image; leave it out of Accept")
        answers = await service.head(loaded, name, images, size=options.size)
        if kind == "application/json":
            data = await service.aside(lambda: _described(predictor, answers, options.top))
            card = predictor.head.card
            return JSONResponse({"model": loaded.name, "head": name, "task": card.task, "data": data})
        content = await service.aside(lambda: _file(predictor.head.card, answers, kind))
        return Response(content, media_type=kind)

    return found


def _described(predictor: ClassPredictor | Predictor, answers: Sequence[np.ndarray], top: int) -> list[dict[str, Any]]:
    if isinstance(predictor, ClassPredictor):
        return [{"index": n, "labels": _labels(predictor, answer, top)} for n, answer in enumerate(answers)]
    card = predictor.head.card
    return [{"index": n, **_pictured(card, answer)} for n, answer in enumerate(answers)]


def _labels(predictor: ClassPredictor, probabilities: np.ndarray, top: int) -> list[dict[str, Any]]:
    names = predictor.classes
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"id": k, "label": names[k], "probability": float(probabilities[k])} for k in order]


def _pictured(card: HeadCard, answer: np.ndarray) -> dict[str, Any]:
    """Return a mask or depth (H, W) as a picture in base64, and what its numbers mean."""
    found: dict[str, Any] = {
        "height": answer.shape[0],
        "width": answer.shape[1],
        "png": base64.b64encode(written_answer(answer, card)[".png"]).decode(),
    }
    if card.task == "depth":
        low, high = float(answer.min()), float(answer.max())
        unit = 0.001 if card.settings.get("max_depth") is not None else None  # None: spread from least to most
        return {**found, "unit_m": unit, "least": low, "most": high}
    ids, counts = np.unique(answer, return_counts=True)
    names = dict(enumerate(card.classes))
    classes = [
        {"id": k, "label": names.get(k, f"class {k}"), "pixels": count}
        for k, count in zip(ids.tolist(), counts.tolist(), strict=True)
    ]
    return {**found, "classes": classes}


def _file(card: HeadCard, answers: Sequence[np.ndarray], kind: str) -> bytes:
    if kind == PNG:
        return written_answer(answers[0], card)[".png"]
    if len({answer.shape for answer in answers}) > 1:
        raise Problem(422, "mixed_sizes", "images of different sizes make no one array; ask for each alone")
    file = io.BytesIO()
    np.save(file, np.stack(answers), allow_pickle=False)
    return file.getvalue()
