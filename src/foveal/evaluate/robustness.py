"""Accuracy under common corruptions, of a classifier fitted on clean features."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate import logistic
from foveal.evaluate.classification import classified, known_labels
from foveal.evaluate.corruptions.conditions import Condition, Corrupted
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS
from foveal.evaluate.corruptions.passes import Found, Kept, Passes
from foveal.evaluate.knn import Labelled
from foveal.evaluate.results import Measure, measured_mean
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart, number_labels
from foveal.features.neighbours import knn_ranks
from foveal.images.imageset import ImageSet
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.head import Head

Classifier = Literal["knn", "logistic"]
Classify = Callable[[Labelled], Tensor]
Right = Callable[[ImageSet, Model, Tensor], Found]  # of a set, as a model sees it, with its labels: which are right

# Error of AlexNet in percent, mean over the five severities of ImageNet-C (arXiv 1903.12261, its public table).
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    corrupted: Corrupted,
    *,
    classifier: Classifier = "knn",
    k: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    state: Path | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model under corruptions: class tokens, and kNN or logistic regression that knows clean images alone.

    Args:
        model: a loaded model of three channels.
        train: labelled clean images to learn from.
        test: labelled clean images that are classified for comparison.
        corrupted: the conditions; see `foveal.evaluate.corruptions.conditions`.
        classifier: "knn", or "logistic", whose penalty is chosen on a tenth of train.
        k: neighbours of kNN.
        seed: of the intervals.
        batch_size: images at a time.
        state: folder that keeps what each condition gave, for an interrupted evaluation to go on; None keeps nothing.
        progress: called with (images done, images in all) over all passes.

    Returns:
        Top-1 accuracy in percent of clean images, of corrupted ones (mean over all conditions), of each corruption
        (mean over its severities) and of each condition; the mean corruption error, 100 less the second; and, for all
        conditions of public files, mCE, where the error of each corruption is divided by that of AlexNet. Intervals are
        over the images, the same draw under all conditions.

    Raises:
        ImageSetError: labels missing or not matching, images in both train and test, or an image that is readable under
            some conditions only.
        FovealError: more neighbours than train images, too few images or classes, or a model of other channels.
    """
    _check_channels(model)
    if classifier == "knn" and not 1 <= k <= len(train):
        raise FovealError(f"k={k} neighbours among {len(train)} train images; choose a k up to that")
    labels_of = _labels(train, test, corrupted)
    kept = Kept(state, [model.identity, train.hash, test.hash, corrupted.hash, classifier, str(k)])
    model = model.settle(train, folder=kept.engine)
    passes = Passes(progress, len(train) + _num_images(test, corrupted))

    def extract(images: ImageSet, seen: Model) -> Found:
        found = seen.extract_set(images, batch_size=batch_size, progress=passes.progress)
        return Found(found.indices, found.arrays["cls"])

    learned = passes.over(train, lambda: kept.found("train", lambda: extract(train, model)))
    classify = _fitted(Labelled(learned.values, labels_of["train"][learned.indices]), classifier, k)

    def right(images: ImageSet, seen: Model, labels: Tensor) -> Found:
        indices, features = extract(images, seen)
        return Found(indices, classify(Labelled(features, labels[indices])).double())

    return _over_conditions(model, test, corrupted, right, labels_of, kept=kept, passes=passes, seed=seed)


