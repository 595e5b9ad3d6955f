"""Probabilities of being right, and thresholds that keep a precision, against known truth."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import beta

from foveal.annotate.calibration import calibrate, least_held_out, share_measure
from foveal.errors import FovealError


def drawn(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, whether each is right, and the probability that it was drawn by."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(2, 3, count)
    truth = 1 / (1 + np.exp(1 - 0.9 * scores))
    return scores, generator.random(count) < truth, truth


def test_probabilities_find_the_curve_that_drew_the_answers() -> None:
    scores, right, truth = drawn(20_000, seed=0)
    found = calibrate(scores, right)
    # two parameters from 20,000 draws: standard errors below 0.02
    assert abs(found.slope - 0.9) < 0.06
    assert np.abs(found.probabilities(scores) - truth).max() < 0.03


def test_probabilities_are_platts_also_where_all_are_right() -> None:
    scores, right = np.array([0.2, 0.4, 0.5, 0.9, 1.3]), np.array([False, False, True, False, True])
    targets = np.where(right, 3 / 4, 1 / 5)

    def loss(line: np.ndarray) -> float:
        odds = line[0] * scores + line[1]
        return float((np.logaddexp(0, -odds) * targets + np.logaddexp(0, odds) * (1 - targets)).sum())

    slope, intercept = minimize(loss, np.zeros(2), tol=1e-12).x
    found = calibrate(scores, right)
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), abs=1e-4)
    assert calibrate(scores, np.ones(5, bool)).probabilities(scores) == pytest.approx([6 / 7] * 5, abs=1e-4)
    assert calibrate(np.full(5, 3.0), right).probabilities(np.array([3.0, 9.0])) == pytest.approx([0.42, 0.42])


def test_the_threshold_keeps_the_wanted_precision_as_often_as_it_says() -> None:
    scores, _, truth = drawn(20_000, seed=1)
    broken, coverage = 0, []
    for seed in range(60):
        found = calibrate(*drawn(400, seed=100 + seed)[:2], precision=0.9)
        accepted = found.accepts(scores)
        coverage.append(accepted.mean())
        broken += bool(accepted.any()) and truth[accepted].mean() < 0.9
    assert broken <= 3  # 5 % of 60
    assert np.mean(coverage) > 0.15
    assert found.states(np.array([found.threshold, found.threshold - 1e-9])) == ["proposed", "unsure"]


def test_the_lowest_of_the_thresholds_that_pass_is_taken() -> None:
    scores, right = np.arange(100.0), np.arange(100) >= 30  # the 70 highest are right
    found = calibrate(scores, right)
    # counts 49, 56, 63, 70, 78, 85, 92, 100; of the first 70 all are right, of 78 with 8 wrong 0.9 is not shown
    assert (found.threshold, found.num_answered, found.num_right, found.coverage) == (30.0, 70, 70, 0.7)
    assert found.precision is not None
    assert found.precision.low == pytest.approx(100 * beta.ppf(0.025, 70, 1))
    assert found.precision.high == 100
    assert "70 of 100 held-out answers are at the threshold of 30 or above, precision 100.00 %" in found.summary


def test_equal_scores_are_answered_together_or_not_at_all() -> None:
    scores, right = np.repeat([1.0, 2.0], 60), np.repeat([False, True], 60)
    assert calibrate(scores, right).threshold == 2.0
    assert calibrate(np.ones(120), right).threshold is None


def test_too_few_held_out_answers_make_everything_unsure() -> None:
    assert least_held_out(0.9) == 49
    few = calibrate(np.arange(48.0), np.ones(48, bool))
    assert few.threshold is None
    assert few.precision is None
    assert not few.accepts(np.array([1e9])).any()
    assert "48 held-out answers are too few to show a precision of 90 %, which takes 49; every answer is" in few.summary
    assert calibrate(np.arange(49.0), np.ones(49, bool)).num_answered == 49
    assert calibrate(np.empty(0), np.empty(0, bool)).probabilities(np.array([3.0])) == 0.5


def test_scores_that_tell_nothing_make_everything_unsure() -> None:
    generator = np.random.default_rng(0)
    found = calibrate(generator.random(500), generator.random(500) < 0.7)
    assert found.threshold is None
    assert "no threshold reaches a precision of 90 % for sure on 500 held-out answers" in found.summary


def test_shares_have_exact_intervals() -> None:
    found = share_measure("top-1", 7, 10)
    assert (found.value, found.low, found.high) == pytest.approx(
        (70, 100 * beta.ppf(0.025, 7, 4), 100 * beta.ppf(0.975, 8, 3))
    )


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(FovealError, match="precision=1; choose a share above 0 and below 1"):
        calibrate(np.ones(3), np.ones(3, bool), precision=1)
    with pytest.raises(FovealError, match=r"scores of shape \(3,\), right of shape \(2,\) and type bool"):
        calibrate(np.ones(3), np.ones(2, bool))
    with pytest.raises(FovealError, match="type float64; give one number and one bool"):
        calibrate(np.ones(3), np.ones(3))
    with pytest.raises(FovealError, match="NaN"):
        calibrate(np.array([1, np.nan]), np.ones(2, bool))
