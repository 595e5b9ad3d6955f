"""`/v1/features`: tokens of images, as JSON or as arrays of NumPy."""

import io
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from foveal.features.pca import patch_colours
from foveal.images.preprocess import Mode
from foveal.serve.inputs import ImageInputs, Part, read_request
from foveal.serve.models import check_model_name
from foveal.serve.openapi import TINY_PNG, body, problems
from foveal.serve.problems import Problem
from foveal.serve.service import Service
from foveal.serve.work import Encoded

NPY, NPZ = "application/x-npy", "application/x-npz"
Name = Literal["cls", "registers", "patches", "mean", "pca"]


class FeaturesRequest(Part):
    """Images whose tokens are wanted.

    Attributes:
        model: name of the model; may be left out.
        images: one image or several.
        tokens: of "cls", "registers", "patches", "mean" (of the patches) and "pca" (patches as colours, jointly over
            the images of the request).
        size: short side in pixels, or that of the crop; left out: the model's.
        fit: how images become whole patches.
    """

    model: str | None = None
    images: ImageInputs = Field(union_mode="left_to_right")
    tokens: Annotated[list[Name], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = Field(
        default=["cls"], min_length=1, max_length=5
    )
    size: int | None = Field(None, ge=1, le=16384)
    fit: Mode = "crop"


BODIES = (FeaturesRequest,)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["features"])
    binary = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (NPY, NPZ)}

    @found.post(
        "/v1/features",
        openapi_extra=body(FeaturesRequest, {"images": [TINY_PNG], "tokens": ["cls", "patches"]}, field="images"),
        responses={**problems(), 200: {"description": "Tokens.", "content": {"application/json": {}, **binary}}},
        response_class=Response,
    )
    async def features(request: Request) -> Response:
        """Return tokens of each image; as npy (one token) or npz where `Accept` asks for it."""
        options, images = await read_request(request, service, FeaturesRequest, field="images")
        if len(set(options.tokens)) < len(options.tokens):
            raise Problem(422, "invalid_value", "a token is asked for twice; name each once", field="tokens")
        loaded = check_model_name(service, options.model)
        if "registers" in options.tokens and not loaded.model.card.backbone.num_registers:
            raise Problem(422, "invalid_value", "this model has no registers; leave them out", field="tokens")
        accept = request.headers.get("accept", "")
        kind = NPY if NPY in accept else NPZ if NPZ in accept else "application/json"
        if kind == NPY and len(options.tokens) > 1:
            raise Problem(422, "invalid_value", f"npy holds one token; name one, or accept {NPZ}", field="tokens")
        patches = not {"patches", "mean", "pca"}.isdisjoint(options.tokens)
        encoded = await service.features(images, patches=patches, size=options.size, fit=options.fit)
        if kind == "application/json":
            _check_values(encoded, options.tokens, service.settings.max_json_values)
        content = await service.aside(lambda: _written(encoded, options.tokens, kind, loaded.name))
        return Response(content, media_type=kind)

    return found


def arrays_of(encoded: Sequence[Encoded], tokens: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Return the tokens that were asked for, by name, an array for each image."""
    found: dict[str, list[np.ndarray]] = {}
    for token in tokens:
        if token == "pca":
            found[token] = patch_colours([torch.from_numpy(one.patches) for one in encoded])
        elif token == "mean":
            found[token] = [one.patches.mean(axis=(0, 1)) for one in encoded]
        else:
            found[token] = [getattr(one, token) for one in encoded]
    return found


def _check_values(encoded: Sequence[Encoded], tokens: Sequence[str], limit: int) -> None:
    count = sum(getattr(one, token).size for one in encoded for token in tokens if token not in ("mean", "pca"))
    if count > limit:
        raise Problem(413, "answer_too_large", f"{count} numbers are too many for JSON; accept {NPY} or {NPZ}")


def _written(encoded: Sequence[Encoded], tokens: Sequence[str], kind: str, model: str) -> bytes:
    arrays = arrays_of(encoded, tokens)
    if kind == "application/json":
        return _as_json(encoded, arrays, model)
    if len({one.patches.shape for one in encoded}) > 1 and {"patches", "pca"} & set(tokens):
        raise Problem(
            422, "mixed_sizes", "images of different sizes make no one array; ask for each alone, or fit=crop"
        )
    stacked = {name: np.stack(values) for name, values in arrays.items()}
    file = io.BytesIO()
    if kind == NPY:
        np.save(file, stacked[tokens[0]], allow_pickle=False)
    else:
        np.savez(file, **stacked)  # type: ignore[arg-type]
    return file.getvalue()


def _as_json(encoded: Sequence[Encoded], arrays: dict[str, list[np.ndarray]], model: str) -> bytes:
    """Write a row of patches at a time: one call of the writer for all of them would keep other threads waiting."""
    images = []
    for number, one in enumerate(encoded):
        parts = [f'"index": {number}, "grid": {json.dumps(one.patches.shape[:2])}']
        parts += [f'"{name}": {_array_as_json(found[number])}' for name, found in arrays.items()]
        images.append(f"{{{', '.join(parts)}}}")
    return f'{{"model": {json.dumps(model)}, "data": [{", ".join(images)}]}}'.encode()


def _array_as_json(array: np.ndarray) -> str:
    if array.ndim < 3:
        return json.dumps(array.tolist())
    return f"[{', '.join(json.dumps(row.tolist()) for row in array)}]"
