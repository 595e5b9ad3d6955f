"""The process: sockets, signals, and the end in good order."""

import asyncio
import logging
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from h11 import IDLE
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.errors import FovealError
from foveal.serve.app import create_app
from foveal.serve.service import Service

logger = logging.getLogger(__name__)

_MOST_HEADERS = 64 * 1024  # bytes


def serve(service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what was accepted, and return.

    SIGHUP opens the same model and heads again, and serves them from then on.

    Raises:
        FovealError: the address cannot be listened on, or the TLS files cannot be read.
    """
    server = Server(service)
    logger.info("serving %s at %s", service.loaded.name, server.url)
    server.run_to_end()


def _listen(host: str, port: int) -> socket.socket:
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
        raise FovealError(f"cannot listen on {host}:{port}: {error}; choose another --port or --host") from error


class Server(uvicorn.Server):
    """Listens from the moment it is made, and ends in three steps: not ready and nothing new; everything accepted
    answered; connections closed.

    Args:
        service: what answers, with its settings.

    Raises:
        FovealError: as `serve`.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=_patient(settings.header_timeout_s, settings.body_timeout_s, settings.write_timeout_s),
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
        self._line = _listen(settings.host, settings.port)
        self._drain_ends = 0.0
        self._reloading: asyncio.Task[Any] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        settings = self._service.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{'https' if settings.tls_certificate else 'http'}://{host}:{self._line.getsockname()[1]}"

    def run_to_end(self) -> None:
        """Serve until `handle_exit` is called, by a signal where this is the main thread."""
        self.run(sockets=[self._line])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and listen to SIGHUP too."""
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
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
            if admission.requests and time.monotonic() > self._drain_ends:
                logger.warning("stopping: %d images are refused after drain_s", admission.images)
                await self._service.batcher.stop()
                self._drain_ends = float("inf")
            elif not admission.requests:
                self.should_exit = True
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


def _patient(header_s: float, body_s: float, write_s: float) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits for slow clients: of headers, of a refused body, and of reading answers."""

    class Protocol(H11Protocol):
        _waits_for: asyncio.TimerHandle | None = None
        _writes: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waits_for = self.loop.call_later(header_s, self._give_up)

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
            begun = self.conn.their_state is not IDLE or bool(self.conn.trailing_data[0])
            if not (answered and begun):
                if self._waits_for is not None:
                    self._waits_for.cancel()
                self._waits_for = None
            elif self._waits_for is None:
                seconds = header_s if self.conn.their_state is IDLE else body_s
                self._waits_for = self.loop.call_later(seconds, self._give_up)

        def _give_up(self) -> None:
            self.transport.abort()

    return Protocol
