"""The process: sockets, signals, and the end in good order."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.errors import FovealError
from foveal.serve.app import create_app
from foveal.serve.problems import Problem
from foveal.serve.service import UNAWAITED, Service
from foveal.serve.settings import ServeSettings
from foveal.serve.web.pages import Page

logger = logging.getLogger(__name__)

_MOST_HEADERS = 64 * 1024  # bytes


def serve(service: Service, pages: Sequence[Page] = (), *, listening: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    SIGHUP opens the same model and heads again, and serves them from then on.

    Args:
        service: what answers.
        pages: see `create_app`.
        listening: is told the address, without token, as soon as requests are taken.

    Raises:
        FovealError: the address cannot be listened on, or the TLS files cannot be read.
    """
    if _hears_sighup():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # one that comes before we serve would end the process
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it writes down characters of damaged forms
    server = Server(service, pages)
    logger.info("serving %s at %s", service.loaded.name, server.url)
    if listening is not None:
        listening(server.url)
    server.run_to_end()
    if any(thread.name == UNAWAITED for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(0)  # a model that is still being opened, in C++, does not survive the end of Python in good order


def _hears_sighup() -> bool:
    return hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, 0 being any free port; FovealError where nobody can or somebody does."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named: asyncio switches Nagle's algorithm off (40 ms an answer) only where it says TCP.
        line = socket.socket(family, kind, protocol)
        try:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            line.bind(address)
            line.listen(2048)
        except OSError:
            line.close()
            raise
        return line
    except (OSError, OverflowError) as error:
        raise FovealError(
            f"cannot listen on {host}:{port}: {error}; choose another --port (0 takes a free one) or --host"
        ) from error


class Server(uvicorn.Server):
    """Listens from the moment it is made, and ends in three steps: not ready and nothing new; everything accepted
    answered; connections closed.

    Args:
        service: what answers, with its settings.
        pages: see `create_app`.

    Raises:
        FovealError: as `serve`.
    """

    def __init__(self, service: Service, pages: Sequence[Page] = ()) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service, pages),
            http=_patient(settings),
            ws="none",
            loop="asyncio",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(max(settings.keep_alive_s, 1)),
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=_MOST_HEADERS,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        try:
            config.load()
        except OSError as error:
            raise FovealError(f"the TLS certificate or key cannot be read: {error}; give PEM files that fit") from error
        super().__init__(config)
        self._service = service
        self._line = listen(settings.host, settings.port)
        self._drain_ends = 0.0
        self._has_refused = False
        self._reloading: asyncio.Task[Any] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        settings = self._service.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{'https' if settings.tls_certificate else 'http'}://{host}:{self._line.getsockname()[1]}"

    def run_to_end(self) -> None:
        """Serve until `handle_exit` is called, by a signal where this is the main thread."""
        gc.collect()
        gc.freeze()  # what the libraries made at import need not be gone through again while answers wait
        try:
            self.run(sockets=[self._line])
        finally:
            gc.unfreeze()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and listen to SIGHUP too."""
        await super().startup(sockets)
        if _hears_sighup():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._ask_reload)

    def handle_exit(self, sig: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Begin to end at the first signal; end at once at the second."""
        admission = self._service.admission
        if admission.is_draining:
            self.should_exit = self.force_exit = True
            return
        admission.is_draining = True
        self._drain_ends = time.monotonic() + self._service.settings.drain_s
        logger.info("stopping: %d images are still to be answered", admission.images)

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether everything is answered."""
        admission = self._service.admission
        if admission.is_draining:
            late_s = time.monotonic() - self._drain_ends
            if admission.requests and late_s > 0 and not self._has_refused:
                logger.warning("stopping: %d images are refused after drain_s", admission.images)
                self._has_refused = True
                await self._service.batcher.stop()
            elif admission.requests and late_s > 0.5:  # bodies that are still coming, and answers that nobody reads
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            self.should_exit = self.should_exit or not admission.requests
        return await super().on_tick(counter)

    def _ask_reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._swap())

    async def _swap(self) -> None:
        source = self._service.loaded.source
        try:
            if source is not None:
                await self._service.swap(source)
        except FovealError as error:
            logger.error("%s", error)


def _patient(settings: ServeSettings) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits for slow clients: of headers, of a refused body, and of reading answers."""
    header_s, body_s, write_s = settings.header_timeout_s, settings.body_timeout_s, settings.write_timeout_s

    class Protocol(H11Protocol):
        _waits_for: asyncio.TimerHandle | None = None
        _writes: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waits_for = self.loop.call_later(header_s, self._give_up)
            if len(self.connections) > settings.max_connections:
                transport.abort()

        def send_400_response(self, msg: str) -> None:
            problem = Problem(400, "invalid_http", "this is no request of HTTP/1.1, or its headers are too long")
            body = json.dumps(problem.body).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            answer = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._waits_for, self._writes):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writes = self.loop.call_later(write_s, self._give_up)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writes is not None:
                self._writes.cancel()

        def _watch(self) -> None:
            """Limit the time for headers that have begun, and for a body whose request is answered already."""
            answered = self.cycle is None or self.cycle.response_complete
            begun = self.conn.their_state is not h11.IDLE or bool(self.conn.trailing_data[0])
            if not (answered and begun):
                if self._waits_for is not None:
                    self._waits_for.cancel()
                self._waits_for = None
            elif self._waits_for is None:
                seconds = header_s if self.conn.their_state is h11.IDLE else body_s
                self._waits_for = self.loop.call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            self.transport.abort()

    return Protocol
