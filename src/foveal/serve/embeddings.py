"""`/v1/embeddings`: one vector an image, asked for as OpenAI's clients ask."""

import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from foveal.serve.inputs import ImageInputs, Part, read_request
from foveal.serve.models import check_model_name
from foveal.serve.openapi import TINY_PNG, body, problems
from foveal.serve.service import Service


class EmbeddingsRequest(Part):
    """Images whose class tokens are wanted.

    Attributes:
        model: name of the model; may be left out.
        input: one image or several.
        encoding_format: "float", or "base64" of little-endian float32.
        normalize: give vectors of length 1, not as the model has them.
        user: taken and not used, as clients may send it.
    """

    model: str | None = None
    input: ImageInputs = Field(union_mode="left_to_right")
    encoding_format: Literal["float", "base64"] = "float"
    normalize: bool = False
    user: str | None = None


BODIES = (EmbeddingsRequest,)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["features"])

    @found.post(
        "/v1/embeddings",
        openapi_extra=body(EmbeddingsRequest, {"input": TINY_PNG}, field="input"),
        responses=problems(),
        response_model=None,
    )
    async def embeddings(request: Request) -> JSONResponse:
        """Return the class token of each image."""
        options, images = await read_request(request, service, EmbeddingsRequest, field="input")
        loaded = check_model_name(service, options.model)
        vectors = [one.cls for one in await service.features(images, field="input")]
        if options.normalize:
            vectors = [vector / max(float(np.linalg.norm(vector)), 1e-12) for vector in vectors]
        data = [
            {"object": "embedding", "index": number, "embedding": _encoded(vector, options.encoding_format)}
            for number, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return JSONResponse({"object": "list", "data": data, "model": loaded.name, "usage": usage})

    return found


def _encoded(vector: np.ndarray, encoding: str) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
