"""Batches of random views of a set, drawn anew in every step: what classifiers on a frozen backbone are trained on.

Shapes: B images, H W pixels, C channels.
"""

import logging
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from foveal.errors import BadImageError, FovealError
from foveal.features.batches import map_ahead
from foveal.images.crops import NUM_CROP_DRAWS, random_box
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import Preprocess, normalise, resize, sides

SCALE = (0.08, 1.0)
_ORDERS, _VIEWS = 0, 1  # streams of the seed

logger = logging.getLogger(__name__)


class RandomViews:
    """Random resized crops of the images of a set, mirrored half of the time and normalised.

    Every image comes once in each pass over the set, in an order of that pass; a step may end one pass and begin the
    next. All that is drawn is a function of (seed, pass) or (seed, pass, image), so that training goes on at any step.

    Args:
        images: the set.
        preprocess: of the model, in mode "crop": its size, channels and statistics.
        batch_size: images a step.
        seed: of everything drawn.
        num_threads: that decode and crop; at most one further batch waits.

    Source: the training transform of the public evaluation code of arXiv 2304.07193: torchvision's RandomResizedCrop
    with scale (0.08, 1), bicubic, then RandomHorizontalFlip.
    """

    def __init__(
        self, images: ImageSet, preprocess: Preprocess, *, batch_size: int, seed: int, num_threads: int = 2
    ) -> None:
        if batch_size < 1 or num_threads < 1 or not len(images):
            raise FovealError(
                f"{len(images)} images, batch_size={batch_size}, num_threads={num_threads}; each must be at least 1"
            )
        self._images, self._preprocess = images, preprocess
        self._batch_size, self._seed, self._num_threads = batch_size, seed, num_threads
        self._bad: dict[int, str] = {}

    def batches(self, steps: range) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
        """Yield for each step the indices (B,) int64 of its images and the views (C, H, W) float32.

        An image that cannot be read is left out of its step, which may so be smaller, or empty; each is said once.
        """
        drawn = self._drawn(range(steps.start * self._batch_size, steps.stop * self._batch_size))
        loaded = map_ahead(self._load, drawn, self._num_threads, ahead=self._batch_size)
        for _ in steps:
            indices, views = [], []
            for index, view in islice(loaded, self._batch_size):
                if isinstance(view, BadImageError):
                    self._say(index, view)
                else:
                    indices.append(index)
                    views.append(view)
            yield torch.tensor(indices, dtype=torch.int64), views

    def _drawn(self, places: range) -> Iterator[tuple[int, int]]:
        """Yield (pass, image number) for places in the endless sequence of images."""
        num = len(self._images)
        for number in range(places.start // num, -(-places.stop // num)):
            order = np.random.default_rng((self._seed, _ORDERS, number)).permutation(num)
            first = max(places.start - number * num, 0)
            for index in order[first : places.stop - number * num]:
                yield number, int(index)

    def _load(self, drawn: tuple[int, int]) -> tuple[int, np.ndarray | BadImageError]:
        number, index = drawn
        draws = np.random.default_rng((self._seed, _VIEWS, number, index)).random(NUM_CROP_DRAWS + 1).tolist()
        try:
            pixels = self._images.decode(index, channels=self._preprocess.channels)
            assert self._preprocess.crop_size is not None  # as its mode has it
            view = random_view(pixels, draws, size=sides(self._preprocess.crop_size))
        except BadImageError as error:
            return index, error
        return index, normalise(view, mean=self._preprocess.mean, std=self._preprocess.std)

    def _say(self, index: int, error: BadImageError) -> None:
        if index not in self._bad:
            self._bad[index] = error.reason
            logger.warning("image %d of %d skipped in training: %s", len(self._bad), len(self._images), error)


def random_view(pixels: np.ndarray, draws: list[float], *, size: tuple[int, int]) -> np.ndarray:
    """Return a random resized crop of (H, W, C) at `size` (height, width), mirrored where the last draw is below 0.5.

    Args:
        pixels: uint8 or uint16.
        draws: `NUM_CROP_DRAWS` + 1 uniforms in [0, 1).
        size: of the view, pixels.
    """
    top, left, height, width = random_box(draws, *pixels.shape[:2], scale=SCALE)
    view = resize(pixels[top : top + height, left : left + width], height=size[0], width=size[1])
    return view[:, ::-1] if draws[NUM_CROP_DRAWS] < 0.5 else view
