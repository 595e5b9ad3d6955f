"""`/v1/admin/swap`: another model or other heads, without a pause."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from foveal.serve.inputs import Part
from foveal.serve.limits import parse_json
from foveal.serve.models import described
from foveal.serve.openapi import body, problems
from foveal.serve.problems import Problem
from foveal.serve.service import Service


class SwapRequest(Part):
    """What is to be served; what is left out stays, and is read again.

    Attributes:
        model: a model folder on the server, or whatever else `foveal serve` takes.
        heads: head folders on the server, all of them, each as FOLDER or NAME=FOLDER.
        accept_licence: name of the licence, where its terms have to be accepted.
    """

    model: str | None = Field(None, min_length=1, max_length=4096)
    heads: list[str] | None = Field(None, max_length=64)
    accept_licence: str | None = None


BODIES = (SwapRequest,)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["admin"])

    @found.post("/v1/admin/swap", openapi_extra=body(SwapRequest, {}), responses={**problems(), 403: problems()["401"]})
    async def swap(request: Request) -> dict[str, Any]:
        """Open another model, verify it, and serve it from the next request on; the old one goes on until then."""
        wanted = parse_json(SwapRequest, await request.body())
        source = service.loaded.source
        if source is None:
            raise Problem(422, "swap_refused", "this model was not opened from a folder")
        changed = source.changed(model=wanted.model, heads=wanted.heads, accept_licence=wanted.accept_licence)
        return described(await service.swap(changed))

    return found
