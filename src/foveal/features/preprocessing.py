"""What a picture goes through before a model, as its card and a caller's `size` and `fit` say."""

import math
from typing import get_args

from foveal.backbone.card import Card
from foveal.errors import FovealError, nearest
from foveal.images.decode import DEFAULT_LIMITS
from foveal.images.preprocess import MAX_PATCHES, Mode, Preprocess, Size, scaled, sides


def preprocessing_of(card: Card, *, size: Size | None = None, fit: Mode = "crop") -> Preprocess:
    """Return the transform for a model's card; see `Model.extract` for the arguments.

    Raises:
        FovealError: a fit that is not known, or a size that it does not take; said before any picture is read.
    """
    if fit not in get_args(Mode):
        raise FovealError(f"fit '{fit}' is not known; choose {', '.join(get_args(Mode))}{nearest(fit, get_args(Mode))}")
    if size is not None:
        _check_size(size, fit, card.backbone.patch_size)
    resize_size: Size | None = size
    crop_size: Size | None = None
    if fit == "crop":
        crop_size = card.crop_size if size is None else size
        resize_size = card.resize_size if size is None else scaled(size, card.resize_size / card.crop_size)
    return Preprocess(
        mode=fit,
        resize_size=resize_size,
        crop_size=crop_size,
        patch_size=card.backbone.patch_size,
        mean=tuple(card.mean),
        std=tuple(card.std),
    )


def _check_size(size: Size, fit: Mode, patch_size: int) -> None:
    text = f"size {size[0]}x{size[1]}" if isinstance(size, tuple) else f"size {size}"
    if min(sides(size)) < 1:
        raise FovealError(f"{text}: give pixels, at least 1")
    if fit == "pad" and isinstance(size, tuple):
        raise FovealError(f"{text}: fit pad keeps the proportions; give the short side alone, or fit resize")
    if fit == "crop" or isinstance(size, tuple):
        for side in sides(size):
            if side % patch_size:
                lower = side // patch_size * patch_size
                near = " or ".join(str(whole) for whole in (lower, lower + patch_size) if whole)
                raise FovealError(f"{text}: {side} is not a multiple of the patch size {patch_size}; use {near}")
    num_pixels = math.prod(sides(size))
    num_patches, allowed = num_pixels // patch_size**2, MAX_PATCHES
    if fit == "crop":  # a square of known size: what can be decoded can be cut out
        allowed = DEFAULT_LIMITS.max_pixels // patch_size**2
    if num_patches > allowed:
        largest = math.isqrt(allowed) * patch_size
        raise FovealError(f"{text} makes {num_patches:,} patches of an image; choose at most {largest} pixels a side")
