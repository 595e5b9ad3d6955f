"""Images as requests carry them: base64, data urls, urls of allowed hosts, files of a form, or the body itself."""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from foveal.serve.limits import RESERVE, check_count, invalid, parse_json
from foveal.serve.problems import Problem
from foveal.serve.remote import Line, fetch
from foveal.serve.service import Service, together

MULTIPART, JSON = "multipart/form-data", "application/json"
FILES = ("image", "images", "file", "input")

_Options = TypeVar("_Options", bound=BaseModel)


class Part(BaseModel):
    """A part of a request; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Url(Part):
    """A data url, or the url of an image on an allowed host."""

    url: str


class UrlPart(Part):
    """An image as chat requests carry it."""

    type: Literal["image_url"] = "image_url"
    image_url: Url


class ImagePart(Part):
    """An image in base64, as a data url, or as the url of an allowed host."""

    image: str


ImageInput = str | ImagePart | UrlPart
ImageInputs = ImageInput | list[ImageInput]


def listed(images: ImageInputs) -> list[ImageInput]:
    """Return one image or several as a list."""
    return list(images) if isinstance(images, list) else [images]


async def read_request(
    request: Request, service: Service, options: type[_Options], *, field: str
) -> tuple[_Options, list[bytes]]:
    """Return the options of a request and its images as files.

    A body of JSON is `options`; a form has files called "image" and options as fields; any other body is one image.

    Args:
        request: as it came through the guard.
        service: whose limits apply.
        options: with a key `field` for the images.
        field: its name.

    Raises:
        Problem: something that is no image, or does not fit `options`.
    """
    body = await request.body()
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    media = kind.decode("latin-1").lower()
    if media == MULTIPART:
        values, files = await _form(request, parameters, service)
        check_count(len(files), service.settings, field=field)
        return parse_values(options, {**values, field: ["form"]}), files
    if media.startswith("image/") or media == "application/octet-stream":
        return parse_values(options, {**request.query_params, field: ["body"]}), [body]
    if media not in (JSON, ""):
        raise Problem(
            415, "unsupported_media_type", f"send {JSON}, {MULTIPART}, or an image as image/...", field="Content-Type"
        )
    parsed = parse_json(options, body)
    images = listed(getattr(parsed, field))
    check_count(len(images), service.settings, field=field)
    return parsed, await together(
        _opened(image, request, service, f"{field}.{number}") for number, image in enumerate(images)
    )


def parse_values(options: type[_Options], values: dict[str, Any]) -> _Options:
    """Return fields of a form, or parameters of an address, as the options that they are."""
    try:
        return options.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


async def _opened(image: ImageInput, request: Request, service: Service, field: str) -> bytes:
    text = image if isinstance(image, str) else image.image if isinstance(image, ImagePart) else image.image_url.url
    if text.startswith(("http://", "https://")):
        settings, line = service.settings, Line()
        try:
            found = await asyncio.to_thread(  # not among the threads that open images: other servers may be slow
                fetch,
                text,
                hosts=settings.allow_urls,
                max_bytes=settings.max_body_bytes,
                timeout_s=settings.timeout_s,
                field=field,
                line=line,
            )
        finally:
            line.end()  # whoever asked may be gone
        request.scope[RESERVE](len(found))
        return found
    return await service.aside(lambda: from_base64(text, field=field))


def from_base64(text: str, *, field: str) -> bytes:
    """Return the bytes of base64 or of a data url; Problem where it is neither.

    Example:
        >>> from_base64("data:image/png;base64,iVBORw==", field="input.0")
        b'\\x89PNG'
    """
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Problem(422, "invalid_base64", "a data url without ;base64; encode the image so", field=field)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "invalid_base64", "neither base64 nor a data url nor http(s)://", field=field) from None


class _InMemory(MultiPartParser):
    """Keeps files in memory, where their bytes are counted already, and not on the disk."""

    spool_max_size = 1 << 62


async def _form(
    request: Request, parameters: dict[bytes, bytes], service: Service
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the fields and the files of a form; a field that is given several times is a list."""
    if b"boundary" not in parameters:
        raise Problem(400, "invalid_form", "multipart/form-data without a boundary", field="Content-Type")
    most = service.settings.max_images
    parser = _InMemory(request.headers, request.stream(), max_files=most + 1, max_fields=100)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            check_count(most + 2, service.settings, field="image")
        raise Problem(400, "invalid_form", error.message) from None
    try:
        return await _sorted(form)
    finally:
        await form.close()


async def _sorted(form: FormData) -> tuple[dict[str, Any], list[bytes]]:
    values: dict[str, Any] = {}
    files: list[bytes] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in FILES:
                raise Problem(422, "invalid_form", f"a file in an unknown field; call it {FILES[0]}", field=name[:64])
            files.append(await value.read())
        elif name in values:
            values[name] = [*_as_list(values[name]), value]
        else:
            values[name] = value
    return values, files


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
