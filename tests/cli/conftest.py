"""A model folder and a labelled folder of photographs that never were, for the real command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    config = backbone_config("vit_nano", depth=1, patch_size=7, image_size=28, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(tmp_path / "run" / "model", backbone, Card(name="tiny", backbone=config, crop_size=28, resize_size=32))
    return tmp_path / "run" / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (31, 43, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"
