"""Runs tests/full/peers beside timm and open_clip, in an environment layered over this one: .venv-peers."""

import os

import pytest
from child import output_of
from environments import ROOT, layered

PEERS = ROOT / "tests/full/peers"
PACKAGES = ("timm", "open_clip_torch", "torchvision")

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]


def test_suite_of_the_peers_passes() -> None:
    python = layered("peers", *PACKAGES, constraints=[PEERS / "constraints.txt"])
    # Warnings of the peers are not ours to repair.
    command = [python, "-m", "pytest", PEERS, "-W", "ignore", "-p", "no:cacheprovider", "-o", "timeout=900"]
    settings = {"FOVEAL_PEERS": "1", "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    assert " passed" in output_of(command, cwd=ROOT, env=os.environ | settings, timeout_s=2400)
