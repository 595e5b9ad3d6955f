"""Runs the tests of wandb and MLflow in tests/pretrain/test_loggers.py, in an environment that has both."""

import os

import pytest
from child import output_of
from environments import ROOT, layered

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


def test_wandb_and_mlflow_keep_what_a_run_logs() -> None:
    python = layered("trackers", "wandb", "mlflow-skinny", constraints=[ROOT / "tests/full/trackers_constraints.txt"])
    suite = ROOT / "tests/pretrain/test_loggers.py"
    command = [python, "-m", "pytest", suite, "-m", "full", "-rs", "-p", "no:cacheprovider"]
    printed = output_of(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, timeout_s=600)
    assert " passed" in printed
    assert "skipped" not in printed, printed
