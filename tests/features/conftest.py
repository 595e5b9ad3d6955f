"""A tiny model whose features depend on the picture, and pictures made on the spot."""

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


@pytest.fixture(scope="session")
def model() -> Model:
    return _tiny_model(num_registers=2)


def _tiny_model(*, num_registers: int) -> Model:
    config = backbone_config(
        "vit_nano", depth=2, num_registers=num_registers, patch_size=7, image_size=28, layerscale_init=1.0
    )
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return Model(TorchEngine(backbone), Card(name="tiny", backbone=config, crop_size=28, resize_size=32))


def _picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Five pictures of different, odd sizes."""
    return [_picture(i, *size) for i, size in enumerate([(33, 51), (40, 29), (28, 28), (17, 90), (1, 3)])]


@pytest.fixture
def photos(tmp_path: Path, pictures: list[np.ndarray]) -> Path:
    """The pictures in a folder, with a damaged file third in order."""
    folder = tmp_path / "photos"
    for i, picture in enumerate(pictures):
        path = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    (folder / "dog" / "1_damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return folder


@pytest.fixture(scope="session")
def plain_model() -> Model:
    """As `model`, without registers."""
    return _tiny_model(num_registers=0)


@pytest.fixture(scope="session")
def patchwise_model() -> Model:
    """A network that sees each patch alone: no positions, no attention. What moves keeps its features, to the bit."""
    model = _tiny_model(num_registers=0)
    with torch.no_grad():
        model.engine.backbone.pos_embed.zero_()
        for name, parameter in model.engine.backbone.named_parameters():
            if name.endswith("ls1.gamma"):
                parameter.zero_()
    return model
