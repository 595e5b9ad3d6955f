"""How much one request, and all of them together, may cost."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from foveal.images.decode import DecodeLimits
from foveal.serve.problems import Problem, stopping
from foveal.serve.settings import ServeSettings

# Arrays and objects in one another; the parser's own limit.
MAX_JSON_DEPTH = 201
# Key of the ASGI scope: a function that counts bytes in, as part of the body, until the request is answered.
RESERVE = "foveal.reserve"

_Parsed = TypeVar("_Parsed", bound=BaseModel)


class Admission:
    """Counts what has been accepted and not yet answered: images, the bytes of bodies, and requests with either.

    Everything that is counted is bounded, so that a server under any load holds no more than it was given room for.

    Args:
        max_images: accepted at once.
        max_bytes: of bodies at once.
    """

    def __init__(self, *, max_images: int, max_bytes: int) -> None:
        self.max_images, self.max_bytes = max_images, max_bytes
        self.images, self.bytes, self.requests = 0, 0, 0
        self.images_per_s = 0.0
        self.is_draining = False

    @property
    def is_full(self) -> bool:
        """Whether not one more image is accepted."""
        return self.images >= self.max_images

    def check(self) -> None:
        """Refuse a request before its body is read, where it would be refused afterwards.

        Raises:
            Problem: 503, with the time to come again.
        """
        if self.is_draining:
            raise stopping()
        if self.is_full:
            raise self._overloaded()

    @contextmanager
    def admit(self, num_images: int) -> Iterator[None]:
        """Count the images of a request in until it is answered, or refuse all of them.

        Raises:
            Problem: 503, there is no room for so many.
        """
        if self.images + num_images > self.max_images:
            raise self._overloaded()
        self.images += num_images
        try:
            yield
        finally:
            self.images -= num_images

    def reserve(self, num_bytes: int) -> None:
        """Count bytes of a body in; `release` them when its request is answered.

        Raises:
            Problem: 503, there is no room for so many; none is counted.
        """
        if self.bytes + num_bytes > self.max_bytes:
            raise self._overloaded()
        self.bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Count bytes of a body out."""
        self.bytes -= num_bytes

    def answered(self, num_images: int, seconds: float) -> None:
        """Learn how fast images are answered, from the time that a batch took."""
        rate = num_images / max(seconds, 1e-6)
        self.images_per_s = rate if not self.images_per_s else 0.9 * self.images_per_s + 0.1 * rate

    def _overloaded(self) -> Problem:
        pause = math.ceil(self.images / self.images_per_s) if self.images_per_s else 1
        return Problem(
            503,
            "overloaded",
            f"{self.images} images wait already; come again later, or ask another server",
            retry_after_s=min(max(pause, 1), 60),
        )


class Room:
    """Bounds the bytes of images that are prepared and not yet answered: while it is full, others are not prepared.

    A request holds its files meanwhile, which are smaller, and counted by `Admission`.

    Args:
        max_bytes: beyond which nothing more is prepared; what is being prepared then still comes.
        at_once: images that are prepared at the same time.
    """

    def __init__(self, *, max_bytes: int, at_once: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._preparing = asyncio.Semaphore(at_once)
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, prepare: Callable[[], Awaitable[np.ndarray]]) -> AsyncIterator[np.ndarray]:
        """Wait for room, prepare an image, and count its bytes while the block runs."""
        async with self._preparing:
            while self.bytes >= self.max_bytes:
                self._freed.clear()
                await self._freed.wait()
            array = await prepare()
            self.bytes += array.nbytes
        try:
            yield array
        finally:
            self.bytes -= array.nbytes
            self._freed.set()


class AnswerSize:
    """Counts the bytes of the arrays that one answer will have, before they are computed.

    Args:
        max_bytes: in all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0

    def add(self, num_bytes: int) -> None:
        """Count bytes in.

        Raises:
            Problem: 413, there are too many.
        """
        self._bytes += num_bytes
        if self._bytes > self._max_bytes:
            raise Problem(
                413,
                "answer_too_large",
                f"the answer would have more than {self._max_bytes} bytes; send fewer or smaller images",
            )


def decode_limits(settings: ServeSettings) -> DecodeLimits:
    """Return what one image may cost."""
    return DecodeLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels, max_scans=settings.max_scans)


def check_count(count: int, settings: ServeSettings, *, field: str) -> None:
    """Refuse a request without images, or with too many."""
    if count < 1:
        raise Problem(422, "no_images", "no image; give at least one", field=field)
    if count > settings.max_images:
        raise Problem(
            413,
            "too_many_images",
            f"{count} images, allowed are {settings.max_images} in a request; send several requests",
            field=field,
        )


def parse_json(model: type[_Parsed], body: bytes) -> _Parsed:
    """Return a body as what it should be.

    Raises:
        Problem: 400, no JSON, or nested deeper than `MAX_JSON_DEPTH`; 422, with the first field that is wrong. No value
            is repeated.
    """
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> Problem:
    """Return the first error of a validation as a problem, without the value that was sent."""
    detail = error.errors(include_input=False, include_url=False)[0]
    if detail["type"] == "json_invalid":
        if "recursion limit" in detail["msg"]:
            return Problem(400, "json_too_deep", f"JSON nested deeper than {MAX_JSON_DEPTH}; send a flatter request")
        return Problem(400, "invalid_json", f"the body is no JSON: {detail['ctx']['error']}")
    field = ".".join(str(part)[:64] for part in detail["loc"]) or None  # an unknown key may be as long as the body
    return Problem(422, "invalid_value", str(detail["msg"]).removeprefix("Value error, "), field=field)
