"""Low-rank adaptation: nothing changes at first, only the small matrices learn, and the model is plain in the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import load_model, load_tensors
from foveal.errors import RecipeError
from foveal.pretrain.checkpoints.reader import newest_intact
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.start.lora import add_low_rank, merged, merged_tensors

MakeRecipe = Callable[..., Recipe]


def network() -> VisionTransformer:
    config = backbone_config("vit_nano", depth=2, patch_size=4, image_size=12, layerscale_init=0.5)
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).eval()


def changed() -> VisionTransformer:
    """A network whose low-rank changes are not 0 any more."""
    backbone = network()
    add_low_rank(backbone, rank=2, alpha=6, generator=torch.Generator().manual_seed(1))
    for name, parameter in backbone.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return backbone


def test_features_are_the_same_at_first() -> None:
    plain, backbone = network(), network()
    add_low_rank(backbone, rank=3, alpha=8, generator=torch.Generator().manual_seed(1))
    images = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(backbone(images).cls, plain(images).cls)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    low_rank = {f"blocks.{i}.attn.{m}.{x}" for i in (0, 1) for m in ("qkv", "proj") for x in ("down", "up")}
    assert trained == low_rank | {"mask_token"}


def test_q_k_and_v_have_changes_of_their_own() -> None:
    plain, attention = network().blocks[1].attn, changed().blocks[1].attn
    difference = (attention.qkv.changed_weight() - plain.qkv.weight).detach()
    low = attention.qkv
    for part in range(3):
        torch.testing.assert_close(difference.chunk(3)[part], 3 * low.up[part] @ low.down[part], rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(difference, atol=1e-4) == 6
    assert torch.linalg.matrix_rank(attention.proj.changed_weight() - plain.proj.weight, atol=1e-4) == 2


def test_merging_gives_a_plain_network_with_the_same_features() -> None:
    backbone = changed()
    plain = merged(backbone)
    images = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain(images).cls, backbone(images).cls)
    assert plain.state_dict().keys() == network().state_dict().keys()
    assert "blocks.0.attn.qkv.up" in backbone.state_dict()
    tensors = merged_tensors(backbone.state_dict(), scale=3)
    assert all(torch.equal(tensors[name], value) for name, value in plain.state_dict().items())
    assert tensors.keys() == plain.state_dict().keys()


def test_a_run_changes_only_attention_and_keeps_the_small_matrices_in_its_checkpoint(tiny: MakeRecipe) -> None:
    first = pretrain(tiny("total_steps=3", out="first")).run
    overrides = (f"start={first}", "lora.rank=2", "teacher.momentum_start=0.1", "teacher.momentum_end=0.1")
    run = pretrain(tiny(*overrides)).run
    before, after = (load_tensors(folder / "model" / "model.safetensors") for folder in (first, run))
    load_model(run / "model")
    different = {name.removeprefix("blocks.") for name in before if not torch.equal(before[name], after[name])}
    assert different == {f"{i}.attn.{m}.weight" for i in (0, 1) for m in ("qkv", "proj")} | {"mask_token"}
    newest = newest_intact(run / "checkpoints")
    assert newest is not None
    assert "backbone.blocks.0.attn.qkv.up" in newest.tensors["student"]


def test_it_goes_on_after_an_interruption_as_if_there_were_none(tiny: MakeRecipe, tmp_path: Path) -> None:
    first = pretrain(tiny("total_steps=3", out="first")).run
    overrides = (f"start={first}", "lora.rank=2", "optimizer.freeze_backbone_steps=2")
    whole = pretrain(tiny(*overrides, out="whole")).run
    for steps in (1, 3, 2):
        pretrain(tiny(*overrides, out="broken"), stop_after=steps)
    a, b = (load_tensors(run / "model" / "model.safetensors") for run in (whole, tmp_path / "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_low_rank_changes_of_random_weights_are_refused(tiny: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match="lora without start"):
        tiny("lora.rank=2")
    with pytest.raises(RecipeError, match="above the backbone's width 48"):
        tiny("start=x", "lora.rank=49")
    with pytest.raises(RecipeError, match=r"lora with parallel\.strategy=fsdp"):
        tiny("start=x", "lora.rank=2", "parallel.strategy=fsdp")
