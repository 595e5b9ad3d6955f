"""Requests of the Open Inference Protocol that are wrong in every way that was thought of, to a server in this process.

    python benchmarks/serve_fuzz.py                    # 20,000 cases
    python benchmarks/serve_fuzz.py --cases 500 --seed 7

Each case begins as a good request and is spoilt in up to three places: shapes, types, byte counts, negative and huge
numbers, duplicates, NaN, nesting, lengths, bytes of the JSON itself. No answer may have a status of 500 or above but
503 and 504, and every error is JSON with a code and a field. A case is made of the seed and its number alone.
"""

import argparse
import asyncio
import collections
import json
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch

from foveal.backbone.card import Card
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.serve.app import create_app
from foveal.serve.loaded import Loaded
from foveal.serve.service import Service
from foveal.serve.settings import ServeSettings

HEADER = "Inference-Header-Content-Length"
ODD = [
    0, -1, 1, 2, 7, 65, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 1.5, 1e308, float("nan"), float("inf"),
    None, True, "", "4", "../../etc/passwd", "\u0000", [], {}, [[]], {"a": []},
]  # fmt: skip


class Case(NamedTuple):
    """A request: its address, body and headers."""

    path: str
    body: bytes
    headers: dict[str, str]


def case_of(seed: int, number: int) -> Case:
    """Return a case: a request, spoilt."""
    draw = np.random.default_rng([seed, number])
    shape = [int(draw.integers(1, 3)), 3, 7 * int(draw.integers(1, 4)), 7 * int(draw.integers(1, 4))]
    values = draw.standard_normal(shape).astype(np.float32)
    if draw.random() < 0.15:
        values.flat[draw.integers(values.size)] = [np.nan, np.inf, -np.inf, 3e38][draw.integers(4)]
    tensor: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": shape}
    block = b""
    if draw.random() < 0.3:
        files = [draw.bytes(int(draw.integers(0, 60))) for _ in range(shape[0])]
        block = b"".join(struct.pack("<I", len(one)) + one for one in files)
        tensor = {"name": "encoded", "datatype": "BYTES", "shape": shape[:1]}
    elif draw.random() < 0.6:
        block = values.tobytes()
    if block:
        tensor["parameters"] = {"binary_data_size": len(block)}
    else:
        tensor["data"] = values.tolist() if draw.random() < 0.5 else values.ravel().tolist()
    names = [name for name in ("cls", "patches", "registers") if draw.random() < 0.6]
    outputs = [{"name": name, "parameters": {"binary_data": bool(draw.random() < 0.5)}} for name in names]
    request: dict[str, Any] = {"id": str(number), "inputs": [tensor], **({"outputs": outputs} if outputs else {})}
    for _ in range(draw.integers(0, 4)):
        _spoil(draw, request)
    text = json.dumps(request).encode()
    headers = {HEADER: str(len(text))} if block else {}
    path = (
        f"/v2/models/{['tiny', 'backbone', 'ensemble', 'tiny/versions/1', 'tiny/versions/-1'][draw.integers(5)]}/infer"
    )
    return _spoilt_bytes(draw, Case(path, text + block, headers))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every place in JSON: what holds it, and its key; of long lists the first and the last."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else sorted({0, 1, len(value) - 1} & set(range(len(value))))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def _spoil(draw: np.random.Generator, request: dict[str, Any]) -> None:
    places = _places(request)
    if not places:
        return
    holder, key = places[draw.integers(len(places))]
    odd = ODD[draw.integers(len(ODD))]
    changes: list[Callable[[], Any]] = [
        lambda: holder.__setitem__(key, odd),
        lambda: holder.pop(key),
        lambda: holder.append(holder[key]) if isinstance(holder, list) else holder.__setitem__(f"{key}x", odd),
        lambda: holder.__setitem__(key, [holder[key]]),
        lambda: holder.__setitem__(key, holder[key] * 2 if isinstance(holder[key], list | str | int) else odd),
    ]
    changes[draw.integers(len(changes))]()


def _spoilt_bytes(draw: np.random.Generator, case: Case) -> Case:
    path, body, headers = case
    choice = draw.integers(8)
    if choice == 0:
        body = body[: draw.integers(len(body) + 1)]
    elif choice == 1:
        body += draw.bytes(int(draw.integers(1, 9)))
    elif choice == 2:
        headers = {HEADER: str(ODD[draw.integers(14)])}
    elif choice == 3:
        at = int(draw.integers(len(body)))
        body = body[:at] + draw.bytes(1) + body[at + 1 :]
    elif choice == 4 and draw.random() < 0.2:
        at = int(draw.integers(len(body)))
        body = body[:at] + b"[" * int(draw.integers(1, 3000)) + body[at:]
    return Case(path, body, headers)


def fault_of(answer: httpx.Response) -> str | None:
    """Return what is wrong with an answer, or None."""
    if answer.status_code >= 500 and answer.status_code not in (503, 504):
        return f"status {answer.status_code}"
    if answer.status_code == 200:
        length = int(answer.headers.get(HEADER, len(answer.content)))
        json.loads(answer.content[:length], parse_constant=_refuse)
        return None
    error = answer.json()
    right = isinstance(error.get("error"), str) and bool(error.get("code")) and "field" in error
    return None if right else f"no error: {answer.text[:100]}"


def _refuse(word: str) -> None:
    raise ValueError(f"{word} in JSON")


async def fuzz(cases: int, seed: int) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """Send cases and return how often each status was answered, and the faults by number."""
    config = backbone_config("vit_nano", depth=1, num_registers=2, patch_size=7, image_size=28)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    card = Card(name="tiny", backbone=config, crop_size=28, resize_size=32, licence=OWN)
    service = Service(Loaded("tiny", Model(TorchEngine(backbone), card)), ServeSettings(max_wait_ms=0))
    app = create_app(service)
    statuses: dict[int, int] = collections.Counter()
    faults: list[tuple[int, str]] = []
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        for number in range(cases):
            case = case_of(seed, number)
            answer = await client.post(case.path, content=case.body, headers=case.headers)
            statuses[answer.status_code] += 1
            if fault := fault_of(answer):
                faults.append((number, fault))
    return statuses, faults


def main() -> None:
    """Send all cases; exit with 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    statuses, faults = asyncio.run(fuzz(arguments.cases, arguments.seed))
    print(f"{arguments.cases} cases; status: {dict(sorted(statuses.items()))}; faults: {len(faults)}")
    for number, fault in faults[:20]:
        print(f"case {number}: {fault}")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
