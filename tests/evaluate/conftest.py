"""A tiny model, and a labelled folder whose classes are colours, which even random weights tell apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model

COLOURS = {"blue": (20, 30, 220), "green": (20, 210, 40), "red": (230, 20, 30)}


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


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """colours/{train,test}/CLASS/number.png: 7 train and 3 test pictures a class, noisy."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 3)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-20, 20, (30, 37, 3))
                picture = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{i}.png")
    return tmp_path / "colours"
