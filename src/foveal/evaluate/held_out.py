"""The tenth of the train samples that chooses a setting: drawn at random, as published for logistic regression."""

import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate.few_shot import FewShot
from foveal.images.imageset import ImageSet

_SHARE = 10  # one in so many


def split_tenth(num_samples: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of a tenth of the samples, rounded down, and of the others, in random order.

    Raises:
        FovealError: fewer than 10.
    """
    check_tenth(num_samples)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    return order[: num_samples // _SHARE], order[num_samples // _SHARE :]


def check_tenth(num_samples: int) -> None:
    """Refuse fewer samples than leave one to choose with."""
    if num_samples < _SHARE:
        raise FovealError(f"{num_samples} readable train images; a tenth of them chooses, give at least {_SHARE}")


def check_choosable(train: ImageSet, few_shot: FewShot | None) -> None:
    """Refuse a train set with which nothing could be chosen, before any of its images is read.

    One without labels passes: what is missing is said where they are numbered.

    Raises:
        FovealError: fewer than 10 images, in all or in each few-shot draw, or one image of each class.
        ImageSetError: classes with fewer images than are drawn.
    """
    if few_shot is None:
        check_tenth(len(train))
        return
    if (labels := train.labels) is None:
        return
    few_shot.check_choice()
    few_shot.check_classes(train)
    check_tenth(few_shot.n_per_class * len(set(labels)))
