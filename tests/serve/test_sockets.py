"""Slow clients, clients that hang up, too many of them, and the end: over real sockets."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from serving import encoded, pixels, running, stub, tiny_model, write_model

from foveal.errors import FovealError
from foveal.serve.loaded import Source
from foveal.serve.server import Server
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings

PICTURE = encoded(pixels(0))
DEADLINE_S = 10.0  # of everything that is expected within a second


def ask(url: str, **options: object) -> httpx.Response:
    headers = {"content-type": "image/png", **options.pop("headers", {})}  # type: ignore[dict-item]
    return httpx.post(f"{url}/v1/embeddings", content=PICTURE, headers=headers, timeout=DEADLINE_S, **options)


def connect(url: str) -> socket.socket:
    host, _, port = url.rpartition("/")[2].partition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def until(condition, *, what: str, seconds: float = DEADLINE_S) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def everything(line: socket.socket) -> bytes:
    found = b""
    while block := line.recv(65536):
        found += block
    return found


def test_clients_that_send_no_headers_are_cut_off_and_others_are_answered() -> None:
    with running(stub(0.0), header_timeout_s=0.3) as (url, _), connect(url) as silent, connect(url) as slow:
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: h")
        assert ask(url).status_code == 200
        assert everything(silent) == b""
        assert everything(slow) == b""


def test_a_second_request_on_a_connection_may_not_drip_either() -> None:
    with running(stub(0.0), header_timeout_s=0.3) as (url, _), connect(url) as line:
        line.sendall(b"GET /health/live HTTP/1.1\r\nhost: h\r\n\r\nGET /health/liv")
        assert everything(line).endswith(b'{"live":true}')


def test_a_slow_body_is_given_up() -> None:
    with running(stub(0.0), body_timeout_s=0.3) as (url, service), connect(url) as line:
        line.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nabc")
        answer = everything(line)
        until(lambda: service.admission.requests == 0, what="the request is counted out")
        assert service.admission.bytes == 0
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_slow"


def test_a_body_that_goes_on_after_its_refusal_is_cut_off() -> None:
    with running(stub(0.0), max_body_bytes=10, body_timeout_s=0.3) as (url, _), connect(url) as line:
        line.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nff\r\n" + b"x" * 255
        )
        assert everything(line).startswith(b"HTTP/1.1 413 ")


def test_a_refused_body_that_ends_leaves_the_connection_in_use() -> None:
    with running(stub(0.0), max_body_bytes=len(PICTURE)) as (url, _), httpx.Client(base_url=url) as client:
        large = client.post("/v1/embeddings", content=PICTURE + b"x")
        right = client.post("/v1/embeddings", content=PICTURE, headers={"content-type": "image/png"})
    assert (large.status_code, right.status_code) == (413, 200)


def post(path: str) -> bytes:
    """A request as it goes over the line."""
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: image/png\r\ncontent-length: {len(PICTURE)}\r\n"
    return f"{head}accept: application/x-npy\r\n\r\n".encode() + PICTURE


def test_a_client_that_does_not_read_is_cut_off() -> None:
    loaded = stub(0.0)
    loaded.model.engine.repeats = 100_000  # an answer of 19 MB, more than the system keeps for a client
    with running(loaded, write_timeout_s=0.3) as (url, service), connect(url) as line:
        line.sendall(post("/v1/features?tokens=patches"))
        until(lambda: loaded.model.engine.num_images == 1, what="it is computed")
        until(lambda: service.admission.requests == 0, what="its request is counted out")
        time.sleep(0.4)
        assert httpx.get(f"{url}/health/live").status_code == 200
        found = everything(line)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert len(found) < 16 * 3 * 100_000 * 4


def test_work_of_a_client_that_hangs_up_is_not_done() -> None:
    loaded = stub(0.0)
    loaded.model.engine.gate.clear()
    with running(loaded, max_batch=1) as (url, service), ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url)
        until(lambda: loaded.model.engine.num_begun == 1, what="the first one runs")
        with connect(url) as line:
            line.sendall(post("/v1/embeddings"))
            until(lambda: service.batcher.num_waiting == 1, what="the second one waits")
        until(lambda: service.batcher.num_waiting == 0, what="the second one is taken out")
        loaded.model.engine.gate.set()
        assert first.result().status_code == 200
        gone = service.metrics.registry.get_sample_value("foveal_rejections_total", {"code": "client_gone"})
    assert gone == 1
    assert loaded.model.engine.num_images == 1


def test_deadlines_cancel_what_waits() -> None:
    loaded = stub(0.0)
    loaded.model.engine.gate.clear()
    with running(loaded, max_batch=1) as (url, _), ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url)
        until(lambda: loaded.model.engine.num_begun == 1, what="the first one runs")
        late = ask(url, headers={"x-timeout-s": "0.05"})
        loaded.model.engine.gate.set()
        assert first.result().status_code == 200
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert loaded.model.engine.num_images == 1


def test_overload_is_refused_at_once_and_nothing_accepted_is_lost() -> None:
    """Ten times as many clients as there is room for, for two seconds."""
    loaded = stub(0.02)
    codes: list[tuple[int, str | None]] = []
    pauses: list[int] = []
    health: list[float] = []
    with running(loaded, max_queue=4, max_images=4) as (url, service):

        def client() -> None:
            with closing(http.client.HTTPConnection(url.partition("//")[2], timeout=DEADLINE_S)) as line:
                while time.monotonic() < ends:
                    line.request("POST", "/v1/embeddings", body=PICTURE, headers={"content-type": "image/png"})
                    answer = line.getresponse()
                    body = answer.read()
                    if answer.status == 503:
                        pauses.append(int(answer.headers["retry-after"]))
                        time.sleep(0.02)
                    codes.append((answer.status, json.loads(body).get("error", {}).get("code")))

        ends = time.monotonic() + 2.0
        threads = [threading.Thread(target=client) for _ in range(40)]
        for thread in threads:
            thread.start()
        while time.monotonic() < ends:
            began = time.monotonic()
            assert httpx.get(f"{url}/health/ready", timeout=DEADLINE_S).status_code == 200
            health.append(time.monotonic() - began)
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        ends = time.monotonic() + DEADLINE_S  # a client has its answer a moment before the server is done with it
        while service.admission.bytes and time.monotonic() < ends:
            time.sleep(0.01)
        assert service.admission.images == service.admission.bytes == 0
        assert ask(url).status_code == 200
    assert set(codes) == {(200, None), (503, "overloaded")}
    assert min(pauses) >= 1
    assert codes.count((200, None)) + 1 == loaded.model.engine.num_images
    assert len(health) >= 3


@pytest.mark.parametrize("request_", [b"nonsense\r\n\r\n", b"GET /health/live HTTP/1.1\r\nx: " + b"x" * 70_000])
def test_what_is_no_http_is_said_in_json(request_: bytes) -> None:
    with running(stub(0.0)) as (url, _), connect(url) as line:
        line.sendall(request_)
        head, _, body = everything(line).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"


def test_connections_are_bounded() -> None:
    with running(stub(0.0), max_connections=2) as (url, _), connect(url) as one, connect(url) as two:
        with connect(url) as three, suppress(ConnectionError):
            assert everything(three) == b""
        for line in (one, two):
            line.sendall(b"GET /health/live HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            assert everything(line).endswith(b'{"live":true}')


def test_the_end_does_not_wait_for_bodies_that_never_come() -> None:
    with running(stub(0.0), drain_s=0.1) as (url, service), connect(url) as line:
        line.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nabc")
        until(lambda: service.admission.bytes == 3, what="the body has begun")
        began = time.monotonic()
    assert time.monotonic() - began < DEADLINE_S


def test_what_waits_when_the_time_to_end_is_over_is_refused_in_words() -> None:
    loaded = stub(0.0)
    loaded.model.engine.gate.clear()
    with ThreadPoolExecutor() as pool:
        with running(loaded, drain_s=0.1, max_batch=1) as (url, service):
            answers = [pool.submit(ask, url) for _ in range(2)]
            until(lambda: loaded.model.engine.num_begun == service.batcher.num_waiting == 1, what="one runs, one waits")
            threading.Timer(0.5, loaded.model.engine.gate.set).start()
        statuses = sorted(one.result().status_code for one in answers)
    assert statuses == [200, 503]


def test_answers_are_not_held_back_for_larger_packets() -> None:
    server = Server(Service(stub(0.0), ServeSettings(port=0)))
    thread = threading.Thread(target=server.run_to_end)
    thread.start()
    try:
        with connect(server.url):
            until(lambda: server.server_state.connections, what="the connection")
            (one,) = server.server_state.connections
            assert one.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        server.handle_exit()
        thread.join()


def test_a_port_that_is_taken() -> None:
    with running(stub(0.0)) as (url, _), pytest.raises(FovealError, match="cannot listen on 127") as error:
        Server(Service(stub(0.0), ServeSettings(port=int(url.rpartition(":")[2]))))
    assert "choose another --port" in str(error.value)


def test_tls_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    settings = ServeSettings(port=0, tls_certificate=tmp_path / "no.pem", tls_key=tmp_path / "no.pem")
    with pytest.raises(FovealError, match="TLS certificate or key cannot be read"):
        Server(Service(stub(0.0), settings))


@contextmanager
def process_of(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`foveal serve` on a free port, with its address, once it is ready."""
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "FOVEAL_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "foveal", "serve", str(folder / "model"), "--port", "0", *options]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stderr=file)
    try:
        until(lambda: " at http" in log.read_text() or process.poll() is not None, what="an address", seconds=60)
        assert process.poll() is None, log.read_text()
        url = log.read_text().partition(" at ")[2].split()[0]
        until(lambda: httpx.get(f"{url}/health/ready", timeout=DEADLINE_S).status_code == 200, what="ready")
        yield process, url
    finally:
        process.kill()
        process.wait()


