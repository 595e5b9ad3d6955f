"""Starts `foveal serve` as a process of its own, which at the end has to stop in good order."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN_S = 120


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """Yield HOST:PORT of a server of FOLDER/model, on PyTorch; its log is FOLDER/log."""
    log = folder / "log"
    command = [sys.executable, "-m", "foveal", "serve", str(folder / "model"), "--port=0", "--engine=torch", *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        ends = time.monotonic() + READY_WITHIN_S
        while " at http://" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.1)
        yield log.read_text().partition(" at http://")[2].split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
