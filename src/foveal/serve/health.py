"""Whether the server lives, whether it answers, and what it has measured."""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from foveal.serve.problems import Problem
from foveal.serve.service import Service

BODIES: tuple[type[BaseModel], ...] = ()


def check_ready(service: Service) -> None:
    """Raise Problem 503 unless requests are answered."""
    if not service.is_ready or service.admission.is_draining:
        raise Problem(503, "not_ready", "the server is starting or stopping; come again", retry_after_s=1)


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    found = APIRouter(tags=["health"])

    @found.get("/health/live")
    async def live() -> dict[str, Any]:
        """Say that the process lives."""
        return {"live": True}

    @found.get("/health/ready")
    async def ready() -> dict[str, Any]:
        """Say whether requests are answered: no longer once the server has been told to stop."""
        check_ready(service)
        return {"ready": True}

    @found.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return what Prometheus reads."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return found
