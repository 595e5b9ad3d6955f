"""What every evaluation protocol returns, and the interval around each of its numbers."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from foveal.errors import FovealError

NUM_DRAWS = 1000
_CONFIDENCE = 0.95

Statistic = Callable[[np.ndarray], float]


class Measure(NamedTuple):
    """One number that a protocol found.

    Attributes:
        metric: its name, such as "top-1" or "mIoU".
        value: in `unit`.
        unit: "%", "points", "m", or "" for a plain number.
        low: lower end of the 95 % bootstrap interval over the test samples; `value` where there is nothing to draw.
        high: upper end.
    """

    metric: str
    value: float
    unit: str
    low: float
    high: float

    @property
    def text(self) -> str:
        """The value as it is shown."""
        return shown(self.value, self.unit)

    @property
    def interval(self) -> str:
        """The interval as it is shown; nothing for a setting that was chosen, which has none."""
        return shown_interval(self.low, self.high, self.unit)


def shown(value: float, unit: str) -> str:
    """Return a number with the digits that mean something: two decimals of a percentage, four digits of the rest.

    Example:
        >>> shown(81.23456, "%"), shown(0.3491234, "m")
        ('81.23', '0.3491')
    """
    return f"{value:.2f}" if unit in ("%", "points") else f"{value:.4g}"


def shown_interval(low: float, high: float, unit: str) -> str:
    """Return an interval as it is shown: "" where a number without a unit has no width.

    Example:
        >>> shown_interval(80.5, 82.25, "%"), shown_interval(4.0, 4.0, "")
        ('80.50 to 82.25', '')
    """
    return "" if low == high and not unit else f"{shown(low, unit)} to {shown(high, unit)}"


def measured(
    metric: str, statistic: Statistic, num_samples: int, *, unit: str, seed: int = 0, num_draws: int = NUM_DRAWS
) -> Measure:
    """Return a statistic of the test samples with its percentile bootstrap interval (Efron 1979).

    Args:
        metric: its name.
        statistic: takes the numbers (n,) int64 of the samples to count, with repeats, and returns its value in `unit`.
        num_samples: of the test set; what is drawn is a whole sample (an image, a query, a video), never a pixel.
        unit: of the value.
        seed: of the draws; the same seed gives the same interval.
        num_draws: of the bootstrap.

    Raises:
        FovealError: no sample.
    """
    if num_samples < 1:
        raise FovealError(f"{metric}: no test sample is left to measure; check the test set")
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(num_samples, size=num_samples)) for _ in range(num_draws)]
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Measure(metric, statistic(np.arange(num_samples)), unit, float(low), float(high))


def measured_mean(metric: str, values: Sequence[float] | np.ndarray, *, unit: str, seed: int = 0) -> Measure:
    """Return the mean of one value a sample, such as 100 where a class is right and 0 where not; see `measured`."""
    numbers = np.asarray(values, dtype=np.float64)
    return measured(metric, lambda drawn: float(numbers[drawn].mean()), len(numbers), unit=unit, seed=seed)
