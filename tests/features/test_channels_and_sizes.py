"""A model of four channels, and sizes that are not square, through `Model.extract`."""

import numpy as np
import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.errors import FovealError
from foveal.features.extract import Model

PIXELS = np.random.default_rng(0).integers(0, 65536, (40, 61, 4), dtype=np.uint16)


@pytest.fixture(scope="module")
def model() -> Model:
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=28, channels=4)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).eval()
    card = Card(name="x", backbone=config, mean=[0.5] * 4, std=[0.25] * 4, crop_size=28, resize_size=32)
    return Model(TorchEngine(backbone), card)


def test_eight_and_sixteen_bit_arrays_of_one_picture_have_the_same_features(model: Model) -> None:
    """257 times an 8-bit value is the same share of full scale; "pad" resizes nothing, so rounding plays no part."""
    small = (PIXELS >> 8).astype(np.uint8)
    a, b = (model.extract(x, fit="pad").patches for x in (small, small.astype(np.uint16) * 257))
    assert torch.allclose(a, b, rtol=0, atol=1e-4)
    assert not torch.allclose(a, model.extract(small[:, :, ::-1].copy(), fit="pad").patches, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("fit", "grid"), [("crop", (2, 5)), ("resize", (2, 5))])
def test_a_size_may_be_height_and_width(model: Model, fit: str, grid: tuple[int, int]) -> None:
    assert model.extract(PIXELS, size=(14, 35), fit=fit).patches.shape == (1, *grid, 48)
    assert model.preprocessing(size=(14, 35)).resize_size == (16, 40)


def test_a_square_pair_is_the_square(model: Model) -> None:
    assert torch.equal(model.extract(PIXELS, size=(28, 28)).cls, model.extract(PIXELS, size=28).cls)


def test_pictures_of_other_channels_are_refused(model: Model) -> None:
    with pytest.raises(FovealError, match=r"this takes uint8 or uint16 arrays of shape \(H, W, 4\)"):
        model.extract(PIXELS[:, :, :3])
    with pytest.raises(FovealError, match=r"size 28x57: 57 is not a multiple of the patch size 7; use 56 or 63"):
        model.extract(PIXELS, size=(28, 57))
