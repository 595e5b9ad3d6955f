"""Classification by a head on frozen features: top-1, top-5, the mean over classes, and the confusion matrix.

Shapes: n test images, K classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.errors import ImageSetError
from foveal.evaluate.results import Measure, measured, measured_mean
from foveal.features.batches import Progress, prepared_batches
from foveal.images.imageset import ImageSet
from foveal.tasks.classify import ClassPredictor


class Classified(NamedTuple):
    """What was measured, and the confusion matrix (K, K) int64 of images: rows are true classes, columns predicted."""

    measures: list[Measure]
    confusion: np.ndarray


def run(
    predictor: ClassPredictor,
    test: ImageSet,
    *,
    name: str = "",
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Classified:
    """Measure a classification head on labelled images.

    Args:
        predictor: the head on its backbone.
        test: images with labels, all of them classes of the head.
        name: in front of the metrics, such as "linear".
        seed: of the intervals, which draw images.
        batch_size: images at a time.
        progress: called with (images done, images in all).

    Returns:
        Top-1 and, from 5 classes on, top-5 accuracy in percent, and the mean over the classes that occur.

    Raises:
        ImageSetError: a set without labels, a label that the head does not know, or no readable image.
    """
    labels = known_labels(predictor.classes, test)
    indices, probabilities = classified(predictor, test, batch_size=batch_size, progress=progress)
    return measures_of(probabilities.numpy(), labels[indices.numpy()], name=name, seed=seed)


def classified(
    predictor: ClassPredictor, images: ImageSet, *, batch_size: int = 32, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices (n,) of the images that can be read, and their probabilities (n, K); see `run`."""
    found, numbers = [], []
    for indices, arrays in prepared_batches(
        images,
        predictor.model.preprocessing(),
        batch_size=batch_size,
        channels=predictor.model.card.backbone.channels,
        progress=progress,
    ):
        numbers.append(indices)
        found.append(predictor.of_arrays(arrays))
    return torch.cat(numbers), torch.cat(found)


def known_labels(classes: list[str], images: ImageSet) -> np.ndarray:
    """Return the class numbers (n,) int64 of images by the names of a head; ImageSetError for a label it lacks."""
    if (names := images.labels) is None:
        raise ImageSetError(f"the test set has images without a label ({images.root}); put each into a folder CLASS/")
    if unknown := sorted(set(names) - set(classes)):
        raise ImageSetError(
            f"the test set has {len(unknown)} labels that the head does not know, first {unknown[0]}; it knows "
            f"{len(classes)}, e.g. {', '.join(classes[:3])}: measure it on data of its classes"
        )
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number[name] for name in names])


def measures_of(probabilities: np.ndarray, labels: np.ndarray, *, name: str = "", seed: int = 0) -> Classified:
    """Return the measures of probabilities (n, K) with the true classes (n,); see `run`."""
    num_classes = probabilities.shape[1]
    truth = np.take_along_axis(probabilities, labels[:, None], axis=1)
    is_earlier = np.arange(num_classes) < labels[:, None]  # of equal classes the first is answered
    ranks = (probabilities > truth).sum(axis=1) + ((probabilities == truth) & is_earlier).sum(axis=1)
    right = (ranks == 0).astype(np.float64)
    prefix = f"{name} " if name else ""

    def mean_over_classes(chosen: np.ndarray) -> float:
        counts = np.bincount(labels[chosen], minlength=num_classes)
        hits = np.bincount(labels[chosen], weights=right[chosen], minlength=num_classes)
        return float(100 * (hits[counts > 0] / counts[counts > 0]).mean())

    measures = [measured_mean(f"{prefix}top-1", 100 * right, unit="%", seed=seed)]
    if num_classes >= 5:
        measures.append(measured_mean(f"{prefix}top-5", 100 * (ranks < 5), unit="%", seed=seed))
    measures.append(measured(f"{prefix}mean over classes", mean_over_classes, len(labels), unit="%", seed=seed))
    pairs = labels * num_classes + probabilities.argmax(axis=1)
    return Classified(measures, np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes))
