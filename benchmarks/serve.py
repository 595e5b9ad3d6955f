"""Images per second and latencies of `foveal serve` on JPEG files of 500 x 375, against `foveal extract`.

    python benchmarks/serve.py                       # ViT-S/14 with random weights, all cores
    python benchmarks/serve.py --engine torch --seconds 10 --plot serve.png
    python benchmarks/serve.py --litserve-python ENV/bin/python   # and LitServe, with foveal's engine in it

The server and `foveal extract` (to a store on the disk, as benchmarks/extract.py measures it) run in turns on the same
files and the same kind of engine. Saturation: as many clients as two of the largest batches, each with one image at a
time, and no pause. Latency against load: images at a fixed rate, whatever is answered. One image alone is set against
one call of the engine with one prepared image. LitServe runs in an environment that has it beside foveal
(`pip install -e '.[cpu,fast]' litserve`), and is asked with base64 in JSON; so is foveal once.
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from extract import extraction, write_photographs
from rich.console import Console
from rich.table import Table
from serve_overload import Connection, Seen, load
from store_bytes import random_model

import foveal
from foveal.backbone.licence import OWN
from foveal.backbone.weights import save_model
from foveal.features.stamp import StoreSettings
from foveal.images.imageset import ImageSet


def request_of(image: bytes) -> bytes:
    """Return a request for the embedding of a JPEG as it goes over the line."""
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image


def json_request_of(image: bytes, path: str) -> bytes:
    """Return a request with the JPEG as base64 in JSON."""
    body = json.dumps({"input": base64.b64encode(image).decode()}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def saturated(address: tuple[str, int], requests: list[bytes], *, clients: int, seconds: float) -> Seen:
    """Keep so many clients busy for some time."""
    seen, ends = Seen(), time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = Connection(*address)
        while (began := time.perf_counter()) < ends:
            status, _ = await connection.ask(requests[number % len(requests)])
            seen.answers.append((began, status, time.perf_counter() - began))
            number += clients

    await asyncio.gather(*map(client, range(clients)))
    return seen


def start(folder: Path, engine: str) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    """Start `foveal serve` and return it with its address."""
    log = folder / "log"
    command = [sys.executable, "-m", "foveal", "serve", str(folder / "model"), "--port", "0", "--engine", engine]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    while " at http" not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    host, _, port = log.read_text().partition(" at http://")[2].split()[0].partition(":")
    return process, (host, int(port))


def litserve_rate(folder: Path, python: Path, files: list[Path], *, clients: int, seconds: float) -> float:
    """Return images per second of LitServe with the same model, after it was warmed up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("serve_litserve.py")
    command = [python, program, folder / "model", folder / "photos", port]
    requests = [json_request_of(file.read_bytes(), "/predict") for file in files]
    with (folder / "litserve.log").open("w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    try:
        while True:
            try:
                seen = asyncio.run(saturated(("127.0.0.1", port), requests, clients=clients, seconds=2))
                if len(seen.latencies(200)):
                    break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit((folder / "litserve.log").read_text()) from None
                time.sleep(0.5)
        seen = asyncio.run(saturated(("127.0.0.1", port), requests, clients=clients, seconds=seconds))
        assert {status for _, status, _ in seen.answers} == {200}
        return len(seen.answers) / seconds
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def alone(model: foveal.Model, prepared: torch.Tensor, seconds: float) -> float:
    """Return the time of the engine for one prepared image, ms."""
    times = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        model.engine.encode(prepared)
        times.append(time.perf_counter() - began)
    return median(times) * 1000


def draw(points: list[tuple[float, float, float]], most: float, path: Path) -> None:
    """Draw p50 and p99 against the load, up to the rate at saturation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rates, middles, worst = zip(*points, strict=True)
    _, axes = plt.subplots(figsize=(6, 3.4))
    axes.plot(rates, worst, "s--", label="p99")
    axes.plot(rates, middles, "o-", label="p50")
    axes.axvline(most, color="0.5", linestyle=":")
    axes.annotate(" saturation", (most, 0.02), xycoords=("data", "axes fraction"), ha="right", color="0.3")
    axes.set(xlabel="images/s asked for", ylabel="latency, ms", ylim=(0, None), xlim=(0, None))
    axes.legend()
    plt.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Measure in turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--litserve-python", type=Path, help="of an environment with litserve")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "photos", 128)
        random = random_model()
        save_model(folder / "model", random.engine.backbone, random.card.model_copy(update={"licence": OWN}))
        files = sorted((folder / "photos").iterdir())
        requests = [request_of(file.read_bytes()) for file in files]
        images = ImageSet.open(folder / "photos")
        process, address = start(folder, arguments.engine)
        try:
            model = foveal.load(folder / "model", engine=arguments.engine).settle(images)
            prepared = torch.from_numpy(model.preprocessing()(files[0]))[None]
            rates: dict[str, list[float]] = {"extract": [], "serve": [], "serve, base64 in JSON": []}
            in_json = [json_request_of(file.read_bytes(), "/v1/embeddings") for file in files]
            singles: dict[str, list[float]] = {"engine": [], "serve": []}
            alone(model, prepared, 1)
            for _ in range(arguments.turns):
                rates["extract"].append(extraction(model, images, StoreSettings(tokens=("cls",), batch_size=8)))
                seen = asyncio.run(saturated(address, requests, clients=arguments.clients, seconds=arguments.seconds))
                assert {status for _, status, _ in seen.answers} == {200}
                rates["serve"].append(len(seen.answers) / arguments.seconds)
                seen = asyncio.run(saturated(address, in_json, clients=arguments.clients, seconds=arguments.seconds))
                assert {status for _, status, _ in seen.answers} == {200}
                rates["serve, base64 in JSON"].append(len(seen.answers) / arguments.seconds)
                if python := arguments.litserve_python:
                    found = litserve_rate(folder, python, files, clients=arguments.clients, seconds=arguments.seconds)
                    rates.setdefault("LitServe, base64 in JSON", []).append(found)
                singles["engine"].append(alone(model, prepared, 3))
                one = asyncio.run(saturated(address, requests, clients=1, seconds=3))
                singles["serve"].append(float(np.median(one.latencies(200))))
            points = []
            for share in (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95):
                rate, seen = share * median(rates["serve"]), Seen()
                asyncio.run(
                    load(lambda: Connection(*address), requests[0], rate=rate, seconds=arguments.seconds, seen=seen)
                )
                points.append((rate, *(float(np.percentile(seen.latencies(200), p)) for p in (50, 99))))
        finally:
            process.terminate()
            process.wait(timeout=20)
    console.print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {model.engine.description}")
    table = Table("", "images/s", "all")
    for name, values in rates.items():
        table.add_row(name, f"{median(values):.1f}", ", ".join(f"{value:.1f}" for value in values))
    console.print(table)
    console.print(f"serve at saturation: {median(rates['serve']) / median(rates['extract']):.1%} of extract")
    ratio = median(singles["serve"]) / median(singles["engine"])
    console.print(
        f"one image: {median(singles['serve']):.1f} ms, {ratio:.2f} of the engine's {median(singles['engine']):.1f}"
    )
    table = Table("images/s asked for", "p50, ms", "p99, ms")
    for rate, middle, worst in points:
        table.add_row(f"{rate:.1f}", f"{middle:.0f}", f"{worst:.0f}")
    console.print(table)
    if arguments.plot:
        draw(points, median(rates["serve"]), arguments.plot)


if __name__ == "__main__":
    main()
