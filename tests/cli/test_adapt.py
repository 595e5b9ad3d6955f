"""`foveal adapt`: what it takes from the model, what it prints, and how it ends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.backbone.card import Card, read_card
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import save_model
from foveal.cli.main import main
from foveal.objectives.heads import DINOHead
from foveal.pretrain.recipe import load_recipe

SMALL = ["total_steps=4", "batch_size=4", "optimizer.freeze_backbone_steps=1", "optimizer.warmup_steps=1"]
SMALL += ["teacher.temperature_warmup_steps=1", "gate.every_steps=2", "gate.num_neighbours=3"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(9):
        pixels = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    config = backbone_config("vit_nano", depth=2, patch_size=8, image_size=32, layerscale_init=0.5)
    head = DINOHead(48, hidden=12, bottleneck=8, num_prototypes=16).init_weights(generator)
    heads = {f"dino_head.{name}": value for name, value in head.state_dict().items()}
    card = Card(name="tiny", backbone=config, crop_size=32, resize_size=40, mean=[0.4] * 3, std=[0.2] * 3)
    save_model(tmp_path / "model", VisionTransformer(config).init_weights(generator), card, heads=heads)
    return tmp_path / "model"


def test_sizes_normalisation_and_heads_are_those_of_the_model(model: Path) -> None:
    recipe = load_recipe("adapt", ["images=x", "out=y", f"start.model={model}"])
    assert (recipe.views.global_size, recipe.views.local_size) == (32, 16)
    assert (recipe.features.crop_size, recipe.features.resize_size) == (32, 40)
    assert recipe.normalise.mean == (0.4, 0.4, 0.4)
    assert recipe.heads.dino.model_dump() == {"num_prototypes": 16, "bottleneck": 8, "hidden": 12}
    assert recipe.heads.ibot is None
    assert recipe.backbone.depth == 2


def test_it_adapts_and_tells_each_judgement(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["adapt", str(model), f"images={photos}", f"out={tmp_path / 'run'}", *SMALL]
    assert main([*command, "gate.min_agreement=0", "gate.min_rank_share=0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed[:3]] == ["0", "2", "4"]
    assert all(line.endswith("kept") for line in printed[:3])
    assert printed[3].startswith("step 4 of 4; model: ")
    card = read_card(tmp_path / "run" / "model")
    assert card.parents[0].name == "tiny"


def test_where_features_fall_it_ends_with_the_start(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = ["gate.min_agreement=1", "optimizer.base_lr=9", "optimizer.backbone_lr_multiplier=1", "gram=null"]
    command = ["adapt", str(model), f"images={photos}", f"out={tmp_path / 'run'}", *SMALL, *wild]
    teacher = ["teacher.momentum_start=0", "teacher.momentum_end=0", "gate.every_steps=4"]
    assert main([*command, *teacher]) == 3
    assert main([*command, *teacher]) == 3, "asked again, it has not become a success"
    printed = capsys.readouterr().out
    assert "of nearest neighbours are those of the start" in printed
    assert f"{tmp_path / 'run' / 'model'} is the start. To get further" in printed
    assert read_card(tmp_path / "run" / "model").lineage["steps"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=x", "out=y"], "'images=x' is no model"),
        (["m", "images=x", "out=y", "start=z"], "start= is the first argument here"),
        (["m", "images=x", "out=y"], "m is no file or folder here"),
        (["m", "--recipe", "demo", "images=x", "out=y"], "recipe 'demo' has no gate"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["adapt", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_lora_is_merged_into_a_plain_model(photos: Path, model: Path, tmp_path: Path) -> None:
    command = ["adapt", str(model), "--recipe", "adapt_lora", f"images={photos}", f"out={tmp_path / 'run'}", *SMALL]
    assert main([*command, "gate.min_agreement=0", "gate.min_rank_share=0", "lora.rank=2"]) == 0
    assert main(["doctor", str(tmp_path / "run" / "model")]) == 0
