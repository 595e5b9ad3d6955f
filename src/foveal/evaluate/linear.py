"""Linear classification as published: new views in every step, one pass of the backbone for the whole grid.

Shapes: N test images, M classifiers in all.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from foveal.evaluate.few_shot import right_measures, right_of_answers
from foveal.evaluate.linear_grid import choice_measures
from foveal.evaluate.linear_training import SAVE_EVERY_S, Answers, LinearSettings, train_grid
from foveal.evaluate.other_tests import OtherTest
from foveal.evaluate.results import Measure
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart, number_labels
from foveal.images.imageset import ImageSet


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    settings: LinearSettings | None = None,
    others: Sequence[OtherTest] = (),
    num_threads: int | None = None,
    folder: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    progress: Progress | None = None,
    trained: Progress | None = None,
) -> list[list[Measure]]:
    """Evaluate a model by linear classifiers on random views, as published.

    There is one for each of 13 learning rates, 1 or 4 last blocks, with or without the mean patch token. The best **on
    the test images** is reported, as the published figures are: its accuracy is too high by what was gained from the
    choice. Beside it stands what the choice does not touch: each half of the test images by the classifier that is
    best on the other half.

    Args:
        model: a loaded model.
        train: labelled images to learn from.
        test: labelled images that are classified.
        settings: see there; None is as published.
        others: further tests, of the classifier that is best on `test`.
        num_threads: that decode; None is as many as PyTorch computes with, 2 at least.
        folder: where training is saved, and from where it goes on, equal to the bit; made where it is missing.
        save_every_s: seconds between two states.
        progress: called with (images done, images in all), for each set of test images.
        trained: called with (steps done, steps in all).

    Returns:
        Of `test` top-1 and, from 5 classes on, top-5 accuracy in percent of the best classifier; its learning rate,
        blocks and pooling; and "top-1, chosen on the other half". Then, for each of the others, its accuracies.

    Raises:
        ImageSetError: labels missing or not matching, or images in both sets.
        FovealError: a folder of other settings, or one that cannot be written.

    Source: arXiv 2304.07193, section 7.1 and appendix B.3, and its public code.
    """
    settings = settings or LinearSettings()
    check_apart(train, test)
    train_labels, test_labels, classes = number_labels(train, test)
    grid = train_grid(
        model,
        train,
        train_labels,
        num_classes=len(classes),
        settings=settings,
        num_threads=num_threads,
        folder=folder,
        save_every_s=save_every_s,
        trained=trained,
    )
    answers = grid.answer(test, batch_size=settings.batch_size, progress=progress)
    right = (answers.classes[:, :, 0] == test_labels[answers.indices]).double().numpy()
    best = int(right.mean(axis=1).argmax())  # of equal ones the first
    rows = [_measures(answers, best, test_labels, settings) + choice_measures(*grid.members[best])]
    if right.shape[1] > 1:
        crossed = {"top-1, chosen on the other half": cross_chosen(right, seed=settings.seed)}
        rows[0] += right_measures(crossed, seed=settings.seed)
    for other in others:
        said = answers
        if other.images is not None:
            said = grid.answer(other.images, batch_size=settings.batch_size, only=other.classes, progress=progress)
        rows.append(_measures(said, best, other.truth, settings))
    return rows


def _measures(answers: Answers, best: int, truth: Tensor, settings: LinearSettings) -> list[Measure]:
    """Return the accuracies of one classifier; images without a label do not count."""
    labels = truth[answers.indices].reshape(len(answers.indices), -1)
    counted = (labels >= 0).any(dim=1)
    return right_measures(right_of_answers(answers.classes[best][counted], labels[counted]), seed=settings.seed)


def cross_chosen(right: np.ndarray, *, seed: int) -> np.ndarray:
    """Return (N,) float64 of each image how the classifier answers it that is best on the half which it is not in.

    Args:
        right: (M, N) float64, 1 where a classifier is right; N at least 2.
        seed: of the halves.
    """
    order = np.random.default_rng(seed).permutation(right.shape[1])
    halves = np.array_split(order, 2)
    values = np.empty(right.shape[1])
    for half, other in (halves, halves[::-1]):
        values[half] = right[int(right[:, other].mean(axis=1).argmax())][half]
    return values
