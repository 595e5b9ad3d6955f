"""What every request passes first: its key, its body within limits, and an answer within its time or none at all."""

import asyncio
import base64
import hmac
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from foveal.errors import FovealError
from foveal.serve.limits import RESERVE
from foveal.serve.problems import Problem, problem_of
from foveal.serve.service import Service

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health/", "/v2/health/")  # answered without a key, and whatever the load
ADMIN = "/v1/admin/"
TIMEOUT = b"x-timeout-s"


class _Gone(Exception):
    """The client closed the connection."""


class Guard:
    """An ASGI application around another one.

    In this order: the key; room for one more request; the whole body, counted as it comes; then the application, which
    is cancelled when the time is over or the client is gone. Every failure is an answer in JSON.

    Args:
        app: what answers.
        service: whose settings and counts apply.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app = app
        self._service = service
        self._settings = service.settings

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        began = time.monotonic()
        admission, held = self._service.admission, 0

        def reserve(num_bytes: int) -> None:
            nonlocal held
            admission.reserve(num_bytes)
            held += num_bytes

        admission.requests += 1
        scope[RESERVE] = reserve
        try:
            await self._guarded(scope, receive, answer, reserve)
        except _Gone:
            self._service.metrics.rejections.labels("client_gone").inc()
        except Exception as error:  # the border "handling one request"
            await self._fail(scope, answer, error)
        finally:
            admission.release(held)
            admission.requests -= 1
            self._measure(scope, answer, time.monotonic() - began)

    async def _guarded(
        self, scope: Message, receive: Receive, answer: "_Answer", reserve: Callable[[int], None]
    ) -> None:
        headers = dict(scope["headers"])
        self._check_key(scope["path"], headers)
        is_work = scope["method"] == "POST" and not scope["path"].startswith(ADMIN)
        if is_work:
            self._service.admission.check()
        time_left = self._timeout(headers)
        body = b"" if scope["method"] in ("GET", "HEAD") else await self._body(headers, receive, reserve)
        await _within(
            self._app(scope, _once(body, receive), answer),
            receive,
            None if scope["path"].startswith(ADMIN) else time_left,
        )

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        given = _given_key(headers)
        if path.startswith(ADMIN):
            key = self._settings.admin_key
            if key is None:
                raise Problem(403, "admin_disabled", "nothing is administered here: the server has no admin key")
            if not is_one_of(given, [key]):
                raise Problem(401, "wrong_key", "give the admin key: Authorization: Bearer KEY")
        elif self._settings.api_keys and not path.startswith(OPEN) and not is_one_of(given, self._settings.api_keys):
            raise Problem(401, "wrong_key", "give an API key: Authorization: Bearer KEY")

    def _timeout(self, headers: dict[bytes, bytes]) -> float:
        """Return the seconds that a request allows, at most those of the settings."""
        longest = self._settings.timeout_s
        text = headers.get(TIMEOUT)
        if text is None:
            return longest
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise Problem(400, "invalid_timeout", f"give seconds above 0, at most {longest:g}", field="X-Timeout-S")
        return min(seconds, longest)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, reserve: Callable[[int], None]) -> bytes:
        """Return the whole body; Problem where it is too large, too slow, or there is no room for it."""
        limit = self._settings.max_body_bytes
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Problem(
                415, "unsupported_encoding", "send the body as it is, not compressed", field="Content-Encoding"
            )
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        total, more = 0, True
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    chunk = message.get("body", b"")
                    total, more = total + len(chunk), message.get("more_body", False)
                    if total > limit:
                        raise _too_large(limit)
                    reserve(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise Problem(408, "body_too_slow", f"no whole body in {self._settings.body_timeout_s:g} s") from None
        return b"".join(chunks)

    async def _fail(self, scope: Message, answer: "_Answer", error: Exception) -> None:
        if isinstance(error, FovealError):
            problem = problem_of(error)
        else:  # said by its type alone: its words may hold what was sent
            where = _where(error)
            logger.error("%s %s failed: %s at %s", scope["method"], scope["path"][:100], type(error).__name__, where)
            problem = Problem(500, "internal", "the server could not answer; its log says where")
        self._service.metrics.rejections.labels(problem.code).inc()
        if answer.status is None:
            await send_problem(answer, problem, scope["path"])

    def _measure(self, scope: Message, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._service.metrics.requests.labels(route, str(answer.status or "gone")).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)


class _Answer:
    """Passes an answer on, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def send_problem(send: Send, problem: Problem, path: str) -> None:
    """Answer a request for a path with a problem."""
    body = json.dumps(problem.body_at(path)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
    if problem.status == 408:  # the rest of the body would be read on, or taken for the next request
        headers["connection"] = "close"
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _within(work: Awaitable[None], receive: Receive, timeout_s: float | None) -> None:
    """Run an application until it has answered, its time is over, or the client is gone; then nothing of it runs on.

    Raises:
        Problem: 504, the time is over.
    """
    running = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({running, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        elif gone.done():
            raise _Gone
        else:
            raise Problem(504, "deadline_exceeded", "no answer within the time allowed; come again, or allow more")
    finally:
        for task in (running, gone):
            task.cancel()
        await asyncio.gather(running, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _once(body: bytes, receive: Receive) -> Receive:
    """Return what an application receives: the body in one piece, and after it what comes from the client."""
    left = [body]

    async def receive_body() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        await asyncio.Event().wait()  # whether the client is gone, the guard watches
        raise AssertionError

    return receive_body


def _given_key(headers: dict[bytes, bytes]) -> bytes:
    """Return the key of a request, or what takes its place: with Basic authentication it is the password."""
    kind, _, value = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return value
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return headers.get(b"x-api-key", b"")


def is_one_of(given: bytes, keys: Iterable[str]) -> bool:
    """Compare a key with all of them, in a time that does not tell how much of it is right."""
    return sum(hmac.compare_digest(given, key.encode()) for key in keys) > 0


def _too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"the body has more than {limit} bytes; send fewer or smaller images")


def _where(error: BaseException) -> str:
    """Return the file and line in which an error was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "?"
    return f"{traceback.tb_frame.f_code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno}"
