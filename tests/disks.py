"""Disks that are full, small or read-only, as far as a test may make them so."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def no_file_above(num_bytes: int) -> Iterator[None]:
    """Let the operating system refuse to write larger files, as a full disk would; needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted_disk(folder: Path, *, size: str) -> Iterator[Path]:
    """Give a real disk of a size such as "1m" at a new folder; the test skips where it has no right to mount."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, timeout=30
        )
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("not allowed to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True, timeout=30)


def make_read_only(disk: Path) -> None:
    """Let a disk of `mounted_disk` be one that became read-only."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=30)