def run_head(
    model: Model,
    head: Head,
    test: ImageSet,
    corrupted: Corrupted,
    *,
    seed: int = 0,
    batch_size: int = 32,
    state: Path | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model with a classification head under corruptions.

    With an official linear head on the files of ImageNet-C this is the published evaluation.

    Args:
        model: a loaded model of three channels.
        head: whose classes have the names of the labels.
        test: labelled clean images.
        corrupted: see `run`, as for the other arguments and the result.
        seed: of the intervals.
        batch_size: images at a time.
        state: see `run`.
        progress: see `run`.

    Raises:
        ImageSetError: a label that the head does not know, or an image that is readable under some conditions only.
        WeightsError: the head belongs to another backbone.
        FovealError: a model of other channels.

    Source: arXiv 2304.07193, section 7.1.
    """
    _check_channels(model)
    first = next(iter(corrupted.sets.values()))
    classes = ClassPredictor(model, head).classes
    labels_of = {
        name: torch.from_numpy(known_labels(classes, one)) for name, one in (("clean", test), ("corrupted", first))
    }
    kept = Kept(state, [model.identity, head.identity, test.hash, corrupted.hash])
    model = model.settle(test, layers=head.card.layers, folder=kept.engine)
    passes = Passes(progress, _num_images(test, corrupted))

    def right(images: ImageSet, seen: Model, labels: Tensor) -> Found:
        indices, probabilities = classified(
            ClassPredictor(seen, head), images, batch_size=batch_size, progress=passes.progress
        )
        return Found(indices, (probabilities.argmax(dim=1) == labels[indices]).double())

    return _over_conditions(model, test, corrupted, right, labels_of, kept=kept, passes=passes, seed=seed)


def _over_conditions(
    model: Model,
    test: ImageSet,
    corrupted: Corrupted,
    right: Right,
    labels_of: Mapping[str, Tensor],
    *,
    kept: Kept,
    passes: Passes,
    seed: int,
) -> list[Measure]:
    """Classify the clean images and those of every condition, and return the measures of `run`."""
    whole = Model(model.engine, model.card.model_copy(update={"resize_size": model.card.crop_size}))
    clean = passes.over(test, lambda: kept.found("clean", lambda: right(test, model, labels_of["clean"])))
    found = {}
    for one, images in corrupted.sets.items():
        compute = partial(right, images, whole if corrupted.generated else model, labels_of["corrupted"])
        found[one] = passes.over(images, partial(kept.found, f"{one.corruption}-{one.severity}", compute))
    _check_same(found)
    kept.remove()
    values = {condition: one.values.numpy() for condition, one in found.items()}
    against_alexnet = not corrupted.generated and corrupted.complete
    return _measures(clean.values.numpy(), values, against_alexnet=against_alexnet, seed=seed)


def _num_images(test: ImageSet, corrupted: Corrupted) -> int:
    return len(test) + sum(map(len, corrupted.sets.values()))


def _check_channels(model: Model) -> None:
    if (channels := model.card.backbone.channels) != 3:
        raise FovealError(f"{model.card.name} takes {channels} channels; corruptions are made for RGB")


def _labels(train: ImageSet, test: ImageSet, corrupted: Corrupted) -> dict[str, Tensor]:
    """Return the class numbers of the train, clean and corrupted images, which are the same under all conditions."""
    first = next(iter(corrupted.sets.values()))
    for images in (test, first):
        check_apart(train, images)
    train_labels, test_labels, _ = number_labels(train, test)
    return {"train": train_labels, "clean": test_labels, "corrupted": number_labels(train, first)[1]}


def _fitted(train: Labelled, classifier: Classifier, k: int) -> Classify:
    """Return what tells of labelled features which are classified rightly, (n,) bool."""
    if classifier == "logistic":
        fit = logistic.fit_all(train, logistic.choose(train))
        return lambda test: fit.predict(test.features) == test.labels
    if k > len(train.labels):
        raise FovealError(f"k={k} with {len(train.labels)} readable train images; choose a k up to that")
    return lambda test: knn_ranks(*train, *test, ks=[k])[k] == 0


def _check_same(found: Mapping[Condition, Found]) -> None:
    (first, one), *others = found.items()
    for condition, other in others:
        if not torch.equal(one.indices, other.indices):
            raise ImageSetError(
                f"{len(one.indices)} images can be read under {first.corruption} {first.severity}, and "
                f"{len(other.indices)} under {condition.corruption} {condition.severity}, or others; replace the "
                "damaged files, so that the conditions can be compared"
            )


def _measures(
    clean: np.ndarray, right: Mapping[Condition, np.ndarray], *, against_alexnet: bool, seed: int
) -> list[Measure]:
    """Return the measures of `run` from whether each image is right: (n,) clean, and (n,) under each condition."""

    def mean(metric: str, values: np.ndarray) -> Measure:
        return measured_mean(metric, 100 * values, unit="%", seed=seed)

    by_corruption = {
        name: np.mean([values for one, values in right.items() if one.corruption == name], axis=0)
        for name in CORRUPTIONS
        if any(one.corruption == name for one in right)
    }
    corrupted = np.mean(list(right.values()), axis=0)
    found = [mean("clean top-1", clean), mean("corrupted top-1", corrupted), mean("corruption error", 1 - corrupted)]
    if against_alexnet:
        ratios = [(1 - values) / (ALEXNET_ERRORS[name] / 100) for name, values in by_corruption.items()]
        found.append(mean("mCE", np.mean(ratios, axis=0)))
    found += [mean(f"{name} top-1", values) for name, values in by_corruption.items()]
    return found + [mean(f"{one.corruption} {one.severity} top-1", values) for one, values in right.items()]
