"""The command line under torchrun: several processes, several agents, and one that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from ranks import free_port
from safetensors.torch import load_file

from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import load_recipe

pytestmark = pytest.mark.full  # real launchers, half a minute each

SETTINGS = ["batch_size=4", "parallel.canonical=true", "checkpoints.every_steps=2"]
DEADLINE_S = 200
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(photos: Path, tiny_yaml: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a pretraining by `torchrun *agent`; whatever is left of it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*agent: str, out: str = "run", steps: int = 6) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "torch.distributed.run", *agent, "-m", "foveal", "pretrain"]
        command += [f"--recipe={tiny_yaml}", f"images={photos}", f"out={tmp_path / out}", f"total_steps={steps}"]
        process = subprocess.Popen(
            [*command, *SETTINGS],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for child in [*_children(process.pid), process.pid]:
            _kill(child)
        process.communicate()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """The processes that a torchrun has started, in the order of their ranks."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.is_file() else []


def _wait_for_lines(run: Path, count: int) -> None:
    end = time.monotonic() + DEADLINE_S
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "no progress"
        time.sleep(0.01)


def test_a_killed_process_ends_the_run_and_the_same_command_continues_it(start: Start, tmp_path: Path) -> None:
    agent = ["--standalone", "--nproc-per-node=2"]
    process = start(*agent, steps=2000)
    _wait_for_lines(tmp_path / "run", 3)
    killed = time.monotonic()
    os.kill(_children(process.pid)[1], signal.SIGKILL)
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert time.monotonic() - killed < 90  # 30 s on a machine that does nothing else
    assert process.returncode == 1
    assert "process 1 of 2 was lost" in printed, printed
    assert "run the same command again to continue" in printed
    continued = start(*agent, steps=2000)
    done = len((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines())
    _wait_for_lines(tmp_path / "run", done + 3)
    continued.send_signal(signal.SIGTERM)
    printed, _ = continued.communicate(timeout=DEADLINE_S)
    assert "stopped and saved at step" in printed
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps)))


@pytest.mark.full
def test_torchrun_restarts_a_run_after_a_loss(start: Start, tmp_path: Path) -> None:
    process = start("--standalone", "--nproc-per-node=2", "--max-restarts=1", steps=100_000)
    _wait_for_lines(tmp_path / "run", 4)
    before = _children(process.pid)
    os.kill(before[1], signal.SIGKILL)
    end = time.monotonic() + DEADLINE_S
    while not set(_children(process.pid)) - set(before):
        assert time.monotonic() < end, "no restart"
        time.sleep(0.05)
    _wait_for_lines(tmp_path / "run", len((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()) + 3)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert "stopped and saved at step" in printed
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps)))


@pytest.mark.full
def test_two_agents_train_like_one_process(start: Start, photos: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """As on two computers: each agent starts its own processes and finds the other at a common address."""
    agent = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    agents = [start(*agent, "--rdzv-id=7") for _ in range(2)]
    for process in agents:
        printed, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, printed
    pretrain(load_recipe(str(tiny_yaml), [f"images={photos}", f"out={tmp_path / 'alone'}", *SETTINGS]))
    first, alone = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("run", "alone"))
    assert first.keys() == alone.keys()
    assert all(torch.equal(first[name], alone[name]) for name in alone)
