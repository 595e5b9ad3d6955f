"""A real HTTP server on this machine that fails in the ways servers do."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """How one request is answered; the defaults are an honest server that knows ranges.

    Attributes:
        status: anything but 200 is sent alone, with `headers`.
        send: at most so many bytes of the body before the connection is closed.
        claim: the Content-Length to claim; None is the truth, -1 claims nothing.
        pause_s: after every `chunk` bytes.
        ignore_range: answer 200 with everything.
        heeds_if_range: False answers every range, whatever file If-Range asks for.
        etag: None is that of the body; "" sends none.
        shift: answer ranges with bytes that start so much later.
        headers: further ones.
        chunked: Transfer-Encoding: chunked.
    """

    status: int = 200
    send: int | None = None
    claim: int | None = None
    chunk: int = 1 << 16
    pause_s: float = 0.0
    ignore_range: bool = False
    heeds_if_range: bool = True
    etag: str | None = None
    shift: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False


@dataclass
class FakeServer:
    """Files by path; answers are used up one a request, then the last goes on. `requests` are (path, headers)."""

    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent_bytes: int = 0
    url: str = ""

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


def etag_of(body: bytes) -> str:
    return f'"{hash(body) & 0xFFFFFFFF:x}"'


@contextmanager
def running() -> Iterator[FakeServer]:
    state = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                _respond(self, state, answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(handler: BaseHTTPRequestHandler, state: FakeServer, answer: Answer) -> None:
    body = state.files.get(handler.path)
    if answer.status != 200 or body is None:
        handler.send_response(answer.status if answer.status != 200 else 404)
        for name, value in ({"Content-Length": "0"} | answer.headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        return
    etag = etag_of(body) if answer.etag is None else answer.etag
    start = _start(handler, answer, etag)
    if start is not None and start >= len(body):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(body)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    part = body if start is None else body[start + answer.shift :]
    handler.send_response(200 if start is None else 206)
    if start is not None:
        handler.send_header("Content-Range", f"bytes {start + answer.shift}-{len(body) - 1}/{len(body)}")
    if answer.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    elif answer.claim != -1:
        handler.send_header("Content-Length", str(len(part) if answer.claim is None else answer.claim))
    if etag:
        handler.send_header("ETag", etag)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()
    part = part if answer.send is None else part[: answer.send]
    for at in range(0, len(part), answer.chunk):
        block = part[at : at + answer.chunk]
        state.sent_bytes += len(block)  # before the client has them, and looks
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if answer.chunked else block)
        handler.wfile.flush()
        if answer.pause_s:
            time.sleep(answer.pause_s)
    if answer.chunked and answer.send is None:
        handler.wfile.write(b"0\r\n\r\n")


def _start(handler: BaseHTTPRequestHandler, answer: Answer, etag: str) -> int | None:
    """Where a range request starts; None for a whole answer, also when If-Range names another file."""
    span = handler.headers.get("Range")
    if span is None or answer.ignore_range:
        return None
    if answer.heeds_if_range and handler.headers.get("If-Range", etag) != etag:
        return None
    return int(span.removeprefix("bytes=").removesuffix("-"))
