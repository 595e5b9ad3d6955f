"""A tiny model that tells colours apart."""

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model


@pytest.fixture(scope="session")
def model() -> Model:
    config = backbone_config("vit_nano", depth=2, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        backbone.pos_embed.zero_()
        for block in backbone.blocks:
            block.attn.qkv.weight.mul_(5)  # type: ignore[union-attr,operator]
            block.attn.proj.weight.mul_(20)  # type: ignore[union-attr,operator]
    return Model(TorchEngine(backbone), Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
