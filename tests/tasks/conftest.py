"""A tiny model of four blocks."""

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model


def tiny_model(seed: int = 0) -> Model:
    config = backbone_config("vit_nano", depth=4, patch_size=14, image_size=70, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)))
    return Model(TorchEngine(backbone), Card(name="tiny", backbone=config, crop_size=70, resize_size=80))


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="session")
def other_model() -> Model:
    return tiny_model(seed=7)
