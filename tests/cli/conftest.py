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


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """street/{train,test} with masks beside them, and rooms/ likewise with depth; see `write_halves`."""
    for part, count in (("train", 4), ("test", 2)):
        for number in range(count):
            place = {f"street/{part}": "picture", f"street/{part}annot": "mask"}
            write_halves(tmp_path, number, {**place, f"rooms/{part}": "picture", f"rooms/{part}depth": "depth"})
    return tmp_path / "street"


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """rooms/{images,masks,depth}; see `write_halves`."""
    for number in range(5):
        write_halves(tmp_path / "rooms", number, {"images": "picture", "masks": "mask", "depth": "depth"})
    return tmp_path / "rooms"


def write_halves(folder: Path, number: int, kinds: dict[str, str]) -> None:
    """Write a picture, its mask, its depth into folders: left dark, class 0 and far; right bright, class 1 and near."""
    bright = (np.arange(35) >= 12 + 3 * number)[None].repeat(28, 0)
    pixels = {
        "picture": np.where(bright, 220, 30).astype(np.uint8),
        "mask": bright.astype(np.uint8),
        "depth": np.where(bright, 1500, 3000).astype(np.uint16),
    }
    for name, kind in kinds.items():
        path = folder / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[kind]).save(path)
