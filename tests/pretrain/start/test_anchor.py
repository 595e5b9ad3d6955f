"""The anchor of the Gram term: which weights it holds when, at which resolution, and across interruptions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.errors import RecipeError
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.loader import MicroBatches
from foveal.pretrain.loop import pretrain
from foveal.pretrain.network import Batch
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import read_metrics
from foveal.pretrain.start.anchor import GramAnchor
from foveal.pretrain.start.settings import Gram

MakeRecipe = Callable[..., Recipe]


def network() -> VisionTransformer:
    config = backbone_config("vit_nano", depth=1, patch_size=4, image_size=12, layerscale_init=0.5)
    return VisionTransformer(config).init_weights(torch.Generator().manual_seed(0)).eval()


def copied_at(settings: Gram, steps: int) -> list[int]:
    """Steps in which the anchor takes the teacher over; the teacher is another in every step."""
    teacher = network()
    anchor, found = GramAnchor(settings, teacher=teacher), []
    for step in range(steps):
        torch.nn.init.constant_(teacher.cls_token, float(step + 1))
        anchor.follow(step)
        if anchor.backbone.cls_token[0, 0, 0] == step + 1:
            found.append(step)
    return found


def test_the_teacher_is_copied_when_the_term_begins_and_so_many_times_more() -> None:
    every_three = Gram(anchor="teacher", start_step=2, refresh_every_steps=3, max_refreshes=2)
    assert copied_at(every_three, 15) == [2, 5, 8]
    assert copied_at(Gram(anchor="teacher", start_step=2), 15) == [2]
    assert copied_at(Gram(anchor="start"), 15) == []


def test_a_copy_whose_step_was_left_out_is_taken_at_the_next() -> None:
    teacher = network()
    anchor = GramAnchor(Gram(anchor="teacher", start_step=2, refresh_every_steps=3), teacher=teacher)
    before = {name: tensor.clone() for name, tensor in anchor.tensors().items()}
    for step in (2, 3, 5):
        anchor.follow(step)
    anchor.restore(before, where="here")  # the guard goes back to a checkpoint of step 1, and on with step 6
    torch.nn.init.constant_(teacher.cls_token, 7.0)
    anchor.follow(6)
    assert anchor.backbone.cls_token[0, 0, 0] == 7
    torch.nn.init.constant_(teacher.cls_token, 8.0)
    anchor.follow(7)
    assert anchor.backbone.cls_token[0, 0, 0] == 7
    anchor.follow(8)
    assert anchor.backbone.cls_token[0, 0, 0] == 8


def test_the_weight_is_zero_before_its_step() -> None:
    anchor = GramAnchor(Gram(anchor="teacher", start_step=2, weight=0.5), teacher=network())
    assert [anchor.weight_at(step) for step in range(4)] == [0.0, 0.0, 0.5, 0.5]


def test_finer_crops_give_patches_on_the_grid_of_the_student() -> None:
    anchor = GramAnchor(Gram(anchor="start"), teacher=network())
    generator = torch.Generator().manual_seed(1)
    crops, fine = (torch.randn(2, 3, size, size, generator=generator) for size in (12, 24))
    none, masks = torch.empty(0), torch.zeros(2, 9, dtype=torch.bool)
    plain = anchor(Batch(crops, none, masks))
    assert torch.equal(plain, anchor.backbone(crops).patches)
    grid = anchor.backbone(fine).patches.unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, size=(3, 3), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(anchor(Batch(crops, none, masks, fine)), wanted)


def test_the_crops_of_the_anchor_are_the_global_crops_enlarged(tiny: MakeRecipe, photos: Path) -> None:
    images = ImageSet.open(photos)
    plain = MicroBatches(images, tiny())[3]
    fine = MicroBatches(images, tiny("gram={anchor: teacher, resolution_factor: 2}"))[3]
    assert plain.anchor_crops is None
    assert fine.anchor_crops is not None
    assert torch.equal(plain.global_crops, fine.global_crops)
    assert torch.equal(plain.local_crops, fine.local_crops)
    assert fine.anchor_crops.shape == (4, 64, 64, 3)
    halved = F.avg_pool2d(fine.anchor_crops.permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
    assert (halved - fine.global_crops.float()).abs().mean() < 4  # grey levels; other crops are dozens apart


def test_the_term_is_part_of_the_loss_from_its_step_on_and_survives_interruptions(tiny: MakeRecipe) -> None:
    gram = "gram={anchor: teacher, weight: 3, start_step: 2, refresh_every_steps: 2, resolution_factor: 2}"
    whole = pretrain(tiny(gram, out="whole")).run
    for _ in range(3):
        pretrain(tiny(gram, out="broken"), stop_after=2)
    lines, again = read_metrics(whole), read_metrics(whole.parent / "broken")
    assert ["gram" in line for line in lines] == [False, False, True, True, True, True]
    assert lines[3]["gram"] > 0
    assert [line["loss"] for line in lines] == [line["loss"] for line in again]


def test_settings_without_effect_are_refused(tiny: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"gram\.anchor=start without start"):
        tiny("gram.anchor=start")
    with pytest.raises(RecipeError, match="not below total_steps=6"):
        tiny("gram={anchor: teacher, start_step: 6}")
    with pytest.raises(RecipeError, match=r"has no effect with gram\.anchor=start"):
        tiny("gram={anchor: start, refresh_every_steps: 2}")
