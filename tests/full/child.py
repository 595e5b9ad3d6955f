"""Programs that suites with an environment of their own start: what they printed is in the failure, a hang's too."""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest


def output_of(
    command: Sequence[str | Path], *, timeout_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Return what a program printed; the test fails with all its output where it fails or does not end in time."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile() as file:  # a pipe would be held open by what a killed program leaves behind
        try:
            done = subprocess.run(
                command, cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
            )
            how = f"exited with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            how = f"did not end within {timeout_s:.0f} s"
        file.seek(0)
        printed = file.read().decode(errors="replace")
    if how:
        pytest.fail(f"{command} {how}; it printed:\n{printed}")
    return printed
