"""A run that is killed again and again equals the run that was left alone, to the last bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foveal.pretrain.run import TIMINGS

NUM_KILLS = 6
TOTAL_STEPS = 30
# Prototypes enough for a save to last some milliseconds, so that it can be hit.
OVERRIDES = [
    f"total_steps={TOTAL_STEPS}",
    "checkpoints.every_steps=3",
    "heads.dino.num_prototypes=4096",
    "heads.dino.bottleneck=64",
]


class Run:
    """A pretraining process on one thread, which is what the bits are promised for."""

    def __init__(self, photos: Path, recipe: Path, out: Path, *overrides: str) -> None:
        self.out = out
        code = "import sys, torch; torch.set_num_threads(1); from foveal.cli.main import main; sys.exit(main())"
        self.command = [sys.executable, "-c", code, "pretrain", f"--recipe={recipe}", f"images={photos}", f"out={out}"]
        self.command += [*OVERRIDES, *overrides]

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> None:
        with self.start() as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    def num_lines(self) -> int:
        path = self.out / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def is_saving(self) -> bool:
        return any((self.out / "checkpoints").glob(".step_*.tmp"))

    def clean(self) -> None:
        """Take away what the last kill left, so that the next save can be seen."""
        for torn in (self.out / "checkpoints").glob(".step_*.tmp"):
            torn.rename(self.out / f"torn{time.monotonic_ns()}")

    def wait_until(self, process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> bool:
        """Return True once `reached`, False when the process ended before."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if reached():
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.0005)
        raise TimeoutError(f"no progress within 60 s; metrics: {self.num_lines()} lines")

    def numbers(self) -> list[dict[str, Any]]:
        """Metrics, without those that measure time."""
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]

    def weights(self) -> dict[str, bytes]:
        newest = max((self.out / "checkpoints").glob("step_*"))
        assert newest.name == f"step_{TOTAL_STEPS:08d}"
        files = [*newest.glob("*.safetensors"), *(self.out / "model").glob("*.safetensors")]
        return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


@pytest.mark.timeout(280)
def test_resume_after_kill_matches_uninterrupted(photos: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """Even kills wait for a save to begin, odd ones for some steps and then a moment more."""
    whole = Run(photos, tiny_yaml, tmp_path / "whole")
    whole.finish()
    assert [line["step"] for line in whole.numbers()] == list(range(TOTAL_STEPS))

    killed = Run(photos, tiny_yaml, tmp_path / "killed")
    rng = random.Random(0)
    during_save = 0
    for number in range(NUM_KILLS):
        killed.clean()
        with killed.start() as process:
            if number % 2 == 0:
                delay = rng.uniform(0, 0.004)
                hit = killed.wait_until(process, killed.is_saving)
            else:
                delay = rng.uniform(0, 0.03)
                # the lines of steps that are run again go first, so count from the last checkpoint
                newest = max((int(p.name[5:]) for p in (killed.out / "checkpoints").glob("step_*")), default=0)
                target = newest + rng.randint(1, 4)
                killed.wait_until(process, lambda newest=newest: killed.num_lines() <= newest)  # type: ignore[misc]
                hit = killed.wait_until(process, lambda target=target: killed.num_lines() >= target)  # type: ignore[misc]
            time.sleep(delay)
            process.kill()
        assert hit, f"the run was over before kill {number}"
        assert process.returncode == -signal.SIGKILL
        during_save += killed.is_saving()
    assert during_save >= 1
    killed.finish()
    assert killed.numbers() == whole.numbers()
    assert killed.weights() == whole.weights()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_saves_and_continues(
    photos: Path, tiny_yaml: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C and batch systems reach the loading workers too; they must not die under the last step."""
    run = Run(
        photos, tiny_yaml, tmp_path / "run", "num_workers=1", "total_steps=100000", "checkpoints.every_steps=90000"
    )
    with run.start() as process:
        assert run.wait_until(process, lambda: run.num_lines() >= 3)
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "stopped and saved at step" in out
    assert "Traceback" not in errors
    saved = [path.name for path in (run.out / "checkpoints").iterdir()]
    assert saved == [f"step_{run.num_lines():08d}"]


def test_the_same_command_runs_right_after_a_kill(photos: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """The workers of a killed process live on for some seconds: they must not hold its lock."""
    run = Run(photos, tiny_yaml, tmp_path / "run", "num_workers=1", "total_steps=100000")
    with run.start() as process:
        assert run.wait_until(process, lambda: run.num_lines() >= 3)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = workers.read_text().split() if workers.is_file() else []
        process.kill()
        process.wait(timeout=60)
        again = subprocess.run([*run.command, "--steps=1"], capture_output=True, text=True, timeout=120)
        for child in children:
            if Path(f"/proc/{child}").exists():
                os.kill(int(child), signal.SIGKILL)
    assert again.returncode == 0, again.stderr