def test_sighup_reads_the_folder_again_and_sigterm_answers_what_was_accepted(tmp_path: Path) -> None:
    folder, log = write_model(tmp_path / "model", tiny_model(0)), tmp_path / "log.txt"
    with process_of(tmp_path) as (process, url):
        write_model(folder, tiny_model(5))
        process.send_signal(signal.SIGHUP)
        until(lambda: f"serving tiny ({tiny_model(5).identity[:12]}) now" in log.read_text(), what="the other model")
        (folder / "model.json").write_text("{}")
        process.send_signal(signal.SIGHUP)
        until(lambda: "(still serving tiny)" in log.read_text(), what="a damaged one is refused")
        with ThreadPoolExecutor() as pool, httpx.Client(timeout=DEADLINE_S) as client:
            picture = pixels(0, 280, 280)  # 1600 patches: the four requests take a second
            files = [("image", ("a.png", encoded(picture)))] * 16
            answers = [
                pool.submit(client.post, f"{url}/v1/features", files=files, data={"fit": "resize", "tokens": "cls"})
                for _ in range(4)
            ]
            until(lambda: "images_accepted 64.0" in client.get(f"{url}/metrics").text, what="all images are accepted")
            process.send_signal(signal.SIGTERM)
            until(lambda: client.get(f"{url}/health/ready").status_code == 503, what="no longer ready")
            assert client.get(f"{url}/health/live").status_code == 200
            refused = ask(url)
            vectors = [image["cls"] for one in answers for image in one.result().json()["data"]]
            code = process.wait(timeout=DEADLINE_S)
    expected = tiny_model(5).extract(picture, fit="resize").cls
    np.testing.assert_allclose(vectors, np.tile(expected, (64, 1)), atol=1e-4)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
    assert code == 0
    assert "Traceback" not in log.read_text()
    assert re.search(r"stopping: [1-9]\d* images are still to be answered", log.read_text())


