"""The application: one router a group of endpoints, and every error as JSON."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import foveal
from foveal.serve import admin, embeddings, features, heads, health, models, search, v2
from foveal.serve.guard import Guard
from foveal.serve.openapi import describe
from foveal.serve.problems import Problem
from foveal.serve.service import Service
from foveal.serve.web.door import Door
from foveal.serve.web.pages import Page, pages_router

# Each has `router(service)`, and `BODIES`, the types of bodies that it reads itself.
ENDPOINTS = (health, models, embeddings, features, heads, search, v2, admin)

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: Service, pages: Sequence[Page] = ()) -> FastAPI:
    """Return the ASGI application that serves a model; it starts and stops the service.

    Args:
        service: the model, and the settings.
        pages: for browsers; with any, the settings' keys are the token of `foveal.serve.web.door`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="foveal",
        version=foveal.__version__,
        description="Features of images, and what heads read in them.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # those pages load scripts from other servers
        redoc_url=None,
        exception_handlers={RequestValidationError: _invalid, HTTPException: _by_status},  # all others: the guard
    )
    for endpoint in ENDPOINTS:
        app.include_router(endpoint.router(service))
    describe(app, [body for endpoint in ENDPOINTS for body in endpoint.BODIES])
    app.add_middleware(Guard, service=service)
    if pages:
        app.include_router(pages_router(pages), include_in_schema=False)
        addresses = ["/", *(page.path for page in pages)]
        app.add_middleware(Door, host=service.settings.host, keys=service.settings.api_keys, pages=addresses)
    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"][1:]) or None
    return _response(request, Problem(422, "invalid_value", str(detail["msg"]), field=field))


async def _by_status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "invalid_request")
    message = f"{error.detail}; GET /openapi.json says what there is"
    response = _response(request, Problem(error.status_code, code, message))
    response.headers.update(error.headers or {})
    return response


def _response(request: Request, problem: Problem) -> JSONResponse:
    return JSONResponse(problem.body_at(request.url.path), status_code=problem.status, headers=problem.headers)
