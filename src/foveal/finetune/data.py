"""What is learned from: batches of crops with their answers, as functions of (seed, step).

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Generator, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from foveal.backbone.card import Card
from foveal.features.batches import map_ahead
from foveal.finetune.settings import FinetuneSettings
from foveal.images.preprocess import normalise
from foveal.tasks.crops import random_crop
from foveal.tasks.dense import batch_of
from foveal.tasks.samples import DenseSet


class Batch(NamedTuple):
    """Normalised images (B, C, H, W) float32, and targets: (B, H, W) of masks or depth."""

    images: Tensor
    targets: Tensor


class Batches(Protocol):
    """The train pictures of a data set, batch by batch."""

    @property
    def hash(self) -> str:
        """Return what tells the pictures from others."""
        ...

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def of(self, steps: range) -> Generator[Batch]:
        """Yield the batch of each step."""
        ...


class DenseBatches:
    """Random crops of pictures with masks or depth; see `foveal.tasks.crops.random_crop`.

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

    def __len__(self) -> int:
        return len(self._samples)

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
        pixels, target = random_crop(*picture, self._settings, generator)
        return normalise(pixels, mean=tuple(self._card.mean), std=tuple(self._card.std)), target
