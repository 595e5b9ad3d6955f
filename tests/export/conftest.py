"""Tiny model folders whose numbers depend on everything: no zero, no tiny LayerScale."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model


def tiny_backbone(variant: str = "vit_nano", **changes: object) -> VisionTransformer:
    settings = {"depth": 2, "patch_size": 7, "image_size": 35, "layerscale_init": 1.0} | changes
    backbone = VisionTransformer(backbone_config(variant, **settings)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            around = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gamma")) else 0.0
            spread = 0.5 if "token" in name or "pos" in name else 0.1
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return backbone


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time one call instead of a second of calls."""
    monkeypatch.setattr("foveal.export.verdict._BUDGET_S", 0.0)


@pytest.fixture(scope="session")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that differ, to judge exports on."""
    generator, folder = np.random.default_rng(0), tmp_path_factory.mktemp("few")
    for number in range(3):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        coarse.resize((48, 44), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def save_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder; arguments "card" go to the card, others to the configuration."""

    def save(name: str = "model", *, card: dict[str, object] | None = None, **changes: object) -> Path:
        backbone = tiny_backbone(**changes)
        channels = backbone.config.channels
        settings = {"crop_size": 35, "resize_size": 40, "licence": "own"} | (card or {})
        if channels != 3:
            settings |= {"mean": [0.5] * channels, "std": [0.25] * channels}
        save_model(tmp_path / name, backbone, Card(name=name, backbone=backbone.config, **settings))
        return tmp_path / name

    return save
