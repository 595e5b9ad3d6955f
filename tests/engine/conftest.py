"""Small networks with nothing hidden by a zero or a tiny LayerScale, smooth pictures, and a cache of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer


def _network(variant: str = "vit_nano", *, outliers: bool = False, **changes: object) -> VisionTransformer:
    network = VisionTransformer(backbone_config(variant, **({"image_size": 56} | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            around = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) else 0.0
            spread = 0.5 if "token" in name or "pos" in name else 0.1
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
        if outliers:
            _plant_outliers(network)
    return network


@torch.no_grad()
def _plant_outliers(network: VisionTransformer) -> None:
    """Make some channels of norms and values 80 times as large, and divide the columns that read them: no change."""
    width = network.config.width
    for block in network.blocks:
        for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            norm.weight[3:6] *= 80
            norm.bias[3:6] *= 80
            reader.weight[:, 3:6] /= 80
        values = slice(2 * width + 5, 2 * width + 8)
        block.attn.qkv.weight[values] *= 80
        block.attn.qkv.bias[values] *= 80
        block.attn.proj.weight[:, 5:8] /= 80


def _pictures(count: int, height: int = 56, width: int = 56, channels: int = 3) -> torch.Tensor:
    coarse = torch.randn(count, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")


@pytest.fixture(scope="session")
def network() -> Callable[..., VisionTransformer]:
    return _network


@pytest.fixture(scope="session")
def plant_outliers() -> Callable[[VisionTransformer], None]:
    return _plant_outliers


@pytest.fixture(scope="session")
def pictures() -> Callable[..., torch.Tensor]:
    return _pictures


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOVEAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
