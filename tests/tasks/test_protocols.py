import math

import pytest

from foveal.errors import FovealError
from foveal.tasks.protocols import FitSettings, fit_settings, learning_rate_at


def test_masks_warm_up_and_fall_linearly() -> None:
    settings = fit_settings("segmentation", steps=40_000)
    assert (settings.learning_rate, settings.weight_decay, settings.clip) == (1e-3, 1e-4, None)
    assert learning_rate_at(0, settings) == pytest.approx(1e-9)
    assert learning_rate_at(750, settings) == pytest.approx(1e-3 * 0.5 * (1 - 750 / 40_000), rel=1e-4)
    assert learning_rate_at(1_500, settings) == pytest.approx(1e-3 * (1 - 1_500 / 40_000))
    assert learning_rate_at(39_999, settings) == pytest.approx(1e-3 / 40_000)


def test_depth_rises_for_a_third_and_falls_along_a_cosine() -> None:
    settings = fit_settings("depth", steps=38_400, learning_rate=None)
    assert (settings.learning_rate, settings.beta2, settings.clip) == (3e-4, 0.99, 35.0)
    assert learning_rate_at(0, settings) == pytest.approx(3e-7)
    assert learning_rate_at(12_800, settings) == pytest.approx(3e-4 * 0.75)  # (1 + cos 60 degrees) / 2
    assert learning_rate_at(25_600, settings) == pytest.approx(3e-4 * 0.25)
    rates = [learning_rate_at(step, settings) for step in range(0, 38_400, 100)]
    assert 0.3 < rates.index(max(rates)) / len(rates) <= 1 / 3


def test_the_rate_of_a_very_short_fit_is_finite() -> None:
    rates = [learning_rate_at(step, FitSettings(steps=2)) for step in range(2)]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, .* above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan, .* both finite"),
        ({"weight_decay": float("inf")}, "weight_decay=inf; .* both finite"),
        ({"crop_size": (0, 5)}, r"crop_size=\(0, 5\); give at least 1 pixel"),
        ({"scales": (2.0, 1.0)}, r"scales=\(2.0, 1.0\)"),
        ({"schedule": "cubic"}, "schedule='cubic'; .* linear or one_cycle"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, object], said: str) -> None:
    with pytest.raises(FovealError, match=said):
        fit_settings("segmentation", **changed)


def test_rates_fall_as_a_power() -> None:
    settings = FitSettings(steps=10, learning_rate=2.0, schedule="poly", warm_up=0)
    assert learning_rate_at(5, settings) == pytest.approx(2 * 0.5**0.9)
    assert learning_rate_at(0, settings) == 2  # no warm-up, so that nothing rises
