import math

import pytest

from foveal.pretrain.schedules import linear_then_constant, warmup_cosine


def test_warmup_includes_both_ends() -> None:
    values = [warmup_cosine(s, base=3.0, final=0.0, total_steps=100, warmup_steps=4) for s in range(5)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 3.0, 3.0])


def test_warmup_of_one_step_holds_its_start_only() -> None:
    assert warmup_cosine(0, base=3.0, final=0.0, total_steps=5, warmup_steps=1) == 0.0
    assert warmup_cosine(1, base=3.0, final=0.0, total_steps=5, warmup_steps=1) == 3.0


def test_cosine_by_hand() -> None:
    """Without a warm-up, N = 4: final + (base - final)(1 + cos(pi i / 4)) / 2."""
    values = [warmup_cosine(s, base=0.992, final=1.0, total_steps=4) for s in range(6)]
    half = math.sqrt(0.5)
    expected = [0.992, 1 - 0.004 * (1 + half), 0.996, 1 - 0.004 * (1 - half), 1.0, 1.0]
    assert values == pytest.approx(expected, rel=1e-12)


def test_cosine_runs_over_the_steps_after_the_warmup() -> None:
    assert warmup_cosine(6, base=2.0, final=1.0, total_steps=10, warmup_steps=2) == pytest.approx(1.5)
    assert warmup_cosine(10, base=2.0, final=1.0, total_steps=10, warmup_steps=2) == 1.0


def test_a_run_of_warmup_only() -> None:
    assert [warmup_cosine(s, base=1.0, final=0.5, total_steps=3, warmup_steps=3) for s in range(4)] == [0, 0.5, 1, 0.5]


def test_linear_then_constant_by_hand() -> None:
    values = [linear_then_constant(s, start=0.04, end=0.07, warmup_steps=4) for s in range(6)]
    assert values == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert linear_then_constant(0, start=0.04, end=0.07, warmup_steps=0) == 0.07
    assert linear_then_constant(0, start=0.04, end=0.07, warmup_steps=1) == 0.04
