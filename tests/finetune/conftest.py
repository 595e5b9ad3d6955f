"""A tiny model to begin with, and pictures of two halves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.licence import licence_named
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.engine.torch_engine import TorchEngine
from foveal.features.extract import Model
from foveal.pretrain.start.weights import StartWeights
from foveal.tasks.samples import DenseSet, Masks, Pair


@pytest.fixture
def start() -> Callable[[], StartWeights]:
    """Return the same weights at each call, as fine-tuning changes them."""

    def made() -> StartWeights:
        config = backbone_config("vit_nano", patch_size=14, image_size=42, layerscale_init=1.0)
        backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).eval()
        licence = licence_named("CC-BY-NC-4.0")
        card = Card(name="tiny", backbone=config, crop_size=42, resize_size=48, licence=licence)
        return StartWeights("tiny", backbone, card.model_copy(update={"sha256": {"model.safetensors": "ab"}}), {})

    return made


@pytest.fixture
def model(start: Callable[[], StartWeights]) -> Model:
    weights = start()
    return Model(TorchEngine(weights.backbone), weights.card)


@pytest.fixture
def halves(tmp_path: Path) -> DenseSet:
    """Pictures of 45 x 57 pixels with a bright half; masks 0 dark, 1 bright."""
    pairs = []
    for number in range(5):
        generator = np.random.default_rng(number)
        mask = (np.arange(57)[None] >= generator.integers(14, 40)).repeat(45, 0).astype(np.uint8)
        pixels = np.where(mask[:, :, None] > 0, 190, 60) + generator.integers(0, 30, (45, 57, 3))
        pair = Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        Image.fromarray(pixels.astype(np.uint8)).save(pair.image)
        Image.fromarray(mask).save(pair.target)
        pairs.append(pair)
    return DenseSet(pairs, Masks(["dark", "bright"]))
