"""Runs tests/full/peers beside timm and open_clip, in an environment layered over this one: .venv-peers."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from child import output_of

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "tests/full/peers"
PACKAGES = ("timm", "open_clip_torch", "torchvision")

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


def make_environment(folder: Path) -> Path:
    """Return the interpreter of an environment that adds the peers to this one; torch is not installed twice."""
    constraints = [ROOT / "constraints.txt", PEERS / "constraints.txt"]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in constraints) + sys.version.encode()).hexdigest()
    python = folder / "bin/python"
    if (folder / "made").is_file() and (folder / "made").read_text() == stamp:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    site_packages = next((folder / "lib").glob("python*/site-packages"))
    (site_packages / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = [f"--constraint={path}" for path in constraints]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *options, *PACKAGES], check=True)
    (folder / "made").write_text(stamp)
    return python


def test_suite_of_the_peers_passes() -> None:
    try:
        python = make_environment(ROOT / ".venv-peers")
    except subprocess.CalledProcessError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no environment with timm and open_clip can be made: {error}")
    # Warnings of the peers are not ours to repair.
    command = [python, "-m", "pytest", PEERS, "-W", "ignore", "-p", "no:cacheprovider", "-o", "timeout=900"]
    settings = {"FOVEAL_PEERS": "1", "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    assert " passed" in output_of(command, cwd=ROOT, env=os.environ | settings, timeout_s=2400)
