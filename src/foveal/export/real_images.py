"""The real images that exports are judged on and int8 is calibrated on, prepared as a model's card says."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.backbone.card import Card
from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.features.preprocessing import preprocessing_of
from foveal.images.imageset import ImageSet
from foveal.images.ledger import listed
from foveal.images.photographs import packaged_photographs

logger = logging.getLogger(__name__)

MAX_IMAGES = 64
BATCH_SIZE = 8


def real_batches(
    card: Card, source: str | Path | None = None, *, max_images: int = MAX_IMAGES, batch_size: int = BATCH_SIZE
) -> list[Tensor]:
    """Return prepared images (b, C, H, W) float32 in batches, all of the card's crop size.

    Args:
        card: of the model; says size, channels and normalisation.
        source: a folder, list, shard or saved set; of a larger one some images are taken, evenly spread. None takes the
            photographs that come with the extra `demo`.
        max_images: so many at most.
        batch_size: images in a batch; the last may be smaller.

    Raises:
        ImageSetError: not one image can be read.
        FovealError: nothing was given, and the photographs are not there or not of the model's channels.
    """
    if max_images < 1 or batch_size < 1:
        raise FovealError(f"{max_images} images in batches of {batch_size}; both must be at least 1")
    prepare = preprocessing_of(card)
    pictures = _of_set(source, card, max_images) if source is not None else _packaged(card, max_images)
    return list(torch.from_numpy(np.stack([prepare(picture) for picture in pictures])).split(batch_size))


def at_another_size(batch: Tensor, *, patch_size: int, max_images: int = 4) -> list[Tensor]:
    """Return a batch of the first few images without their last row of patches, which are then not square.

    A list of none for images that are one patch high: then there is no other size within.

    Args:
        batch: (B, C, H, W).
        patch_size: pixels.
        max_images: so many at most.
    """
    height = batch.shape[2] - patch_size
    return [batch[:max_images, :, :height].contiguous()] if height > 0 else []


def _packaged(card: Card, max_images: int) -> list[np.ndarray]:
    if card.backbone.channels != 3:
        raise FovealError(
            f"{card.name} takes {card.backbone.channels} channels, of which no photographs come along; give --images"
        )
    return list(packaged_photographs().values())[:max_images]


def _of_set(source: str | Path, card: Card, max_images: int) -> Iterator[np.ndarray]:
    """Yield the readable ones of up to `max_images` images, evenly spread over a set."""
    images = ImageSet.open(source)
    chosen = np.linspace(0, len(images) - 1, min(len(images), max_images)).round().astype(int).tolist()
    bad: Counter[str] = Counter()
    for index in chosen:
        try:
            yield images.decode(index, channels=card.backbone.channels)
        except BadImageError as error:
            bad[error.reason] += 1
    if bad.total() == len(chosen):
        raise ImageSetError(f"none of {len(chosen)} images of {source} can be read ({listed(bad)}); give others")
    if bad:
        logger.warning("%d of %d images left out: %s", bad.total(), len(chosen), listed(bad))
