"""kNN classification on frozen features: the published protocol, few-shot, and the raw-pixel baseline."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.features.batches import Progress, prepared_batches
from foveal.features.extract import Model, SetFeatures
from foveal.features.labels import check_apart, number_labels
from foveal.features.neighbours import knn_accuracy
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise

KS = (10, 20, 100, 200)


class Row(NamedTuple):
    """One measured number."""

    name: str
    value: float
    unit: str


class Labelled(NamedTuple):
    """Features (N, D) and their class numbers (N,)."""

    features: Tensor
    labels: Tensor


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    n_per_class: int | None = None,
    n_tries: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate a model by kNN as published: class token after the final norm, the card's resize and centre crop,
    cosine, softmax weights of temperature 0.07.

    Args:
        model: a loaded model.
        train: labelled images that vote.
        test: labelled images that are classified.
        ks: numbers of neighbours; those above the number of train images are left out with a warning.
        temperature: of the vote.
        n_per_class: few-shot: draw so many train images of each class, n_tries times.
        n_tries: draws of the few-shot option.
        seed: of the draws.
        batch_size: images at a time.
        progress: called with (images done, images in all), first for train, then for test.

    Returns:
        For each k the top-1 and, from 5 classes on, the top-5 accuracy in percent; for few-shot the mean over the
        tries and their sample standard deviation.

    Raises:
        ImageSetError: labels missing or not matching, images in both sets, or too few images of a class.
        FovealError: no k fits.

    Source: arXiv 2304.07193, section 7.1, and arXiv 2104.14294, appendix F.
    """
    check_apart(train, test)
    train_labels, test_labels, _ = number_labels(train, test)

    def extract(images: ImageSet, labels: Tensor) -> Labelled:
        found = model.extract_set(images, batch_size=batch_size, progress=progress)
        return Labelled(found.arrays["cls"], labels[found.indices])

    return score(
        extract(train, train_labels),
        extract(test, test_labels),
        ks=ks,
        temperature=temperature,
        n_per_class=n_per_class,
        n_tries=n_tries,
        seed=seed,
    )


def run_pixels(
    train: ImageSet,
    test: ImageSet,
    *,
    size: int = 32,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    n_per_class: int | None = None,
    n_tries: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Row]:
    """Evaluate raw pixels the same way: what a model has to beat. Arguments as for `run` and `pixel_features`."""
    check_apart(train, test)
    train_labels, test_labels, _ = number_labels(train, test)

    def extract(images: ImageSet, labels: Tensor) -> Labelled:
        found = pixel_features(images, size=size, progress=progress)
        return Labelled(found.arrays["pixels"], labels[found.indices])

    rows = score(
        extract(train, train_labels),
        extract(test, test_labels),
        ks=ks,
        temperature=temperature,
        n_per_class=n_per_class,
        n_tries=n_tries,
        seed=seed,
    )
    return [row._replace(name=f"raw pixels {row.name}") for row in rows]


def pixel_features(
    images: ImageSet, *, size: int = 32, batch_size: int = 256, progress: Progress | None = None
) -> SetFeatures:
    """Return the pixels of each image as its feature: resized to size x size, normalised, flattened.

    Returns:
        arrays["pixels"]: (n, 3 size size) float32.
    """

    def prepare(pixels: np.ndarray) -> np.ndarray:
        small = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
        return normalise(small, mean=IMAGENET_MEAN, std=IMAGENET_STD).ravel()

    bad: Counter[str] = Counter()
    batches = list(prepared_batches(images, prepare, batch_size=batch_size, bad=bad, progress=progress))
    pixels = np.concatenate([np.stack(arrays) for _, arrays in batches])
    return SetFeatures({"pixels": torch.from_numpy(pixels)}, torch.cat([i for i, _ in batches]), dict(bad))


def score(
    train: Labelled,
    test: Labelled,
    *,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    n_per_class: int | None = None,
    n_tries: int = 5,
    seed: int = 0,
) -> list[Row]:
    """Evaluate features that are already extracted; arguments and result as for `run`."""
    if n_per_class is None:
        return [
            Row(name, values[0], "%") for name, values in _percent([_accuracy(train, test, ks, temperature)]).items()
        ]
    if n_per_class < 1 or n_tries < 1:
        raise FovealError(f"n_per_class={n_per_class}, n_tries={n_tries}; both must be at least 1")
    tries = []
    for number in range(n_tries):
        drawn = _draw(train.labels, n_per_class, np.random.default_rng((seed, number)))
        tries.append(_accuracy(Labelled(train.features[drawn], train.labels[drawn]), test, ks, temperature))
    rows = []
    for name, values in _percent(tries).items():
        rows.append(Row(f"{name}, {n_per_class} per class, mean of {n_tries}", mean(values), "%"))
        deviation = stdev(values) if n_tries > 1 else 0.0
        rows.append(Row(f"{name}, {n_per_class} per class, deviation", deviation, "points"))
    return rows


def _accuracy(train: Labelled, test: Labelled, ks: Sequence[int], temperature: float) -> dict[str, float]:
    """Return the accuracies of one train set by name, as shares."""
    found = knn_accuracy(*train, *test, ks=ks, temperature=temperature)
    if not found:
        raise FovealError(f"k={', '.join(map(str, ks))} with {len(train.labels)} train images; choose a k up to that")
    named = {}
    for k, accuracy in found.items():
        named[f"knn-{k} top-1"] = accuracy.top1
        if accuracy.top5 is not None:
            named[f"knn-{k} top-5"] = accuracy.top5
    return named


def _percent(tries: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [100 * one[name] for one in tries] for name in tries[0]}


def _draw(labels: Tensor, n_per_class: int, generator: np.random.Generator) -> Tensor:
    """Draw n indices of each class, without repeats, in ascending order."""
    chosen = []
    for number in labels.unique():
        members = (labels == number).nonzero().squeeze(1).numpy()
        if len(members) < n_per_class:
            raise ImageSetError(
                f"class number {int(number)} (in the order of the names) has {len(members)} readable train images, "
                f"n_per_class={n_per_class}; choose at most {len(members)}"
            )
        chosen.append(generator.choice(members, n_per_class, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
