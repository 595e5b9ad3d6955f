import numpy as np
import pytest

from foveal.errors import FovealError
from foveal.evaluate.results import measured, measured_mean


def test_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    right = np.zeros(400)
    right[:120] = 100
    found = measured_mean("top-1", right, unit="%")
    assert (found.value, found.unit) == (30, "%")
    half = 1.96 * 100 * (0.3 * 0.7 / 400) ** 0.5
    assert [found.low, found.high] == pytest.approx([30 - half, 30 + half], abs=0.6)
    assert found == measured_mean("top-1", right, unit="%")
    assert found != measured_mean("top-1", right, unit="%", seed=1)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(100):
        values = generator.exponential(size=60)
        found = measured(
            "median", lambda drawn, v=values: float(np.median(v[drawn])), 60, unit="", seed=number, num_draws=200
        )
        covered += found.low <= np.log(2) <= found.high
    assert 88 <= covered <= 100


def test_nothing_to_measure_is_said() -> None:
    with pytest.raises(FovealError, match="no test sample is left"):
        measured_mean("top-1", [], unit="%")
