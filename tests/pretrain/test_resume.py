"""A run that is killed again and again equals the run that was left alone, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import Run

NUM_KILLS = 10
TOTAL_STEPS = 45
# Prototypes enough for a save to last some steps.
OVERRIDES = [
    f"total_steps={TOTAL_STEPS}",
    "checkpoints.every_steps=3",
    "heads.dino.num_prototypes=4096",
    "heads.dino.bottleneck=64",
]


@pytest.mark.timeout(400)
def test_resume_after_kill_matches_uninterrupted(photos: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """Every second kill is inside a save, the others are some steps after one."""
    whole = Run(photos, tiny_yaml, tmp_path / "whole", *OVERRIDES)
    whole.finish()
    assert [line["step"] for line in whole.numbers()] == list(range(TOTAL_STEPS))

    killed = Run(photos, tiny_yaml, tmp_path / "killed", *OVERRIDES)
    rng = random.Random(0)
    for number in range(NUM_KILLS):
        if number % 2 == 0:
            killed.kill_in_a_save(rng)
        else:
            killed.kill_after_some_steps(rng, most=5)
    killed.finish()
    assert killed.numbers() == whole.numbers()
    assert killed.newest() == TOTAL_STEPS
    assert killed.weights() == whole.weights()


class Command:
    """`foveal pretrain` as a process of its own, started from the command line."""

    def __init__(self, run: Run) -> None:
        code = "import sys, torch; torch.set_num_threads(1); from foveal.cli.main import main; sys.exit(main())"
        self.words = [sys.executable, "-c", code, *run.arguments]
        self.run = run

    def start(self) -> "subprocess.Popen[str]":
        """Start it and wait for three steps."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(self.words, start_new_session=True, **pipes)  # type: ignore[call-overload]
        deadline = time.monotonic() + 100
        while self.run.num_lines() < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGUSR1, 0)])
def test_a_signal_to_all_processes_of_a_run_saves_and_continues(
    photos: Path, tiny_yaml: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Ctrl-C and batch systems reach the loading workers too; they must not die under the last step."""
    settings = ("num_workers=1", "total_steps=100000", "checkpoints.every_steps=90000")
    run = Run(photos, tiny_yaml, tmp_path / "run", *settings)
    with Command(run).start() as process:
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "stopped and saved at step" in out
    assert "Traceback" not in errors
    saved = [path.name for path in (run.out / "checkpoints").iterdir()]
    assert saved == [f"step_{run.num_lines():08d}"]


def test_the_same_command_runs_right_after_a_kill(photos: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """The workers of a killed process live on for some seconds: they must not hold its lock."""
    run = Run(photos, tiny_yaml, tmp_path / "run", "num_workers=1", "total_steps=100000")
    command = Command(run)
    with command.start() as process:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children = workers.read_text().split() if workers.is_file() else []
        process.kill()
        process.wait(timeout=60)
        again = subprocess.run([*command.words, "--steps=1"], capture_output=True, text=True, timeout=120)
        for child in children:
            if Path(f"/proc/{child}").exists():
                os.kill(int(child), signal.SIGKILL)
    assert again.returncode == 0, again.stderr
