"""Masks from a picture seen at several sizes, and mirrored: probabilities averaged at the size of the picture.

Source: the "+ms" protocol of arXiv 2304.07193, section 7.4. Shapes: K classes, H W pixels.
"""

import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foveal.images.preprocess import resize, short_side_shape
from foveal.tasks.predict import Predictor
from foveal.tasks.windows import resized_bands

MAX_BYTES = 2_000_000_000  # of probabilities in memory; beyond it they are summed in a temporary file


def predict_at_scales(
    predictor: Predictor,
    pixels: np.ndarray,
    *,
    size: int | None,
    scales: Sequence[float],
    flip: bool,
    crop_size: int | None,
    stride: int | None,
) -> np.ndarray:
    """Return class numbers (H, W) uint16 of a picture.

    Of each size, and of its mirror image, the logits of the windows are averaged and resized, and their softmax is
    added to a sum, whose largest entry is the class of a pixel.

    Args:
        predictor: of masks.
        pixels: (H, W, C).
        size: short side at scale 1, pixels; None is the picture's own.
        scales: of the short side.
        flip: see the mirror image too.
        crop_size: see `Predictor.predict`.
        stride: see there.
    """
    shape: tuple[int, int] = pixels.shape[:2]
    total = torch.zeros(0)
    for scale in scales:
        height, width = short_side_shape(*shape, size=max(int((size or min(shape)) * scale + 1e-6), 1))
        seen = resize(pixels, height=height, width=width)
        for mirrored in (False, True)[: 1 + flip]:
            picture = np.ascontiguousarray(seen[:, ::-1]) if mirrored else seen
            bands = predictor.bands(picture, size=min(height, width), flip=False, crop_size=crop_size, stride=stride)
            top = 0
            for band in resized_bands(bands, shape=(height, width), size=shape):
                found = band.softmax(dim=0)
                if not total.numel():
                    total = _zeros((len(found), *shape))
                total[:, top : top + band.shape[1]] += found.flip(2) if mirrored else found
                top += band.shape[1]
    return predictor.answer(total)


def _zeros(shape: tuple[int, int, int]) -> Tensor:
    if 4 * np.prod(shape) <= MAX_BYTES:
        return torch.zeros(shape)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
