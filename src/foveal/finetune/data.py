"""What is learned from: batches of crops with their answers, as functions of (seed, step).

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Generator, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from foveal.backbone.card import Card
from foveal.errors import FovealError, ImageSetError
from foveal.features.batches import map_ahead
from foveal.features.labels import number_labels
from foveal.features.preprocessing import preprocessing_of
from foveal.features.random_views import RandomViews
from foveal.finetune.settings import FinetuneSettings
from foveal.images.imageset import ImageSet
from foveal.tasks.crops import prepared_crop
from foveal.tasks.dense import batch_of
from foveal.tasks.fit import check_targets
from foveal.tasks.head import HeadCard, Task
from foveal.tasks.samples import DenseSet, Masks


class Batch(NamedTuple):
    """Normalised images (B, C, H, W) float32, and targets: labels (B,) int64, or masks or depth (B, H, W)."""

    images: Tensor
    targets: Tensor


class Batches(Protocol):
    """The train pictures of a data set, batch by batch."""

    @property
    def hash(self) -> str:
        """Return what tells the pictures from others."""
        ...

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes by number; none for depth."""
        ...

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def check(self, card: HeadCard) -> None:
        """Refuse, before long work, a head that cannot learn from these pictures."""
        ...

    def of(self, steps: range) -> Generator[Batch]:
        """Yield the batch of each step."""
        ...


class LabelledBatches:
    """Random resized crops of labelled images, mirrored half of the time; see `RandomViews`.

    Args:
        images: the labelled images.
        settings: number of images a step, size of the crops, seed.
        card: of the model: channels and their statistics.
        num_threads: that decode and crop.

    Raises:
        ImageSetError: images without labels, or of one class.
        FovealError: a crop that is no square or no multiple of the patch size, or one image a step.
    """

    def __init__(self, images: ImageSet, settings: FinetuneSettings, card: Card, *, num_threads: int = 2) -> None:
        self._images = images
        self._labels, _, self._classes = number_labels(images, images)
        if len(self._classes) < 2:
            raise ImageSetError(
                f"all {len(images)} images are of the class {self._classes[0]}; give images of two or more"
            )
        if isinstance(settings.crop_size, tuple) or settings.batch_size < 2:
            raise FovealError(
                f"crop_size={settings.crop_size}, batch_size={settings.batch_size}; labelled images are seen as "
                "squares, so give one side, and at least 2 of them a step"
            )
        self._views = RandomViews(
            images,
            preprocessing_of(card, size=settings.crop_size),
            batch_size=settings.batch_size,
            seed=settings.seed,
            num_threads=num_threads,
        )

    @property
    def hash(self) -> str:
        """Return what tells the images from others."""
        return self._images.hash

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes by number."""
        return self._classes

    def __len__(self) -> int:
        return len(self._images)

    def check(self, card: HeadCard) -> None:
        """Refuse a head of another task or of other classes."""
        _check_head(card, "classification", self._classes)

    def of(self, steps: range) -> Generator[Batch]:
        """Yield the batch of each step; what cannot be read is left out, and said once."""
        for step, (indices, views) in zip(steps, self._views.batches(steps), strict=True):
            if len(views) < 2:
                raise ImageSetError(f"{len(views)} images of step {step} can be read; check the source")
            yield Batch(batch_of(views), self._labels[indices])


class DenseBatches:
    """Random crops of pictures with masks or depth; see `foveal.tasks.crops.prepared_crop`.

    Args:
        samples: the pictures.
        settings: size and number of the crops, and how they are drawn.
        card: of the model: channels and their statistics.
        num_threads: that decode and crop; at most two batches wait.
    """

    def __init__(self, samples: DenseSet, settings: FinetuneSettings, card: Card, *, num_threads: int = 2) -> None:
        self._samples, self._settings, self._card, self._num_threads = samples, settings, card, num_threads

    @property
    def hash(self) -> str:
        """Return what tells the pictures from others."""
        return self._samples.hash

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes by number; none for depth."""
        reader = self._samples.reader
        return list(reader.classes) if isinstance(reader, Masks) else []

    def __len__(self) -> int:
        return len(self._samples)

    def check(self, card: HeadCard) -> None:
        """Refuse a head of another task or of other classes, and targets that teach it nothing; see `check_targets`."""
        masks = isinstance(self._samples.reader, Masks)
        _check_head(card, "segmentation" if masks else "depth", self.classes)
        check_targets(card, self._samples)

    def of(self, steps: range) -> Generator[Batch]:
        """Yield the batch of each step; BadImageError names a file that cannot be used."""
        batch_size = self._settings.batch_size
        loaded = map_ahead(self._load, self._drawn(steps), self._num_threads, ahead=2 * batch_size)
        for _ in steps:
            images, targets = zip(*islice(loaded, batch_size), strict=True)
            yield Batch(batch_of(images), batch_of(targets))

    def _drawn(self, steps: range) -> Iterator[tuple[int, int, int]]:
        """Yield (step, place in the batch, number of the picture)."""
        count, batch_size = len(self._samples), self._settings.batch_size
        for step in steps:
            generator = np.random.default_rng((self._settings.seed, step))
            for place, index in enumerate(generator.choice(count, batch_size, replace=count < batch_size)):
                yield step, place, int(index)

    def _load(self, drawn: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        step, place, index = drawn
        generator = np.random.default_rng((self._settings.seed, step, 1 + place))
        picture = self._samples.load(index, channels=self._card.backbone.channels)
        return prepared_crop(*picture, self._settings, generator, mean=self._card.mean, std=self._card.std)


def _check_head(card: HeadCard, task: Task, classes: list[str]) -> None:
    if card.task != task or card.classes != classes:
        raise FovealError(
            f"the head {card.name} is for {card.task} of {len(card.classes)} classes, the pictures for {task} of "
            f"{len(classes)}, or others; give a head for them"
        )
