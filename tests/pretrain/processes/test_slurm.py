"""The batch script for SLURM, with programs in place of the cluster's that do what theirs do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranks import free_port

pytestmark = pytest.mark.full  # real launchers, half a minute each

SCRIPT = Path(__file__).resolve().parents[3] / "docs" / "slurm.sbatch"
DEADLINE_S = 200
# Starts the tasks, passes signals on to them, and ends with the worst of their exit codes.
SRUN = r"""#!/bin/bash
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks="$tasks $!"
done
trap 'kill -USR1 $tasks' USR1
worst=0
for task in $tasks; do
    wait $task; code=$?
    while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
    [ $code -gt $worst ] && worst=$code
done
exit $worst
"""
SCONTROL = """#!/bin/bash
[ "$1 $2" = "show hostnames" ] && echo 127.0.0.1 && echo 127.0.0.2
[ "$1" = requeue ] && echo "$2" >> "$REQUEUED"
exit 0
"""
Submit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def submit(photos: Path, tiny_yaml: Path, tmp_path: Path) -> Iterator[Submit]:
    """Run the batch script on two tasks; whatever is left of it is ended with the test."""
    programs = {"srun": SRUN, "scontrol": SCONTROL, "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def run(*options: str) -> "subprocess.Popen[str]":
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "REQUEUED": str(tmp_path / "requeued"),
            "SLURM_JOB_ID": str(free_port() - 20000),
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": "2",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            ["bash", SCRIPT, f"--recipe={tiny_yaml}", f"images={photos}", f"out={tmp_path / 'run'}", *options],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_job_near_its_limit_is_saved_queued_again_and_continued(submit: Submit, tmp_path: Path) -> None:
    settings = ["total_steps=100000", "checkpoints.every_steps=90000"]
    job = submit(*settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + DEADLINE_S
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 3:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end, "no progress"
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    printed, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 0, printed
    assert "stopped and saved at step" in printed
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1
    done = metrics.read_bytes().count(b"\n")
    again = submit(*settings, "--steps=2")
    printed, _ = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0, printed
    assert metrics.read_bytes().count(b"\n") == done + 2
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1  # it was not near its limit


def test_a_job_that_fails_is_not_queued_again(submit: Submit, tmp_path: Path) -> None:
    job = submit("batch_sise=4")
    printed, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 2
    assert "did you mean 'batch_size'?" in printed
    assert not (tmp_path / "requeued").exists()
