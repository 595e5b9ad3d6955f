"""Environments layered over this one: what a suite needs beside it, without a second torch."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def layered(name: str, *packages: str, constraints: Sequence[Path] = (), alone: bool = False) -> Path:
    """Return the interpreter of `.venv-NAME`: this environment and, over it, packages of pinned versions.

    With `alone` it is an environment without this one and its versions.

    It is made again only when the versions change. Where it cannot be made the test skips, and fails under CI.
    """
    folder = ROOT / f".venv-{name}"
    pinned = [*([] if alone else [ROOT / "constraints.txt"]), *constraints]
    base = sysconfig.get_path("purelib")
    wanted = "\n".join([sys.version, base, *packages, *(path.read_text() for path in pinned)])
    stamp, made = hashlib.sha256(wanted.encode()).hexdigest(), folder / "made"
    python = folder / "bin/python"
    if made.is_file() and made.read_text() == stamp:
        return python
    _run(sys.executable, "-m", "venv", "--clear", folder)
    site_packages = next((folder / "lib").glob("python*/site-packages"))
    if not alone:
        (site_packages / "base.pth").write_text(base + "\n")
    _run(python, "-m", "pip", "install", "--quiet", *(f"--constraint={path}" for path in pinned), *packages)
    made.write_text(stamp)
    return python


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200)
    if done.returncode:
        reason = f"an environment cannot be made here: {done.stdout.strip()[-600:]}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
