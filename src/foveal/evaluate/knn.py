"""kNN classification on frozen features: the published protocol, few-shot, and the raw-pixel baseline."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.results import Measure, measured, measured_mean
from foveal.features.batches import Progress, prepared_batches
from foveal.features.extract import Model, SetFeatures
from foveal.features.labels import check_apart, number_labels
from foveal.features.neighbours import knn_ranks
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise

KS = (10, 20, 100, 200)


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
) -> list[Measure]:
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
        seed: of the draws, and of the intervals.
        batch_size: images at a time.
        progress: called with (images done, images in all), first for train, then for test.

    Returns:
        For each k the top-1 and, from 5 classes on, the top-5 accuracy in percent; for few-shot the mean over the
        tries and their sample standard deviation. Intervals are over the test images.

    Raises:
        ImageSetError: labels missing or not matching, images in both sets, or too few images of a class.
        FovealError: no k fits.

    Source: arXiv 2304.07193, section 7.1, and arXiv 2104.14294, appendix F.
    """
    return score(
        *_extracted(model, train, test, batch_size=batch_size, progress=progress),
        ks=ks,
        temperature=temperature,
        n_per_class=n_per_class,
        n_tries=n_tries,
        seed=seed,
    )


def right_of_each(model: Model, train: ImageSet, test: ImageSet, *, k: int, temperature: float = 0.07) -> np.ndarray:
    """Return (N,) float64 of each readable test image whether kNN names its class, 1.0 or 0.0: to compare models on it.

    Arguments and errors as for `run`, whose top-1 is the mean.
    """
    return _right(*_extracted(model, train, test), [k], temperature)[f"knn-{k} top-1"]


def _extracted(
    model: Model, train: ImageSet, test: ImageSet, *, batch_size: int = 32, progress: Progress | None = None
) -> tuple[Labelled, Labelled]:
    """Return features and class numbers of both sets, for what can be read of them."""
    check_apart(train, test)
    train_labels, test_labels, _ = number_labels(train, test)

    def extract(images: ImageSet, labels: Tensor) -> Labelled:
        found = model.extract_set(images, batch_size=batch_size, progress=progress)
        return Labelled(found.arrays["cls"], labels[found.indices])

    return extract(train, train_labels), extract(test, test_labels)


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
) -> list[Measure]:
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
    return [row._replace(metric=f"raw pixels {row.metric}") for row in rows]


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
) -> list[Measure]:
    """Evaluate features that are already extracted; arguments and result as for `run`."""
    if n_per_class is None:
        right = _right(train, test, ks, temperature)
        return [measured_mean(name, 100 * values, unit="%", seed=seed) for name, values in right.items()]
    if n_per_class < 1 or n_tries < 1:
        raise FovealError(f"n_per_class={n_per_class}, n_tries={n_tries}; both must be at least 1")
    tries = []
    for number in range(n_tries):
        drawn = _draw(train.labels, n_per_class, np.random.default_rng((seed, number)))
        tries.append(_right(Labelled(train.features[drawn], train.labels[drawn]), test, ks, temperature))
    found = []
    for name in tries[0]:
        values = 100 * np.stack([one[name] for one in tries])
        found += _over_tries(f"{name}, {n_per_class} per class", values, seed=seed)
    return found


def _over_tries(name: str, values: np.ndarray, *, seed: int) -> list[Measure]:
    """Return mean and sample standard deviation over tries of values (tries, test images), the same images in each."""
    num_tries, num_images = values.shape

    def deviation(drawn: np.ndarray) -> float:
        return float(values[:, drawn].mean(axis=1).std(ddof=1)) if num_tries > 1 else 0.0

    return [
        measured_mean(f"{name}, mean of {num_tries}", values.mean(axis=0), unit="%", seed=seed),
        measured(f"{name}, deviation", deviation, num_images, unit="points", seed=seed),
    ]


def _right(train: Labelled, test: Labelled, ks: Sequence[int], temperature: float) -> dict[str, np.ndarray]:
    """Return by name, for each test image, whether it is right with one train set: 1.0 or 0.0."""
    found = knn_ranks(*train, *test, ks=ks, temperature=temperature)
    if not found:
        raise FovealError(f"k={', '.join(map(str, ks))} with {len(train.labels)} train images; choose a k up to that")
    num_classes = 1 + int(max(train.labels.max(), test.labels.max()))
    return {
        f"knn-{k} top-{limit}": (ranks < limit).double().numpy()
        for k, ranks in found.items()
        for limit in ((1, 5) if num_classes >= 5 else (1,))
    }


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
