"""What the endpoints take and give, as OpenAPI says it."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "field"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "field": {"type": ["string", "null"]},
            },
        }
    },
}
V2_ERROR = {  # clients of that protocol take "error" for a text
    "type": "object",
    "required": ["error", "code", "field"],
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}, "field": {"type": ["string", "null"]}},
}
_STATUSES = {
    "400": "Not understood.",
    "401": "No key, or a wrong one.",
    "404": "Nothing of that name.",
    "405": "Not with this method.",
    "408": "The body came too slowly.",
    "413": "Too large.",
    "415": "A body of another type.",
    "422": "A value that is not allowed.",
    "503": "No room, or the server is stopping.",
    "504": "Not in time.",
}
# A picture of 2 x 2 pixels, so that the examples of the documentation run.
TINY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP4VSEnZ3OCQWSB24cPHwAnggZ93XuKYAAAAABJRU5ErkJggg=="
)


def problems(*leave_out: str, schema: str = "Error") -> dict[int | str, dict[str, Any]]:
    """Return the answers of an endpoint that are problems, all but some statuses."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}
    return {
        status: {"description": words, "content": content}
        for status, words in _STATUSES.items()
        if status not in leave_out
    }


def body(model: type[BaseModel], example: Mapping[str, Any], *, field: str | None = None) -> dict[str, Any]:
    """Return `openapi_extra` of an endpoint that reads its body itself.

    Args:
        model: what the body is as JSON.
        example: such a body.
        field: where it holds images, that may come as files of a form, or one as the body itself; None: it has none.
    """
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}, "example": example}
    }
    if field is not None:
        properties = {name: {"type": "string"} for name in model.model_fields if name != field}
        files = {"type": "array", "items": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": files, **properties}}
        }
        for kind in ("image/jpeg", "image/png"):
            content[kind] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def v2_problems() -> dict[int | str, dict[str, Any]]:
    """Return the answers of an endpoint of the Open Inference Protocol that are problems."""
    return problems(schema="V2Error")


def v2_body(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    """Return `openapi_extra` of an endpoint that takes JSON, or JSON and bytes after it; see `body`."""
    found = body(model, example)
    found["requestBody"]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    header = {"type": "integer", "minimum": 1}
    return {
        **found,
        "parameters": [
            {"name": "Inference-Header-Content-Length", "in": "header", "required": False, "schema": header}
        ],
    }


def describe(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Let an application's OpenAPI hold the types of bodies that its endpoints read themselves."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = made()
            _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions.get("$defs", {}))
            schemas["Error"], schemas["V2Error"] = ERROR, V2_ERROR
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
