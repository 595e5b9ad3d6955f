"""kNN classification on frozen features: the published protocol, few-shot, and the raw-pixel baseline."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate.few_shot import FewShot, right_measures
from foveal.evaluate.labelled import Labelled, extract_labelled
from foveal.evaluate.results import Measure
from foveal.features.batches import Progress, prepared_batches
from foveal.features.extract import Model, SetFeatures
from foveal.features.labels import check_apart, number_labels
from foveal.features.neighbours import knn_ranks
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise

KS = (10, 20, 100, 200)


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    few_shot: FewShot | None = None,
    seed: int = 0,
    batch_size: int = 32,
    folder: Path | None = None,
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
        few_shot: a few train images of each class, several times, instead of all.
        seed: of the draws, and of the intervals.
        batch_size: images at a time.
        folder: see `extract_labelled`.
        progress: called with (images done, images in all), first for train, then for test.

    Returns:
        For each k the top-1 and, from 5 classes on, the top-5 accuracy in percent; for few-shot the mean over the
        tries and their sample standard deviation. Intervals are over the test images.

    Raises:
        ImageSetError: labels missing or not matching, images in both sets, or too few images of a class.
        FovealError: no k fits.

    Source: arXiv 2304.07193, section 7.1, and arXiv 2104.14294, appendix F.
    """
    if few_shot is not None:
        few_shot.check_classes(train)
    found = extract_labelled(model, train, test, batch_size=batch_size, folder=folder, progress=progress)
    return score(found[0].cls, found[1].cls, ks=ks, temperature=temperature, few_shot=few_shot, seed=seed)


def right_of_each(model: Model, train: ImageSet, test: ImageSet, *, k: int, temperature: float = 0.07) -> np.ndarray:
    """Return (N,) float64 of each readable test image whether kNN names its class, 1.0 or 0.0: to compare models on it.

    Arguments and errors as for `run`, whose top-1 is the mean.
    """
    found = extract_labelled(model, train, test)
    return _right(found[0].cls, found[1].cls, [k], temperature)[f"knn-{k} top-1"]


def run_pixels(
    train: ImageSet,
    test: ImageSet,
    *,
    size: int = 32,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    few_shot: FewShot | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measure]:
    """Evaluate raw pixels the same way: what a model has to beat. Arguments as for `run` and `pixel_features`."""
    check_apart(train, test)
    train_labels, test_labels, _ = number_labels(train, test)

    def extract(images: ImageSet, labels: Tensor) -> Labelled:
        found = pixel_features(images, size=size, progress=progress)
        return Labelled(found.arrays["pixels"], labels[found.indices])

    sets = extract(train, train_labels), extract(test, test_labels)
    rows = score(*sets, ks=ks, temperature=temperature, few_shot=few_shot, seed=seed)
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
    few_shot: FewShot | None = None,
    seed: int = 0,
) -> list[Measure]:
    """Evaluate features that are already extracted; arguments and result as for `run`."""
    if few_shot is None:
        return right_measures(_right(train, test, ks, temperature), seed=seed)

    def right_of(drawn: Tensor) -> dict[str, np.ndarray]:
        return _right(Labelled(train.features[drawn], train.labels[drawn]), test, ks, temperature)

    return few_shot.evaluate(train.labels, right_of, seed=seed)


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
