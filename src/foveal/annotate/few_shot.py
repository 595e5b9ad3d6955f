"""A class head on frozen features that is fitted anew with every label, and the image whose label would help it most.

Shapes: N images of the set, D width, n labelled images, K classes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.annotate.calibration import Calibration, calibrate, share_measure
from foveal.annotate.types import State
from foveal.errors import FovealError
from foveal.evaluate.results import Measure
from foveal.features.lookup import vector_name
from foveal.features.store import FeatureStore

_PENALTIES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the largest eigenvalue
_DRAWN_EVERY = 5  # of the offered images one in so many is drawn at random: these measure the accuracy
_MOST_OFFERED = 4096  # images of a large set among which the next one is looked for
_LABELS_AT_ONCE = 1024  # of their similarities to those images: 16 MiB
_ROWS_AT_ONCE = 64  # of their similarities: 1 MiB, which stays in the cache of a core


class Offer(NamedTuple):
    """An image to label next.

    Attributes:
        row: of the features.
        drawn: it was drawn at random, so that its answer may be counted as held out.
    """

    row: int
    drawn: bool


@dataclass(frozen=True)
class FewShotFit:
    """What a head says of every image.

    Attributes:
        classes: (K,) their names, in order.
        answers: (N,) int64, number of the most probable class.
        scores: (N,) float32, by how much it is ahead of the next one.
        rows: (n,) int64, the labelled images.
        right: (n,) bool, whether the head that was fitted without this image gives its label.
        held_out: (n,) bool, which of these measure accuracy and calibration.
        calibration: of the scores.
    """

    classes: tuple[str, ...]
    answers: np.ndarray
    scores: np.ndarray
    rows: np.ndarray
    right: np.ndarray
    held_out: np.ndarray
    calibration: Calibration

    @property
    def accuracy(self) -> Measure | None:
        """Top-1 accuracy on the held-out labels in percent, with its exact 95 % interval; None where there are none."""
        right = self.right[self.held_out]
        return share_measure("top-1", int(right.sum()), len(right)) if len(right) else None

    @property
    def probabilities(self) -> np.ndarray:
        """Probability (N,) float64 that each answer is right."""
        return self.calibration.probabilities(self.scores)

    @property
    def states(self) -> list[State]:
        """For every image "proposed" where its answer is worth giving, else "unsure"."""
        return self.calibration.states(self.scores)


class FewShot:
    """The features of an image set, ready for heads of any labels.

    The head is ridge regression on one-hot labels: it has a closed form, and so have its answers without each single
    label, which makes every label a held-out one without another fit (Allen 1974, PRESS). The penalty is the one whose
    held-out answers correlate best with the labels: their size does not matter, only which class is ahead, and the
    squared error would shrink answers of many classes far too much. Features are brought to unit length.

    Example:
        >>> few_shot = FewShot(np.eye(4, dtype=np.float32))
        >>> found = few_shot.fit({0: "cat", 1: "dog", 2: "cat"})
        >>> found.classes, len(found.answers)
        (('cat', 'dog'), 4)
    """

    def __init__(self, features: np.ndarray, *, seed: int = 0) -> None:
        """Take features (N, D) float; they are copied as float32.

        Args:
            features: one row an image.
            seed: of the images that are drawn.

        Raises:
            FovealError: another shape, no row, or features that are not finite.
        """
        if features.ndim != 2 or not len(features):
            raise FovealError(f"features of shape {features.shape}; give one row of numbers for each image")
        if not np.isfinite(features).all():
            raise FovealError("features hold NaN or infinity; the model that made them has diverged")
        self.features = F.normalize(torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)), dim=1)
        self.order = np.random.default_rng(seed).permutation(len(features))
        self._candidates = np.sort(self.order[:_MOST_OFFERED])
        self._similarities: Tensor | None = None

    @classmethod
    def of_store(cls, store: FeatureStore, *, name: str | None = None, seed: int = 0) -> "FewShot":
        """Take the vectors of a feature store, "cls" unless another array is named; row i is row i of `store.rows`."""
        return cls(store.read(vector_name(store, name)), seed=seed)

    def fit(
        self, labels: Mapping[int, str], *, drawn: Collection[int] | None = None, precision: float = 0.9
    ) -> FewShotFit:
        """Fit a head to some labels and let it answer for every image.

        Args:
            labels: class names by row.
            drawn: labelled rows that were chosen at random: only these measure accuracy and calibration. None is all,
                which is fair where the labelled images were chosen without regard to how hard they are.
            precision: wanted of what is proposed; see `foveal.annotate.calibration.calibrate`.

        Raises:
            FovealError: fewer than two classes, or rows that there are not.
        """
        rows = np.array(sorted(labels), np.int64)
        self._check(rows, labels)
        classes = tuple(sorted(set(labels.values())))
        number = {name: i for i, name in enumerate(classes)}
        truth = torch.tensor([number[labels[row]] for row in rows.tolist()])
        weight, bias, without = _ridge(self.features[rows], F.one_hot(truth, len(classes)).float())
        answers, scores = _answers(torch.addmm(bias, self.features, weight))
        guessed, margins = _answers(without)
        right = (guessed == truth).numpy()
        held_out = np.ones(len(rows), bool) if drawn is None else np.isin(rows, np.array(sorted(drawn), np.int64))
        calibration = calibrate(margins.numpy()[held_out], right[held_out], precision=precision)
        return FewShotFit(classes, answers.numpy(), scores.numpy(), rows, right, held_out, calibration)

    def next_image(
        self, labels: Collection[int], fit: FewShotFit | None = None, *, closed: Collection[int] = ()
    ) -> Offer:
        """Return the image whose label would help most.

        It is the one that brings unsure images closest to a labelled one: the largest gain of the sum over images of
        their cosine to the nearest labelled image, each weighted by how unsure the head is of it. Without a head all
        weigh the same, and the first images cover the set. One image in five is drawn at random instead, because what
        is chosen for being hard says little about the accuracy on the others.

        Args:
            labels: rows that have a label, or need none.
            fit: the head of these labels.
            closed: rows that have no label and are not offered, such as those that somebody skipped.

        Raises:
            FovealError: every image has a label or is closed.

        Source: facility location, weighted by uncertainty: Wei, Iyer and Bilmes 2015, section 4.
        """
        known = np.zeros(len(self.features), bool)
        known[list(labels)] = True
        offered = ~known
        offered[list(closed)] = False
        if not offered.any():
            raise FovealError(f"all {len(known)} images have a label or are closed; there is none to offer")
        free = offered[self._candidates]
        if not free.any() or len(labels) % _DRAWN_EVERY == _DRAWN_EVERY - 1:
            return Offer(int(self.order[offered[self.order]][0]), True)
        return Offer(int(self._candidates[free][self._gains(known, free, fit).argmax()]), False)

    def _gains(self, known: np.ndarray, free: np.ndarray, fit: FewShotFit | None) -> np.ndarray:
        """Return what a label of each free candidate would gain; `known` is (N,), `free` one for each candidate."""
        among = self.features[self._candidates]
        if self._similarities is None:
            self._similarities = among @ among.T
        reached = torch.full((len(self._candidates),), -1.0)
        rows = torch.from_numpy(np.flatnonzero(known))
        for some in rows.split(_LABELS_AT_ONCE) if len(rows) else ():
            reached = torch.maximum(reached, (among @ self.features[some].T).amax(dim=1))
        unsure = torch.ones(len(self._candidates))
        if fit is not None:
            unsure = torch.from_numpy(1 - fit.probabilities[self._candidates]).float()
        blocks = self._similarities.split(_ROWS_AT_ONCE)
        gains = torch.cat([(block - reached).clamp_(min=0) @ unsure for block in blocks])
        return gains.numpy()[free]

    def _check(self, rows: np.ndarray, labels: Mapping[int, str]) -> None:
        if len(set(labels.values())) < 2:
            raise FovealError(
                f"{len(labels)} labels of {len(set(labels.values()))} class; a head needs labels of two classes"
            )
        if rows[0] < 0 or rows[-1] >= len(self.features):
            raise FovealError(f"labels of rows {rows[0]} to {rows[-1]}; there are 0 to {len(self.features) - 1}")


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight (D, K), bias (K,), and the outputs (n, K) for each input of the fit without it."""
    mean, middle = inputs.mean(dim=0), targets.mean(dim=0)
    centred, wanted = (inputs - mean).double(), (targets - middle).double()
    wide = inputs.shape[0] <= inputs.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    values = values.clamp_(min=0)
    left = vectors if wide else centred @ vectors / values.sqrt().clamp_(min=1e-12)
    found = left.T @ wanted
    best: tuple[float, float, Tensor] | None = None
    for share in _PENALTIES:
        penalty = share * max(float(values[-1]), 1e-12)
        kept = values / (values + penalty)
        influence = 1 / len(inputs) + left.square() @ kept
        errors = (wanted - left @ (kept[:, None] * found)) / (1 - influence).clamp_(min=1e-9)[:, None]
        outputs = wanted - errors
        agreement = float((outputs * wanted).sum() / outputs.norm().clamp_(min=1e-12))
        if best is None or agreement > best[0]:
            best = agreement, penalty, errors
    assert best is not None
    _, penalty, errors = best
    scale = values.sqrt() / (values + penalty)
    right = centred.T @ left / values.sqrt().clamp_(min=1e-12) if wide else vectors
    weight = (right @ (scale[:, None] * found)).float()
    return weight, middle - mean @ weight, (targets.double() - errors).float()


def _answers(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best class of each row, and by how much it is ahead."""
    values, numbers = outputs.max(dim=1)
    others = outputs.scatter(1, numbers[:, None], -torch.inf)  # topk takes twice as long
    return numbers, values - others.amax(dim=1)
