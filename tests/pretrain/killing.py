"""A pretraining process that is killed and started again; the resume tests and `benchmarks/soak_kill.py` do it."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from foveal.cli.main import main
from foveal.pretrain.run import TIMINGS

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["foveal.pretrain.loop"])  # imported once, not once a process


class Run:
    """A pretraining process on one thread, which is what the bits are promised for."""

    def __init__(self, photos: Path, recipe: Path, out: Path, *overrides: str) -> None:
        self.out = out
        self.arguments = ["pretrain", f"--recipe={recipe}", f"images={photos}", f"out={out}", *overrides]

    def start(self) -> BaseProcess:
        process = _CONTEXT.Process(target=_foveal, args=(self.arguments,))
        process.start()
        return process

    def finish(self, *, limit_s: float = 200) -> None:
        process = self.start()
        process.join(limit_s)
        assert process.exitcode == 0

    def num_lines(self) -> int:
        path = self.out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def newest(self) -> int:
        """Step of the newest checkpoint."""
        return max((int(path.name[5:]) for path in (self.out / "checkpoints").glob("step_*")), default=0)

    def is_saving(self) -> bool:
        return any((self.out / "checkpoints").glob(".step_*.tmp"))

    def clean(self) -> None:
        """Take away what the last kill left, so that the next save can be seen."""
        for torn in (self.out / "checkpoints").glob(".step_*.tmp"):
            torn.rename(self.out / f"torn{time.monotonic_ns()}")

    def wait_until(self, process: BaseProcess, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 100
        while not reached():
            if process.exitcode is not None:
                raise AssertionError(f"it ended with {process.exitcode} before it could be killed")
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"no progress within 100 s; metrics: {self.num_lines()} lines")
            time.sleep(0.0005)

    def kill_in_a_save(self, rng: random.Random) -> None:
        """Kill it somewhere between the beginning of a save and its end.

        It is stopped first: if the save is over by then, it may go on to the next one.
        """
        self.clean()
        process = self.start()
        while True:
            self.wait_until(process, self.is_saving)
            time.sleep(rng.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGSTOP)
            if self.is_saving():
                break
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join(100)
        assert self.is_saving()

    def kill_after_some_steps(self, rng: random.Random, *, most: int) -> None:
        """Kill it after up to `most` steps beyond its last checkpoint, and a moment more."""
        newest = self.newest()
        process = self.start()
        self.wait_until(process, lambda: self.num_lines() <= newest)  # the lines of steps that are run again go first
        target = newest + rng.randint(1, most)
        self.wait_until(process, lambda: self.num_lines() >= target)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join(100)

    def numbers(self) -> list[dict[str, Any]]:
        """Metrics, without those that measure time."""
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]

    def weights(self) -> dict[str, bytes]:
        """All weights and states that it ended with."""
        newest = self.out / "checkpoints" / f"step_{self.newest():08d}"
        files = [*newest.glob("*.safetensors"), *(self.out / "model").glob("*.safetensors")]
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def _foveal(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(arguments))
