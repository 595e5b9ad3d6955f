"""What the page of annotation learns while somebody labels: guesses, the next image to ask for, accuracy as it grows.

Shapes: N images with features, D width, L labels.
"""

from typing import Any, NamedTuple

import numpy as np

from foveal.annotate.few_shot import FewShot, FewShotFit
from foveal.annotate.queries import Labels
from foveal.annotate.types import State

_MEASURES = "it measures the head: it was drawn by chance"
_COVERS = "it is most like those that no label is near yet"
_HELPS = "its label helps most with those that the head is unsure of"


class Guess(NamedTuple):
    """What the head says of an image: the class, and the probability that it is right."""

    class_name: str
    probability: float
    state: State


class ClassLearner:
    """A few-shot head over the labels of a project. Rows are those of the image set; some have no features.

    Args:
        vectors: one for each image that has features, (N, D) float.
        index: the row of each in the image set, (N,) int64, ascending.
        held_out: rows whose labels measure, drawn by chance.
    """

    def __init__(self, vectors: np.ndarray, index: np.ndarray, held_out: np.ndarray) -> None:
        self.few_shot = FewShot(vectors)
        self.index = index
        self._measures = np.isin(index, held_out)
        self._labels: dict[int, str] = {}  # by place among the features
        self.fit: FewShotFit | None = None
        self.history: list[dict[str, int]] = []

    def learn(self, labels: Labels) -> None:
        """Fit the head again where labels have changed."""
        found = {
            place: name for place, name in zip(self._places(labels.index), labels.names, strict=True) if place >= 0
        }
        if found == self._labels:
            return
        self._labels, self.fit = found, None
        if len(set(found.values())) < 2:
            return
        self.fit = self.few_shot.fit(found, drawn=self._drawn())
        if right := self.fit.right[self.fit.held_out].tolist():
            point = {"num_labels": len(found), "right": sum(right), "held_out": len(right)}
            self.history = [one for one in self.history if one["num_labels"] < len(found)] + [point]

    def guess(self, index: int) -> Guess | None:
        """Return what the head says of an image; None without head or features."""
        [place] = self._places(np.array([index]))
        return self._guesses(np.array([place]))[0] if self.fit is not None and place >= 0 else None

    def next_image(self, closed: np.ndarray) -> tuple[int, str] | None:
        """Return the row of the image whose label is worth most, and why; None where no image is left.

        Args:
            closed: rows that are not offered.
        """
        shut = np.isin(self.index, closed)
        known = np.zeros(len(self.index), bool)
        known[list(self._labels)] = True
        if (shut | known).all():
            return None
        place, drawn = self.few_shot.next_image(self._labels, self.fit, closed=np.flatnonzero(shut))
        order = self.few_shot.order
        if drawn and len(measures := order[(self._measures & ~shut & ~known)[order]]):
            return int(self.index[measures[0]]), _MEASURES
        return int(self.index[place]), _COVERS if self.fit is None else _HELPS

    def proposals(self, closed: np.ndarray, count: int) -> list[tuple[int, Guess]]:
        """Return the rows without a label that the head is surest of, surest first, with its guesses."""
        if self.fit is None:
            return []
        is_open = ~np.isin(self.index, closed)
        is_open[list(self._labels)] = False
        places = np.flatnonzero(is_open)
        places = places[np.argsort(-self.fit.scores[places], kind="stable")][:count]
        return list(zip(self.index[places].tolist(), self._guesses(places), strict=True))

    def summary(self) -> dict[str, Any]:
        """Return counts of labels, the accuracy as it grew, and what the held-out labels say of proposals."""
        return {
            "num_labels": len(self._labels),
            "num_held_out": len(self._drawn()),
            "num_images": len(self.index),
            "history": self.history,
            "calibration": self.fit.calibration.summary if self.fit is not None else "",
        }

    def _drawn(self) -> list[int]:
        return [place for place in self._labels if self._measures[place]]

    def _guesses(self, places: np.ndarray) -> list[Guess]:
        assert self.fit is not None
        scores = self.fit.scores[places]
        probabilities = self.fit.calibration.probabilities(scores).tolist()
        names = [self.fit.classes[number] for number in self.fit.answers[places]]
        return [Guess(*one) for one in zip(names, probabilities, self.fit.calibration.states(scores), strict=True)]

    def _places(self, index: np.ndarray) -> list[int]:
        """Return the place of rows of the image set among the features, -1 for those without."""
        if not len(index):
            return []
        found = np.minimum(np.searchsorted(self.index, index), len(self.index) - 1)
        places: list[int] = np.where(self.index[found] == index, found, -1).tolist()
        return places
