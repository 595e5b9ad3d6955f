"""timm's networks as students: one with patch tokens, and two that end in a feature map."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import foveal
from foveal.backbone.card import Card
from foveal.backbone.variants import backbone_config
from foveal.backbone.weights import save_model
from foveal.errors import FovealError
from foveal.pretrain.loop import pretrain
from foveal.pretrain.network import HeadSize, Network
from foveal.pretrain.recipe import load_recipe

RECIPE = {
    "total_steps": 2,
    "batch_size": 2,
    "backbone": {"variant": "vit_nano", "depth": 1, "patch_size": 16, "image_size": 64},
    "heads": {"dino": {"num_prototypes": 12, "bottleneck": 5, "hidden": 7}},
    "views": {"global_size": 64, "local_size": 32, "num_local": 1},
    "teacher": {"temperature_warmup_steps": 1},
    "optimizer": {"warmup_steps": 1},
}


@pytest.mark.parametrize(
    ("name", "grid"), [("convnext_atto", 2), ("resnet10t", 2), ("vit_tiny_patch16_224", 4), ("swin_s3_tiny_224", 2)]
)
def test_a_student_of_timm_learns_and_its_model_loads(tmp_path: Path, name: str, grid: int) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (230, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    config = backbone_config("vit_nano", patch_size=16, image_size=64)
    network = Network(config, dino=HeadSize(12, 5, 7), ibot=None).init_weights(torch.Generator().manual_seed(0))
    heads = {key: value for key, value in network.state_dict().items() if not key.startswith("backbone.")}
    save_model(tmp_path / "teacher", network.backbone, Card(name="t", backbone=config), heads=heads)
    values = RECIPE | {"distill": {"teacher": str(tmp_path / "teacher")}}
    size = 224 if "swin" in name else 64  # timm's Swin takes one size alone
    values |= {"views": {"global_size": size, "num_local": 0}, "backbone": {"variant": f"timm:{name}#random"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    pretrain(load_recipe(str(tmp_path / "recipe.yaml"), [f"images={tmp_path / 'photos'}", f"out={tmp_path / 'run'}"]))
    model = foveal.load(tmp_path / "run/model")
    if "swin" in name:
        with pytest.raises(FovealError, match="takes 224 x 224 pixels, not 64 x 64"):
            model.engine.encode(torch.zeros(1, 3, 64, 64))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = model.engine.encode(images)
    theirs = timm.create_model(name, num_classes=0).eval()
    weights = foveal.backbone.weights.load_tensors(tmp_path / "run/model/model.safetensors")
    theirs.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
    side = size // 32 if grid == 2 else size // 16
    assert tokens.patches.shape == (2, side * side, theirs.num_features)
    if "vit" in name:
        return  # at 64 pixels timm needs to be told that sizes vary
    with torch.no_grad():
        assert torch.allclose(tokens.cls, theirs(images), atol=1e-4)