def test_tls_and_keys(tmp_path: Path) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl is not on this machine")
    files = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    key = "a-key-of-enough-letters"
    with running(stub(0.0), api_keys=[key], **files) as (url, _):
        trusted = ssl.create_default_context(cafile=tmp_path / "cert.pem")
        with httpx.Client(base_url=url, verify=trusted) as client:
            found = [
                client.get("/v1/models", headers=headers).status_code
                for headers in (
                    {},
                    {"authorization": f"Bearer {key}"},
                    {"x-api-key": key},
                    {"authorization": f"Bearer {key}x"},
                    {"authorization": b"Bearer \xff"},
                )
            ]
            assert client.get("/health/ready").status_code == 200
            refused = client.get("/v1/models")
    assert url.startswith("https://")
    assert found == [401, 200, 200, 401, 401]
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "wrong_key"


def test_the_end_does_not_wait_for_a_model_that_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, begun = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        begun.set()
        opened.wait(3 * DEADLINE_S)
        raise FovealError("nobody waits for it")

    monkeypatch.setattr("foveal.serve.service.open_source", slow)
    loaded, key = replace(stub(0.0), source=Source("model")), "a key of 16 signs".replace(" ", "-")

    def swap(url: str) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/v1/admin/swap", json={}, headers={"x-api-key": key}, timeout=3 * DEADLINE_S)

    with ThreadPoolExecutor(1) as pool:
        with running(loaded, admin_key=key, drain_s=0.1) as (url, _):
            pool.submit(swap, url)
            assert begun.wait(DEADLINE_S)
            began = time.monotonic()
        assert time.monotonic() - began < DEADLINE_S
        opened.set()
