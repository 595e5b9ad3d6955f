"""Which model and heads are served."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from foveal.errors import nearest
from foveal.serve.loaded import Loaded
from foveal.serve.problems import Problem
from foveal.serve.service import Service

BODIES: tuple[type[BaseModel], ...] = ()


def check_model_name(service: Service, name: str | None) -> Loaded:
    """Return what is served; Problem 404 where a request names another model."""
    loaded = service.loaded
    if name is not None and name != loaded.name:
        raise Problem(
            404, "model_not_found", f"the model here is {loaded.name}{nearest(name[:64], [loaded.name])}", field="model"
        )
    return loaded


def described(loaded: Loaded) -> dict[str, Any]:
    """Return what is said of the model and its heads."""
    card = loaded.model.card
    heads = [
        {"name": name, "task": one.head.card.task, "classes": one.head.card.classes}
        for name, one in loaded.heads.items()
    ]
    return {
        "id": loaded.name,
        "object": "model",
        "owned_by": "foveal",
        "created": 0,
        "identity": loaded.model.identity,
        "licence": card.licence.name,
        "width": card.backbone.width,
        "num_registers": card.backbone.num_registers,
        "patch_size": card.backbone.patch_size,
        "channels": card.backbone.channels,
        "crop_size": card.crop_size,
        "engine": loaded.model.engine.description,
        "heads": heads,
    }


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["models"])

    @found.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List what is served."""
        return {"object": "list", "data": [described(service.loaded)]}

    return found
