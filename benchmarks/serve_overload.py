"""A server at ten times its capacity: what is refused, how fast, and whether anything that was accepted is lost.

    python benchmarks/serve_overload.py                    # 60 s
    python benchmarks/serve_overload.py --seconds 5

The server runs in a process of its own, with a stub for the model that takes a known time an image. Another process
sends a small PNG at a fixed rate, whatever is answered (an open loop), over as many connections as it takes; how far it
falls behind its own rate is printed, and is no part of the latencies. Beside it health is asked ten times a second, and
the memory of the server read. Every answer is counted: 200 accepted, 503 refused, all else is an error. What the engine
ran must equal the answers of status 200. "Normal again" counts from the last request that was sent to the first one
that is answered in twice the time that it takes when idle.
"""

import argparse
import asyncio
import io
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import Tokens
from foveal.features.extract import Model
from foveal.serve.loaded import Loaded
from foveal.serve.server import Server
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings


class StubEngine:
    """Takes a known time for each image."""

    description = {"name": "stub"}  # noqa: RUF012
    identity = "stub"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def encode(self, batch: torch.Tensor) -> Tokens:
        """Return mean colours."""
        time.sleep(self._seconds * len(batch))
        cls = batch.mean(dim=(2, 3))
        return Tokens(cls, cls[:, None], cls[:, None].expand(-1, 16, -1))


def serve_stub(seconds: float, max_queue: int) -> None:
    """Serve until SIGTERM; the address is the first line on stdout."""
    config = backbone_config("vit_nano", patch_size=7, image_size=28)
    model = Model(StubEngine(seconds), Card(name="stub", backbone=config, crop_size=28, resize_size=32, licence=OWN))
    settings = ServeSettings(port=0, max_queue=max_queue, max_images=8)
    server = Server(Service(Loaded("stub", model), settings))
    print(server.url, flush=True)
    server.run_to_end()


@dataclass
class Seen:
    """What a client saw: (second, status, latency) of each answer, and failures."""

    answers: list[tuple[float, int, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sent_last: float = 0.0
    late: list[float] = field(default_factory=list)  # ms by which the client itself was behind its own rate

    def latencies(self, status: int) -> np.ndarray:
        """Return those of one status, ms."""
        return np.array([seconds for _, seen, seconds in self.answers if seen == status]) * 1000


class Connection:
    """One connection that is kept alive, with as little of a client as it takes."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Return status and body."""
        if self._streams is None or self._streams[0].at_eof():  # closed by the server while it was idle
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
            )
            return int(head.split()[1]), await reader.readexactly(length)
        except BaseException:
            writer.close()
            self._streams = None
            raise


def request_of(path: str, body: bytes = b"") -> bytes:
    """Return a request as it goes over the line."""
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def load(connect, request: bytes, *, rate: float, seconds: float, seen: Seen) -> None:
    """Send requests at a fixed rate, each on an idle connection or a new one, and wait for all answers."""
    idle: list[Connection] = []
    began = time.perf_counter()

    async def one(due: float) -> None:
        connection = idle.pop() if idle else connect()
        sent = time.perf_counter()
        seen.late.append((sent - due) * 1000)
        try:
            status, _ = await connection.ask(request)
        except Exception as error:
            seen.errors.append(repr(error))
            return
        now = time.perf_counter()
        seen.answers.append((now - began, status, now - sent))
        idle.append(connection)

    running = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (pause := due - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    seen.sent_last = time.perf_counter()
    await asyncio.gather(*running)


async def watch(connect, pid: int, *, stop: asyncio.Event, health: Seen, memory: list[float]) -> None:
    """Ask for health ten times a second, and read the memory of the server, MiB."""
    connection = connect()
    while not stop.is_set():
        began = time.perf_counter()
        status, _ = await connection.ask(request_of("/health/live"))
        health.answers.append((began, status, time.perf_counter() - began))
        memory.append(resident(pid))
        await asyncio.sleep(0.1)


def resident(pid: int) -> float:
    """Return the memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


async def measure(url: str, pid: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Warm up, overload, and wait until it is as before."""
    host, _, port = url.partition("//")[2].partition(":")

    def connect() -> Connection:
        return Connection(host, int(port))

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    request = request_of("/v1/embeddings", file.getvalue())
    capacity = 1 / arguments.delay_s
    normal, over, health, memory = Seen(), Seen(), Seen(), []
    await load(connect, request, rate=capacity / 4, seconds=4, seen=normal)
    before = resident(pid)
    stop = asyncio.Event()
    watcher = asyncio.create_task(watch(connect, pid, stop=stop, health=health, memory=memory))
    await load(connect, request, rate=arguments.times * capacity, seconds=arguments.seconds, seen=over)
    usual = float(np.median(normal.latencies(200)))
    recovery = None
    probe, probes = connect(), 0
    while recovery is None and time.perf_counter() - over.sent_last < 30:
        began = time.perf_counter()
        status, _ = await probe.ask(request)
        probes += status == 200
        if status == 200 and (time.perf_counter() - began) * 1000 <= 2 * usual:
            recovery = time.perf_counter() - over.sent_last
    stop.set()
    await watcher
    _, metrics = await connect().ask(request_of("/metrics"))
    ran = next(
        float(line.split()[1]) for line in metrics.decode().splitlines() if line.startswith("foveal_batch_images_sum")
    )
    statuses = [status for _, status, _ in over.answers]
    refused, accepted, lives = over.latencies(503), over.latencies(200), health.latencies(200)
    return {
        "capacity, images/s": capacity,
        "sent, requests/s": len(statuses) / arguments.seconds,
        "answers": {str(status): statuses.count(status) for status in sorted(set(statuses))},
        "errors of connections": len(over.errors),
        "accepted, images/s": round(len(accepted) / arguments.seconds, 1),
        "accepted and lost": int(ran) - len(accepted) - len(normal.latencies(200)) - probes,
        "latency when idle, ms": round(usual, 1),
        "client late p50 / p99, ms": [round(float(np.percentile(over.late, p)), 1) for p in (50, 99)],
        "refused p50 / p99, ms": [round(float(np.percentile(refused, p)), 1) for p in (50, 99)]
        if len(refused)
        else None,
        "accepted p50 / p99, ms": [round(float(np.percentile(accepted, p)), 1) for p in (50, 99)],
        "health p50 / p99 / max, ms": [round(float(np.percentile(lives, p)), 1) for p in (50, 99, 100)],
        "memory before / most, MiB": [round(before), round(max(memory))],
        "normal again after, s": None if recovery is None else round(recovery, 2),
    }


def main() -> None:
    """Start the server, overload it, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=10, help="of the capacity")
    parser.add_argument("--delay-s", type=float, default=0.02, help="of an image in the engine")
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument("--stub", action="store_true", help="be the server")
    arguments = parser.parse_args()
    if arguments.stub:
        serve_stub(arguments.delay_s, arguments.max_queue)
        return
    command = [
        sys.executable,
        __file__,
        "--stub",
        "--delay-s",
        str(arguments.delay_s),
        "--max-queue",
        str(arguments.max_queue),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = asyncio.run(measure(server.stdout.readline().strip(), server.pid, arguments))
    finally:
        began = time.perf_counter()
        server.terminate()
        code = server.wait(timeout=20)
    print(
        json.dumps({**found, "SIGTERM: code": code, "ended after, s": round(time.perf_counter() - began, 2)}, indent=2)
    )


if __name__ == "__main__":
    main()
