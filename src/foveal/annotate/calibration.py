"""How far scores can be trusted: as probabilities of being right, and from which of them on an answer is worth giving.

Shapes: N scores; M of them held out, whose truth is known.
"""

import math
from dataclasses import dataclass

import numpy as np

from foveal.annotate.types import State
from foveal.errors import FovealError
from foveal.evaluate.results import Measure

CONFIDENCE = 0.95
_LEVELS = 8  # thresholds that are tried; each is allowed an equal part of the risk


@dataclass(frozen=True)
class Calibration:
    """What held-out answers say about scores.

    Attributes:
        slope: of the log odds of being right, over the score.
        intercept: of the same line.
        threshold: answers with this score or a higher one are worth giving; None where none is.
        wanted: precision that was asked for, 0 to 1.
        num_held_out: answers that were held out.
        num_answered: those of them at the threshold or above.
        num_right: those of these that are right.
    """

    slope: float
    intercept: float
    threshold: float | None
    wanted: float
    num_held_out: int
    num_answered: int
    num_right: int

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability (N,) float64 that an answer with this score is right; 0.5 where nothing was held out.

        Args:
            scores: (N,) float, higher is surer.
        """
        odds = self.slope * np.asarray(scores, np.float64) + self.intercept
        return np.exp(-np.logaddexp(0, -odds))

    def accepts(self, scores: np.ndarray) -> np.ndarray:
        """Say of each score (N,) whether its answer is worth giving, (N,) bool."""
        scores = np.asarray(scores, np.float64)
        return np.zeros(scores.shape, bool) if self.threshold is None else scores >= self.threshold

    def states(self, scores: np.ndarray) -> list[State]:
        """Return "proposed" for each score that is worth an answer, and "unsure" for the others."""
        return ["proposed" if sure else "unsure" for sure in self.accepts(scores).tolist()]

    @property
    def precision(self) -> Measure | None:
        """Precision of the held-out answers that are worth giving, in percent, with its exact 95 % interval."""
        return share_measure("precision", self.num_right, self.num_answered) if self.num_answered else None

    @property
    def coverage(self) -> float:
        """Share of the held-out answers that are worth giving, 0 to 1."""
        return self.num_answered / self.num_held_out if self.num_held_out else 0.0

    @property
    def summary(self) -> str:
        """One line: what is answered and how good that is, or why nothing is."""
        wanted, least = f"a precision of {100 * self.wanted:g} %", least_held_out(self.wanted)
        if self.precision is not None:
            return (
                f"{self.num_answered} of {self.num_held_out} held-out answers are at the threshold of "
                f"{self.threshold:.4g} or above, precision {self.precision.text} % ({self.precision.interval})"
            )
        if self.num_held_out < least:
            return (
                f"{self.num_held_out} held-out answers are too few to show {wanted}, which takes {least}; "
                "every answer is unsure: label more, or ask for less"
            )
        return (
            f"no threshold reaches {wanted} for sure on {self.num_held_out} held-out answers; "
            "every answer is unsure: label more, or ask for less"
        )


def calibrate(scores: np.ndarray, right: np.ndarray, *, precision: float = 0.9) -> Calibration:
    """Fit probabilities to held-out answers, and find the lowest threshold that keeps a precision.

    Probabilities are Platt's: the logistic curve over the score that is most likely, with his smoothed targets, so that
    it stays finite where all held-out answers are right. The threshold is the lowest of eight, at equal steps of the
    held-out answers by their rank, at which an exact binomial test shows the precision; a risk of 5 % is divided among
    them. So with a probability of 95 % the precision of what is answered is at least the wanted one, whatever the
    scores are, if the held-out answers are independent draws of those that are to come: one an image, of images chosen
    without regard to their score.

    Args:
        scores: (M,) float, higher is surer; of answers whose images were not learnt from.
        right: (M,) bool, whether the answer was right.
        precision: wanted share of right ones among what is answered, above 0 and below 1.

    Raises:
        FovealError: arrays of other shapes or types, scores that are not finite, or a precision out of range.

    Source: Platt 1999, section 2.2; Clopper and Pearson 1934; Learn then Test, arXiv 2110.01052, section 2.1, with
    Bonferroni's correction.

    Example:
        >>> found = calibrate(np.linspace(0, 1, 200), np.arange(200) >= 60)
        >>> found.num_answered, found.num_right
        (134, 134)
    """
    check_precision(precision)
    scores, right = np.asarray(scores, np.float64), np.asarray(right)
    if scores.ndim != 1 or scores.shape != right.shape or right.dtype != bool:
        raise FovealError(
            f"scores of shape {scores.shape}, right of shape {right.shape} and type {right.dtype}; "
            "give one number and one bool for each held-out answer"
        )
    if not np.isfinite(scores).all():
        raise FovealError("scores hold NaN or infinity; the features or the head that made them are damaged")
    slope, intercept = _fit_curve(scores, right)
    threshold = _lowest_threshold(scores, right, precision)
    answered = np.zeros(len(scores), bool) if threshold is None else scores >= threshold
    counts = len(scores), int(answered.sum()), int(right[answered].sum())
    return Calibration(slope, intercept, threshold, precision, *counts)


def check_precision(precision: float) -> None:
    """Refuse a precision that cannot be wanted."""
    if not 0 < precision < 1:
        raise FovealError(f"precision={precision:g}; choose a share above 0 and below 1, such as 0.9")


def least_held_out(precision: float) -> int:
    """Return how many held-out answers can show a precision at all: so many, if every one of them is right.

    Example:
        >>> least_held_out(0.9), least_held_out(0.95)
        (49, 99)
    """
    return math.ceil(math.log((1 - CONFIDENCE) / _LEVELS) / math.log(precision))


def share_measure(name: str, num_right: int, num_all: int) -> Measure:
    """Return a share of independent answers in percent with its exact 95 % interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    interval = binomtest(num_right, num_all).proportion_ci(CONFIDENCE, method="exact")
    return Measure(name, 100 * num_right / num_all, "%", 100 * float(interval.low), 100 * float(interval.high))


def _fit_curve(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept; each answer counts as right and as wrong, in the parts that Platt's targets say."""
    if not len(scores):
        return 0.0, 0.0
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    targets = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    middle, spread = scores.mean(), scores.std()
    if spread < 1e-12 * max(1.0, abs(middle)):
        share = targets.mean()
        return 0.0, float(np.log(share / (1 - share)))
    inputs = np.tile((scores - middle) / spread, 2)[:, None]
    outcomes = np.repeat([1, 0], len(scores))
    model = _logistic_regression()
    model.fit(inputs, outcomes, sample_weight=np.concatenate([targets, 1 - targets]))
    slope = float(model.coef_[0, 0]) / spread
    return float(slope), float(model.intercept_[0] - slope * middle)


def _lowest_threshold(scores: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    from scipy.stats import binomtest

    least, order = least_held_out(precision), np.sort(scores)[::-1]
    if len(scores) < least:
        return None
    for count in np.unique(np.linspace(least, len(scores), _LEVELS).astype(int))[::-1]:
        answered = scores >= order[count - 1]
        test = binomtest(int(right[answered].sum()), int(answered.sum()), precision, alternative="greater")
        if test.pvalue <= (1 - CONFIDENCE) / _LEVELS:
            return float(order[count - 1])
    return None


def _logistic_regression():  # type: ignore[no-untyped-def]
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise FovealError("calibration needs scikit-learn: pip install 'foveal[annotate]'") from error
    return LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
