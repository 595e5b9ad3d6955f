"""Small pictures and the smallest whole run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.weights import save_model
from foveal.pretrain.network import HeadSize, Network
from foveal.pretrain.recipe import Recipe, load_recipe

TINY: dict[str, Any] = {
    "total_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 2,
    "backbone": {
        "variant": "vit_nano",
        "depth": 2,
        "patch_size": 8,
        "image_size": 32,
        "layerscale_init": 0.1,
        "drop_path_rate": 0.5,
    },
    "heads": {
        "dino": {"num_prototypes": 16, "bottleneck": 8, "hidden": 12},
        "ibot": {"num_prototypes": 10, "bottleneck": 8, "hidden": 12},
    },
    "views": {"global_size": 32, "local_size": 16, "num_local": 3},
    "teacher": {"momentum_start": 0.9, "temperature_warmup_steps": 3},
    "optimizer": {"base_lr": 0.01, "warmup_steps": 2, "freeze_last_layer_steps": 1},
    "checkpoints": {"every_steps": 3, "keep": 2},
}


def write_photos(folder: Path, *, count: int = 11, seed: int = 0) -> Path:
    """Pictures with a colour and a gradient of their own, as PNG and JPEG."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        ramp = np.linspace(0, 1, 37)[None, :, None] * rng.uniform(50, 200, 3) + rng.uniform(0, 55, 3)
        noise = rng.normal(0, 10, (29, 37, 3))
        picture = Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8))
        picture.save(folder / f"{number:02d}.{'png' if number % 2 else 'jpg'}")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def tiny(photos: Path, tiny_yaml: Path, tmp_path: Path) -> MakeRecipe:
    """Make the tiny recipe, with overrides, on the small pictures."""

    def make(*overrides: str, out: str = "run") -> Recipe:
        return load_recipe(str(tiny_yaml), [f"images={photos}", f"out={tmp_path / out}", *overrides])

    return make


MakeTeacher = Callable[..., Path]


@pytest.fixture
def make_teacher(tmp_path: Path) -> MakeTeacher:
    """Save an untrained network wider than the tiny recipe's, with heads of as many prototypes; return its folder."""

    def make(name: str = "big", *, shared: bool = False, heads: bool = True, seed: int = 5, **changes: Any) -> Path:
        card: dict[str, Any] = {key: changes.pop(key) for key in ("mean", "std", "licence") if key in changes}
        sizes = {"width": 60, "depth": 3, "num_registers": 2, "patch_size": 8, "image_size": 32, "layerscale_init": 0.5}
        config = backbone_config("vit_nano", **{**sizes, **changes})
        network = Network(config, dino=HeadSize(16, 6, 7), ibot=None if shared else HeadSize(10, 5, 9))
        network.init_weights(torch.Generator().manual_seed(seed))
        tensors = {key: value for key, value in network.state_dict().items() if not key.startswith("backbone.")}
        card["name"] = name
        save_model(tmp_path / name, network.backbone, Card(backbone=config, **card), heads=tensors if heads else None)
        return tmp_path / name

    return make
