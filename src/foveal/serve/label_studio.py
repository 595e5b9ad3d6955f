"""`/label-studio/`: a project of annotations as Label Studio's machine learning backend.

Source: the public protocol, labelstud.io/guide/ml_create.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from foveal.annotate.adapters.label_studio import MOST_TASKS, LabelStudioBackend
from foveal.serve.limits import parse_json
from foveal.serve.service import Service, unawaited
from foveal.serve.web.pages import Page

NAME = "label-studio"
MODEL_CLASS = "foveal"


class _Request(BaseModel):
    """Label Studio sends more than is needed, and more with each version."""

    model_config = ConfigDict(extra="ignore", strict=True)


class SetupRequest(_Request):
    """The labelling interface of a project there."""

    label_schema: str = Field(alias="schema", max_length=1_000_000)


class Parameters(_Request):
    """With a context, a person at work asks for a mask."""

    context: dict[str, Any] | None = None


class PredictRequest(_Request):
    """Tasks that are to be answered."""

    params: Parameters = Parameters()
    tasks: list[dict[str, Any]] = Field(max_length=MOST_TASKS)
    label_config: str = Field(max_length=1_000_000)


class EventRequest(_Request):
    """What happened in a project there."""

    model_config = ConfigDict(extra="allow", strict=True)
    action: str = Field(max_length=100)

    @property
    def content(self) -> Mapping[str, Any]:
        """All but the action."""
        return self.model_extra or {}


def label_studio_page(backend: LabelStudioBackend, service: Service) -> Page:
    """Return the endpoints. Questions are answered one at a time, since each uses what the processor has."""
    router = APIRouter(prefix=f"/{NAME}")

    @router.get("/health")
    async def health() -> JSONResponse:
        """Say that answers are given."""
        return JSONResponse({"status": "UP", "model_class": MODEL_CLASS})

    @router.post("/setup")
    async def setup(request: Request) -> JSONResponse:
        """Look at the labelling interface."""
        asked = parse_json(SetupRequest, await request.body())
        version = await service.aside(lambda: backend.setup(asked.label_schema))  # within 3 s, whatever is asked for
        return JSONResponse({"model_version": version})

    @router.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Answer tasks."""
        asked = parse_json(PredictRequest, await request.body())

        def answers() -> list[dict[str, Any]]:
            if asked.params.context and len(asked.tasks) == 1:
                return [backend.click(asked.tasks[0], asked.label_config, asked.params.context)]
            return backend.predict(asked.tasks, asked.label_config)

        results = await service.searched(answers)
        return JSONResponse({"results": results, "model_version": backend.version})

    @router.post("/webhook")
    async def webhook(request: Request) -> JSONResponse:
        """Learn from what people say."""
        asked = parse_json(EventRequest, await request.body())
        # Label Studio waits for a second and does not come again: neither predictions nor its going away stop this.
        return JSONResponse(await unawaited(lambda: backend.event(asked.action, asked.content)), 201)

    @router.api_route("/versions", methods=["GET", "POST"])
    async def versions() -> JSONResponse:
        """Name the only version: what is known now."""
        return JSONResponse({"versions": [backend.version]})

    return Page(NAME, router)
