"""Images of other servers: only of named hosts, at public addresses, without redirects."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from serving import served, stub

from foveal.serve import remote
from foveal.serve.problems import Problem


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = {"/image": (200, b"x" * 100), "/away": (302, b"")}.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("location", "http://127.0.0.1/inside")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server that passes for public."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(url: str, *hosts: str, max_bytes: int = 1000) -> bytes:
    return remote.fetch(url, hosts=hosts, max_bytes=max_bytes, timeout_s=5, field="input.0")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://evil.example/a.png", "host_not_allowed"),
        ("http://images.example.evil.example/a.png", "host_not_allowed"),
        ("http://images.example@evil.example/a.png", "host_not_allowed"),
        ("http://me:pass@images.example/a.png", "host_not_allowed"),
        ("http://images.example:8080/a.png", "host_not_allowed"),
        ("http://images.example:99999/a.png", "invalid_url"),
        ("http://[::1/a.png", "invalid_url"),
    ],
)
def test_other_hosts_are_refused(url: str, code: str) -> None:
    with pytest.raises(Problem) as error:
        fetched(url, "images.example")
    assert (error.value.status, error.value.code, error.value.field) == (422, code, "input.0")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "ff02::1",
     "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1", "fec0::1"],
)  # fmt: skip
def test_addresses_inside_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", 80))
    inside = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, inside])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was connected to"))
    with pytest.raises(Problem) as error:
        fetched("http://images.example/a.png", "images.example")
    assert error.value.code == "private_address"


@pytest.mark.parametrize(
    ("path", "max_bytes", "expected"),
    [("/image", 99, "too_many_bytes"), ("/image", 100, None), ("/image", 101, None), ("/away", 100, "not_fetched"),
     ("/nothing", 100, "not_fetched")],
)  # fmt: skip
def test_files_are_bounded_and_redirects_refused(
    port: int, path: str, max_bytes: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1")
    url, host = f"http://127.0.0.1:{port}{path}", f"127.0.0.1:{port}"
    if expected is None:
        assert fetched(url, host, max_bytes=max_bytes) == b"x" * 100
        return
    with pytest.raises(Problem) as error:
        fetched(url, host, max_bytes=max_bytes)
    assert error.value.code == expected


def test_addresses_outside_are_public() -> None:
    assert all(map(remote.is_public, ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:1.1.1.1"]))


@contextmanager
def answering(pieces: Sequence[bytes], pause_s: float) -> Iterator[tuple[str, list[bool]]]:
    """A server that sends pieces slowly, and notes whether the other side has closed."""
    closed: list[bool] = []

    def serve() -> None:
        connection, _ = line.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(1 << 16)
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause_s)
                closed.append(connection.recv(1) == b"")
            except TimeoutError:
                closed.append(False)
            except OSError:
                closed.append(True)

    with socket.create_server(("127.0.0.1", 0)) as line:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{line.getsockname()[1]}", closed
        thread.join()


def test_headers_that_come_byte_by_byte_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "is_public", lambda address: True)
    with answering([b"HTTP/1.1 200 OK\r\nx: ", *[b"x"] * 60], 0.05) as (host, closed):
        began = time.monotonic()
        with pytest.raises(Problem, match="could not be fetched"):
            remote.fetch(f"http://{host}/a.png", hosts=[host], max_bytes=1000, timeout_s=0.2, field="input.0")
        assert time.monotonic() - began < 2
    assert closed == [True]


@pytest.mark.anyio
async def test_nothing_is_fetched_for_a_request_whose_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "is_public", lambda address: True)
    with answering([], 0) as (host, closed):
        async with served(stub(0.0), allow_urls=[host]) as (client, _):
            request = {"input": f"http://{host}/a.png"}
            answer = await client.post("/v1/embeddings", json=request, headers={"x-timeout-s": "0.2"})
    assert (answer.status_code, closed) == (504, [True])


@pytest.mark.anyio
async def test_bytes_that_are_fetched_count_as_those_of_a_body(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "is_public", lambda address: True)
    request = {"input": [f"http://127.0.0.1:{port}/image"] * 3}
    size = len(json.dumps(request, separators=(",", ":")))
    for room, expected in ((-1, 503), (0, 422)):  # it is no picture
        limits = {"max_body_bytes": size, "max_bodies_bytes": size + 300 + room}
        async with served(stub(0.0), allow_urls=[f"127.0.0.1:{port}"], **limits) as (client, service):
            assert (await client.post("/v1/embeddings", json=request)).status_code == expected
            assert service.admission.bytes == 0


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(Problem, match="could not be fetched") as error:
        fetched("http://nowhere.invalid/a.png", "nowhere.invalid")
    assert error.value.status == 422
