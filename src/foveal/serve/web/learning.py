"""A head on frozen features that learns while somebody labels: its guesses, the next image to ask for, its accuracy.

Shapes: N images with features, D width, L labels, K classes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from foveal.annotate.queries import Labels
from foveal.evaluate.softmax_regression import Fit, fit_path

_C = 10.0  # of features of length 1
_MEASURED = 5  # every so many images, one is offered that measures


class Guess(NamedTuple):
    """What the head says of an image: the class and its probability."""

    class_name: str
    probability: float


class ClassLearner:
    """Learns classes from the labels of a project.

    Args:
        vectors: one for each image that has features, (N, D) float32.
        index: the row of each in the image set, (N,) int64, ascending.
        held_out: rows of the image set whose labels measure.
        seed: of the order in which images are offered that measure.
    """

    def __init__(self, vectors: np.ndarray, index: np.ndarray, held_out: np.ndarray, *, seed: int = 0) -> None:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = torch.from_numpy(vectors / np.maximum(lengths, 1e-12))
        self.index = index
        self._measures = np.isin(index, held_out)
        self._order = np.random.default_rng(seed).permutation(len(index))
        self._head: Fit | None = None
        self.names: tuple[str, ...] = ()
        self._labels = Labels(np.empty(0, np.int64), (), np.empty(0, bool))
        self.history: list[dict[str, int]] = []

    def learn(self, labels: Labels) -> None:
        """Fit the head again, where labels have changed, and measure it on those held out."""
        labels = self._with_features(labels)
        if labels.names == self._labels.names and np.array_equal(labels.index, self._labels.index):
            return
        self._labels = labels
        teaches = ~labels.held_out
        names = tuple(sorted({name for name, used in zip(labels.names, teaches, strict=True) if used}))
        if len(names) < 2:
            self._head, self.names = None, ()
            return
        numbers = torch.tensor([names.index(n) for n, used in zip(labels.names, teaches, strict=True) if used])
        start = self._head if names == self.names else None
        features = self.vectors[self._places(labels.index[teaches])]
        [self._head] = fit_path(features, numbers, [_C], start=start, max_steps=200)
        self.names = names
        self._measure(int(teaches.sum()))

    @property
    def has_head(self) -> bool:
        """Whether two classes or more have labels that teach."""
        return self._head is not None

    def probabilities(self, places: np.ndarray | None = None) -> np.ndarray:
        """Return (n, K) float32 of the images at these places of the features, or of all; there must be a head."""
        assert self._head is not None
        vectors = self.vectors if places is None else self.vectors[places]
        found: np.ndarray = torch.softmax(self._head.scores(vectors), dim=1).float().numpy()
        return found

    def guess(self, index: int) -> Guess | None:
        """Return what the head says of an image; None without head or features."""
        place = int(np.searchsorted(self.index, index))
        if self._head is None or place == len(self.index) or self.index[place] != index:
            return None
        row = self.probabilities(np.array([place]))[0]
        return Guess(self.names[int(row.argmax())], float(row.max()))

    def next_image(self, closed: np.ndarray) -> tuple[int, str] | None:
        """Return the row of the image whose label is worth most, and why it is; None where no image is left.

        Every fifth time it is one that measures, drawn by chance. Else, with a head, the one between whose two
        likeliest classes it is least decided; without, the one least like all that are labelled.

        Args:
            closed: rows of images that are not offered.
        """
        is_open = ~np.isin(self.index, np.concatenate([closed, self._labels.index]))
        measures = self._order[(is_open & self._measures)[self._order]]
        teaches = np.flatnonzero(is_open & ~self._measures)
        num_held = int(self._labels.held_out.sum())
        wants_measure = num_held * _MEASURED < len(self._labels.index) + 1
        if len(measures) and (wants_measure or not len(teaches)):
            return int(self.index[measures[0]]), "its label measures the head, and does not teach it"
        if not len(teaches):
            return None
        if self._head is None:
            return int(self.index[self._least_alike(teaches)]), "it is least like those with a label"
        two = np.partition(self.probabilities(teaches), -2, axis=1)[:, -2:]
        return int(self.index[teaches[(two[:, 1] - two[:, 0]).argmin()]]), "the head is least decided about it"

    def guesses(self, closed: np.ndarray, count: int) -> list[tuple[int, Guess]]:
        """Return the rows of the images without a label that the head is surest of, with its guesses."""
        if self._head is None:
            return []
        places = np.flatnonzero(~np.isin(self.index, np.concatenate([closed, self._labels.index])))
        found = self.probabilities(places)
        best = found.max(axis=1)
        return [
            (int(self.index[places[i]]), Guess(self.names[int(found[i].argmax())], float(best[i])))
            for i in np.argsort(-best, kind="stable")[:count]
        ]

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability of the guess for each held-out label, and whether it is right."""
        held = self._labels.held_out
        if self._head is None or not held.any():
            return np.empty(0), np.empty(0, bool)
        found = self.probabilities(self._places(self._labels.index[held]))
        truth = [name for name, out in zip(self._labels.names, held, strict=True) if out]
        right = np.array([self.names[i] == name for i, name in zip(found.argmax(axis=1), truth, strict=True)])
        return found.max(axis=1), right

    def summary(self) -> dict[str, Any]:
        """Return counts of labels and the accuracy as it grew."""
        held = int(self._labels.held_out.sum())
        return {
            "num_labels": len(self._labels.index) - held,
            "num_held_out": held,
            "num_images": len(self.index),
            "classes": list(self.names),
            "history": self.history,
        }

    def _measure(self, num_labels: int) -> None:
        _, right = self.measured()
        if len(right):
            point = {"num_labels": num_labels, "right": int(right.sum()), "held_out": len(right)}
            self.history = [one for one in self.history if one["num_labels"] < num_labels] + [point]

    def _with_features(self, labels: Labels) -> Labels:
        keep = np.isin(labels.index, self.index)
        names = tuple(name for name, kept in zip(labels.names, keep, strict=True) if kept)
        return Labels(labels.index[keep], names, labels.held_out[keep])

    def _places(self, index: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.index, index)

    def _least_alike(self, places: np.ndarray) -> int:
        if not len(self._labels.index):
            return int(self._order[np.isin(self._order, places)][0])
        labelled = self.vectors[self._places(self._labels.index)]
        return int(places[int((self.vectors[places] @ labelled.T).max(dim=1).values.argmin())])
