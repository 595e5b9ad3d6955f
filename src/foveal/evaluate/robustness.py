"""Accuracy under common corruptions, of a classifier fitted on clean features."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from foveal.backbone.weights import load_tensors
from foveal.errors import FovealError, ImageSetError, WeightsError
from foveal.evaluate import logistic
from foveal.evaluate.corruptions.conditions import Condition, Corrupted
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS
from foveal.evaluate.knn import Labelled
from foveal.evaluate.results import Measure, measured_mean
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart, number_labels
from foveal.features.neighbours import knn_ranks
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet

Classifier = Literal["knn", "logistic"]
Classify = Callable[[Labelled], Tensor]

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
    _check(model, train, classifier, k)
    labels_of = _labels(train, test, corrupted)
    model = model.settle(train)
    whole = Model(model.engine, model.card.model_copy(update={"resize_size": model.card.crop_size}))
    kept = _Kept(state, [model.identity, train.hash, test.hash, corrupted.hash, classifier, str(k)])
    passes = _Passes(progress, len(train) + len(test) + sum(map(len, corrupted.sets.values())))

    def extract(images: ImageSet, seen: Model) -> _Found:
        found = seen.extract_set(images, batch_size=batch_size, progress=passes.progress)
        return _Found(found.indices, found.arrays["cls"])

    def right(images: ImageSet, seen: Model, labels: Tensor) -> _Found:
        indices, features = extract(images, seen)
        return _Found(indices, classify(Labelled(features, labels[indices])).double())

    learned = passes.over(train, lambda: kept.found("train", lambda: extract(train, model)))
    classify = _fitted(Labelled(learned.values, labels_of["train"][learned.indices]), classifier, k)
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


class _Found(NamedTuple):
    """What was found of the readable images of a set: indices (n,) int64 into it, and a row of values for each."""

    indices: Tensor
    values: Tensor


class _Kept:
    """What was found so far, in a folder of its own for each thing that is evaluated."""

    def __init__(self, state: Path | None, what: Sequence[str]) -> None:
        key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
        self._folder = None if state is None else state / key

    def found(self, name: str, compute: Callable[[], _Found]) -> _Found:
        """Return what is kept under a name, else compute and keep it."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{name}.safetensors"
        if path.is_file():
            try:
                return _Found(**load_tensors(path))
            except WeightsError as error:
                raise FovealError(f"{path} is damaged; remove it, and that part is computed again") from error
        found = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(found._asdict()))
        except OSError as error:
            raise FovealError(f"{path} cannot be written ({error}); free space or choose another folder") from error
        return found

    def remove(self) -> None:
        """Remove what is kept, once nothing is left to compute."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # another evaluation keeps something there
                self._folder.parent.rmdir()


class _Passes:
    """Progress over several sets as one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._before = progress, total, 0

    def progress(self, done: int, _: int) -> None:
        """Take the images done of the present set."""
        if self._progress:
            self._progress(self._before + done, self._total)

    def over(self, images: ImageSet, one: Callable[[], _Found]) -> _Found:
        """Return what one pass over a set gives, and count its images."""
        found = one()
        self._before += len(images)
        self.progress(0, 0)
        return found


def _check(model: Model, train: ImageSet, classifier: Classifier, k: int) -> None:
    """Refuse what cannot be evaluated, before long work."""
    if classifier == "knn" and not 1 <= k <= len(train):
        raise FovealError(f"k={k} neighbours among {len(train)} train images; choose a k up to that")
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


def _check_same(found: Mapping[Condition, _Found]) -> None:
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
