"""A run that starts from other weights: which it takes, which stay new, and what its model says of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveal.backbone.card import Card, read_card
from foveal.backbone.licence import NAMED
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import load_model, load_tensors, save_model
from foveal.errors import RecipeError, RunError, WeightsError
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import Recipe, load_recipe
from foveal.pretrain.run import read_metrics

MakeRecipe = Callable[..., Recipe]

# What the tiny recipe says of its network and its start does not have to.
SETTINGS = """
total_steps: 4
batch_size: 4
heads: {dino: {num_prototypes: 16, bottleneck: 8, hidden: 12}, ibot: {num_prototypes: 10, bottleneck: 8, hidden: 12}}
views: {global_size: 32, local_size: 16, num_local: 3}
teacher: {momentum_start: 0.9, temperature_warmup_steps: 3}
optimizer: {base_lr: 0.01, warmup_steps: 2, freeze_last_layer_steps: 1}
"""


@pytest.fixture
def settings(tmp_path: Path) -> str:
    (tmp_path / "from.yaml").write_text(SETTINGS)
    return str(tmp_path / "from.yaml")


@pytest.fixture
def first(tiny: MakeRecipe) -> Path:
    """A finished run."""
    pretrain(tiny("total_steps=3", out="first"))
    return Path(tiny(out="first").out)


def public(folder: Path) -> Path:
    """A model folder without heads, under terms that restrict."""
    config = backbone_config("vit_nano", depth=2, patch_size=8, image_size=48)
    card = Card(
        name="public", backbone=config, licence=NAMED["CC-BY-NC-4.0"], mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]
    )
    save_model(folder, VisionTransformer(config).init_weights(torch.Generator().manual_seed(5)), card)
    return folder


def second(settings: str, photos: Path, out: Path, start: Path | str, *overrides: str) -> Path:
    recipe = load_recipe(settings, [f"images={photos}", f"out={out}", f"start={start}", *overrides])
    return pretrain(recipe, stop_after=1).run


def test_a_run_goes_on_from_another_with_its_heads(settings: str, photos: Path, first: Path, tmp_path: Path) -> None:
    out = second(settings, photos, tmp_path / "second", first, "optimizer.warmup_steps=4", "teacher.momentum_start=1")
    for name in ("model.safetensors", "ssl_heads.safetensors"):  # a teacher that keeps still is the start
        before, after = load_tensors(first / "model" / name), load_tensors(out / "model" / name)
        assert all(torch.equal(before[key], after[key]) for key in before)
    card = read_card(out / "model")
    assert card.lineage["start"]["new"] == []  # type: ignore[index]
    assert card.parents[0].sha256 == read_card(first / "model").sha256
    assert card.licence.name == "own"


def test_terms_and_normalisation_of_public_weights_hold_on(settings: str, photos: Path, tmp_path: Path) -> None:
    out = second(settings, photos, tmp_path / "run", public(tmp_path / "public"), "backbone.num_registers=2")
    card = read_card(out / "model")
    assert card.licence.name == "CC-BY-NC-4.0"
    assert card.mean == [0.1, 0.2, 0.3]
    assert card.backbone.image_size == 48
    assert card.lineage["start"]["new"] == [  # type: ignore[index]
        "register_tokens: 2 new beside 0",
        "dino_head: random, the start has none",
        "ibot_head: random, the start has none",
    ]


def test_heads_of_other_sizes_are_new_and_said_to_be(settings: str, photos: Path, first: Path, tmp_path: Path) -> None:
    out = second(settings, photos, tmp_path / "second", first, "heads.ibot.num_prototypes=11")
    new = read_card(out / "model").lineage["start"]["new"]  # type: ignore[index]
    assert new == ["ibot_head: random, that of the start has other sizes"]


def test_positions_are_resized_to_the_recipe(settings: str, photos: Path, tmp_path: Path) -> None:
    source = public(tmp_path / "public")
    still = ("teacher.momentum_start=1", "backbone.image_size=32")
    out = second(settings, photos, tmp_path / "run", source, *still)
    old, _ = load_model(source)
    new, card = load_model(out / "model")
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert card.backbone.image_size == 32
    assert torch.equal(new(images).cls, old(images).cls)


def test_it_goes_on_after_an_interruption_as_if_there_were_none(
    settings: str, photos: Path, first: Path, tmp_path: Path
) -> None:
    arguments = [f"images={photos}", f"start={first}", "num_workers=0"]
    whole = pretrain(load_recipe(settings, [*arguments, f"out={tmp_path / 'whole'}"])).run
    broken = load_recipe(settings, [*arguments, f"out={tmp_path / 'broken'}"])
    pretrain(broken, stop_after=2)
    pretrain(broken)
    before, after = (load_tensors(run / "model" / "model.safetensors") for run in (whole, tmp_path / "broken"))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_weights_under_the_same_name_are_another_run(settings: str, photos: Path, tmp_path: Path) -> None:
    source = public(tmp_path / "public")
    second(settings, photos, tmp_path / "run", source)
    tensors = load_tensors(source / "model.safetensors")
    tensors["norm.bias"] += 1
    save_file(tensors, source / "model.safetensors")
    backbone = VisionTransformer(read_card(source).backbone)
    backbone.load_state_dict(tensors)
    save_model(source, backbone, read_card(source))
    with pytest.raises(RunError, match=r"start\.identity was"):
        second(settings, photos, tmp_path / "run", source)


def test_a_start_of_another_width_is_refused_before_anything_is_written(tiny: MakeRecipe, tmp_path: Path) -> None:
    config = backbone_config("vit_nano", width=96, depth=2, patch_size=8, image_size=32)
    save_model(
        tmp_path / "wide",
        VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)),
        Card(name="wide", backbone=config),
    )
    with pytest.raises(RecipeError, match="width is 96 in the weights and 48 here"):
        pretrain(tiny(f"start={tmp_path / 'wide'}"))
    assert not (tmp_path / "run").exists()


def test_a_start_that_is_not_there_is_named(settings: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="dinov2_vits14"):
        load_recipe(settings, [f"images={photos}", f"out={tmp_path / 'run'}", "start=dinov2_vits15"])


def test_heads_warm_up_while_the_backbone_keeps_still(settings: str, photos: Path, tmp_path: Path) -> None:
    source, slow = public(tmp_path / "public"), ("teacher.momentum_start=0", "teacher.momentum_end=0")
    frozen = "optimizer.freeze_backbone_steps=2"
    recipe = load_recipe(settings, [f"images={photos}", f"out={tmp_path / 'run'}", f"start={source}", frozen, *slow])
    before = load_tensors(source / "model.safetensors")

    def moved() -> tuple[bool, Tensor]:
        after = load_tensors(tmp_path / "run" / "model" / "model.safetensors")
        heads = load_tensors(tmp_path / "run" / "model" / "ssl_heads.safetensors")
        return any(not torch.equal(before[key], after[key]) for key in before), heads["dino_head.mlp.0.weight"]

    pretrain(recipe, stop_after=1)
    backbone_moved, first_head = moved()
    pretrain(recipe, stop_after=1)
    assert not backbone_moved
    assert not moved()[0]
    assert not torch.equal(first_head, moved()[1])
    pretrain(recipe, stop_after=2)  # the rate of the third step is the 0 from which the backbone's warms up
    assert moved()[0]
    rates = [(line["lr"], line["backbone_lr"]) for line in read_metrics(tmp_path / "run")]
    assert [backbone for _, backbone in rates[:3]] == [0, 0, 0]
    # What moves the backbone alone is not computed for nothing.
    assert ["koleo" in line for line in read_metrics(tmp_path / "run")] == [False, False, True, True]
    assert rates[3][1] == pytest.approx(recipe.lr)
