"""Masks in the coding that annotation tools share."""

import numpy as np
import pytest
from pycocotools import mask as coco

from foveal.annotate.types import Mask
from foveal.errors import FovealError


def test_masks_come_back_and_cocos_own_code_reads_them() -> None:
    pixels = np.random.default_rng(0).random((5, 7)) < 0.4
    mask = Mask.of(pixels)
    assert (mask.height, mask.width) == (5, 7)
    assert (mask.pixels() == pixels).all()
    assert coco.area({"size": [5, 7], "counts": mask.counts}) == pixels.sum()


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(FovealError, match=r"shape \(5, 7\) and type uint8; give \(H, W\) bool"):
        Mask.of(np.zeros((5, 7), np.uint8))
