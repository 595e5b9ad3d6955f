"""The first of the spoilt requests that `benchmarks/serve_fuzz.py` sends: no answer is an accident."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio


async def test_spoilt_requests_are_answered_on_purpose() -> None:
    place = Path(__file__).parents[2] / "benchmarks/serve_fuzz.py"
    spec = importlib.util.spec_from_file_location("serve_fuzz", place)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["serve_fuzz"] = script
    spec.loader.exec_module(script)
    statuses, faults = await script.fuzz(200, 1)
    assert faults == []
    assert {200, 400, 404, 422} <= set(statuses)
