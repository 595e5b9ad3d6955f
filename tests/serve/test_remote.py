"""Images of other servers: only of named hosts, at public addresses, without redirects."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

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
     "::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "ff02::1"],
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


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(Problem, match="could not be fetched") as error:
        fetched("http://nowhere.invalid/a.png", "nowhere.invalid")
    assert error.value.status == 422
