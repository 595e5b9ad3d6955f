"""`/v2`: the Open Inference Protocol, so that clients of Triton and KServe talk to this server unchanged.

Shapes: B images, C channels, H W pixels.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

import foveal
from foveal.serve.health import check_ready
from foveal.serve.loaded import Loaded
from foveal.serve.openapi import TINY_PNG, v2_body, v2_problems
from foveal.serve.problems import Problem
from foveal.serve.service import Service
from foveal.serve.v2_answer import Output, best, written
from foveal.serve.v2_models import (
    VERSION,
    Described,
    check_name,
    config,
    inputs_of,
    metadata,
    model_names,
    num_values,
    outputs_of,
)
from foveal.serve.v2_request import Given, InferRequest, read_infer
from foveal.tasks.classify import ClassPredictor

BODIES = (InferRequest,)

_TOKENS = ("cls", "registers", "patches")
_EXAMPLE = {
    "id": "1",
    "inputs": [{"name": "encoded", "shape": [1], "datatype": "BYTES", "data": [TINY_PNG]}],
    "outputs": [{"name": "cls"}],
}


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["Open Inference Protocol"], prefix="/v2", responses=v2_problems())
    _add_server(found, service)
    _add_model(found, service, "/models/{model_name}", _no_version)
    _add_model(found, service, "/models/{model_name}/versions/{model_version}", _version)
    return found


def _add_server(found: APIRouter, service: Service) -> None:
    @found.get("")
    async def server() -> dict[str, Any]:
        """Say what this server is."""
        extensions = ["binary_tensor_data", "classification", "model_configuration", "model_repository"]
        return {"name": "foveal", "version": foveal.__version__, "extensions": extensions}

    @found.get("/health/live")
    async def live() -> dict[str, Any]:
        """Say that the process lives."""
        return {"live": True}

    @found.get("/health/ready")
    async def ready() -> dict[str, Any]:
        """Say whether requests are answered."""
        check_ready(service)
        return {"ready": True}

    @found.post("/repository/index")
    async def index() -> list[dict[str, Any]]:
        """List the models."""
        state = "READY" if service.is_ready else "UNAVAILABLE"
        return [
            {"name": name, "version": VERSION, "state": state, "reason": ""} for name in model_names(service.loaded)
        ]


def _no_version() -> None:
    return None


def _version(model_version: str) -> str:
    return model_version


def _add_model(found: APIRouter, service: Service, path: str, version_of: Callable[..., str | None]) -> None:
    Version = Annotated[str | None, Depends(version_of)]

    @found.get(path)
    async def model(model_name: str, version: Version) -> dict[str, Any]:
        """Return the inputs and outputs of a model."""
        return metadata(_named(service, model_name, version), model_name)

    @found.get(f"{path}/ready")
    async def ready(model_name: str, version: Version) -> dict[str, Any]:
        """Say whether a model answers."""
        _named(service, model_name, version)
        check_ready(service)
        return {"name": model_name, "ready": True}

    @found.get(f"{path}/config")
    async def configuration(model_name: str, version: Version) -> dict[str, Any]:
        """Return the configuration of a model."""
        return config(_named(service, model_name, version), model_name)

    @found.post(f"{path}/infer", openapi_extra=v2_body(InferRequest, _EXAMPLE), response_class=Response)
    async def infer(request: Request, model_name: str, version: Version) -> Response:
        """Run a model on normalised images, or on files of pictures."""
        loaded = _named(service, model_name, version)
        body = await request.body()
        most = service.settings.max_images
        given = await service.aside(lambda: read_infer(body, request.headers, max_images=most))
        if given.request.inputs[0].name not in [one.name for one in inputs_of(loaded, model_name)]:
            raise Problem(422, "unknown_input", f"not an input of {model_name}", field="inputs.0.name")
        wanted = _wanted(service, loaded, given)
        answers = await _in_time(_answers(service, loaded, given, wanted), given.request.parameters.timeout)
        about = {"model_name": model_name, "model_version": VERSION}
        if given.request.id is not None:
            about["id"] = given.request.id
        outputs = _outputs(loaded, given.request, answers)
        content, headers = await service.aside(lambda: written(outputs, about))
        return Response(content, headers=headers)


def _named(service: Service, name: str, version: str | None) -> Loaded:
    loaded = service.loaded
    check_name(loaded, name, version)
    return loaded


def _wanted(service: Service, loaded: Loaded, given: Given) -> list[str]:
    """Return the names of the outputs that are wanted; Problem where one is unknown, or all are too large."""
    known = {one.name: one for one in outputs_of(loaded)}
    outputs = given.request.outputs
    for number, one in enumerate(outputs or ()):
        if one.name not in known:
            raise Problem(422, "unknown_output", f"the outputs are {', '.join(known)}", field=f"outputs.{number}.name")
        if one.parameters.classification and not isinstance(loaded.heads.get(one.name), ClassPredictor):
            raise Problem(
                422,
                "no_classes",
                "classification is of heads for classes; leave it out",
                field=f"outputs.{number}.parameters.classification",
            )
    names = [one.name for one in outputs] if outputs is not None else list(known)
    _check_size(service, loaded, given, [known[name] for name in names])
    return names


def _check_size(service: Service, loaded: Loaded, given: Given, wanted: list[Described]) -> None:
    """Raise Problem 413 where the answer would be too large."""
    side = loaded.model.card.crop_size
    height, width = given.images.shape[2:] if isinstance(given.images, np.ndarray) else (side, side)
    by_name = {one.name: one.parameters.binary_data for one in given.request.outputs or ()}
    total = in_json = 0
    for one in wanted:
        count = len(given.images) * num_values(loaded, one, height, width)
        total += count
        in_json += 0 if _is_binary(given.request, by_name.get(one.name)) else count
    if in_json > service.settings.max_json_values:
        raise Problem(413, "answer_too_large", f"{in_json} numbers are too many for JSON; ask for binary_data")
    if 4 * total > service.settings.max_answer_bytes:
        raise Problem(
            413,
            "answer_too_large",
            f"the answer would have {4 * total} bytes, allowed are {service.settings.max_answer_bytes}; "
            "name fewer outputs, or send fewer images",
        )


def _is_binary(request: InferRequest, asked: bool | None) -> bool:
    return request.parameters.binary_data_output if asked is None else asked


async def _answers(service: Service, loaded: Loaded, given: Given, names: list[str]) -> dict[str, np.ndarray]:
    """Return what was wanted by name, the batch first."""
    tokens = any(name in _TOKENS for name in names)
    heads = [name for name in names if name not in _TOKENS]
    is_text = isinstance(given.images, list) and given.request.inputs[0].parameters.binary_data_size is None
    field = "inputs.0.data" if is_text else "inputs.0"
    rows = await service.infer(loaded, given.images, tokens=tokens, heads=heads, field=field)
    found: dict[str, np.ndarray] = {}
    for name in names:
        if name in _TOKENS:
            found[name] = np.stack([getattr(row[0], name) for row in rows])
        else:
            found[name] = np.stack([row[tokens + heads.index(name)] for row in rows])
    if "patches" in found:
        found["patches"] = found["patches"].reshape(len(rows), -1, found["patches"].shape[-1])
    return found


async def _in_time(work: Awaitable[dict[str, np.ndarray]], timeout_us: int) -> dict[str, np.ndarray]:
    """Wait for answers as long as the request allows; the guard ends what takes longer than the server does."""
    try:
        async with asyncio.timeout(timeout_us / 1e6 if 0 < timeout_us < 1e15 else None):
            return await work
    except TimeoutError:
        raise Problem(504, "deadline_exceeded", "no answer within the timeout", field="parameters.timeout") from None


def _outputs(loaded: Loaded, request: InferRequest, answers: dict[str, np.ndarray]) -> list[Output]:
    asked = {one.name: one.parameters for one in request.outputs or ()}
    found = []
    for name, values in answers.items():
        parameters = asked.get(name)
        binary = _is_binary(request, parameters.binary_data if parameters else None)
        if parameters and parameters.classification:
            predictor = loaded.heads[name]
            assert isinstance(predictor, ClassPredictor)
            values = best(values, parameters.classification, predictor.classes)
        found.append(Output(name, values, binary))
    return found
