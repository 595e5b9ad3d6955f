"""Runs tests/full/browser, the pages in Chromium, in an environment layered over this one: .venv-browser."""

import os

import pytest
from child import output_of
from environments import ROOT, layered

BROWSER = ROOT / "tests/full/browser"

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def test_suite_of_the_pages_passes() -> None:
    python = layered("browser", "playwright", constraints=[BROWSER / "constraints.txt"])
    command = [python, "-m", "pytest", BROWSER, "-rs", "-p", "no:cacheprovider"]
    settings = {"FOVEAL_BROWSER": "1", "PYTHONPATH": str(ROOT / "src")}
    assert " passed" in output_of(command, cwd=ROOT, env=os.environ | settings, timeout_s=900)
