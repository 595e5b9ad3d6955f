"""Labelled features of a train and a test set: what every protocol of classification on fixed views begins with.

Shapes: N images, D width.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.features.batches import Progress
from foveal.features.extract import Model, SetFeatures
from foveal.features.extraction import open_extraction
from foveal.features.labels import check_apart, number_labels
from foveal.features.stamp import StoreSettings
from foveal.features.store import ENGINE, FeatureStore
from foveal.features.tokens import Token
from foveal.images.imageset import ImageSet
from foveal.images.ledger import listed

logger = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """Features (N, D) and their class numbers (N,)."""

    features: Tensor
    labels: Tensor


class LabelledArrays(NamedTuple):
    """Tokens by name, N rows each; the class numbers (N,) of their images; the places (N,) of these in their set."""

    arrays: dict[str, Tensor]
    labels: Tensor
    indices: Tensor

    @property
    def cls(self) -> Labelled:
        """The class tokens of the last block."""
        return Labelled(self.arrays["cls"], self.labels)


def extract_labelled(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    what: Sequence[Token] = ("cls",),
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[LabelledArrays, LabelledArrays, list[str]]:
    """Return the features of what can be read of both sets, and the names of the classes by number.

    Args:
        model: a loaded model.
        train: labelled images.
        test: labelled images of the same classes.
        what: see `Model.stream_set`, as are layers and batch_size.
        layers: see there.
        batch_size: see there.
        folder: where features are kept as they are computed, and from where an interrupted extraction goes on.
        progress: called with (images done, images in all), first for train, then for test.

    Raises:
        ImageSetError: labels missing or not matching, images in both sets, or images that have changed since they were
            kept.
        FovealError: the folder cannot be written, or holds features of another model or set.
    """
    check_apart(train, test)
    train_labels, test_labels, classes = number_labels(train, test)
    if folder is not None:  # one choice for both sets, as without a folder
        model = model.settle(train, layers=layers, folder=folder / ENGINE)

    def extract(name: str, images: ImageSet, labels: Tensor) -> LabelledArrays:
        if folder is None:
            found = model.extract_set(images, what=what, layers=layers, batch_size=batch_size, progress=progress)
        else:
            settings = StoreSettings(
                tokens=tuple(what),
                layers=None if layers is None else tuple(layers),
                dtype="float32",
                batch_size=batch_size,
            )
            found = _kept(folder / name, model, images, settings, progress)
        return LabelledArrays(found.arrays, labels[found.indices], found.indices)

    return extract("train", train, train_labels), extract("test", test, test_labels), classes


def _kept(
    store: Path, model: Model, images: ImageSet, settings: StoreSettings, progress: Progress | None
) -> SetFeatures:
    """Return features of a set by way of a store, whose finished shards are not computed again."""
    summary = open_extraction(store, model, images, settings).run(max_bad_share=1.0, progress=progress)
    bad = {} if summary is None else summary["bad"]
    if bad:
        logger.warning("%d of %d images skipped: %s", sum(bad.values()), len(images), listed(bad))
    found = FeatureStore.open(store)
    arrays = {name: torch.from_numpy(found.read(name)) for name in found.names}
    return SetFeatures(arrays, torch.tensor(found.rows.column("row").to_pylist()), bad)
