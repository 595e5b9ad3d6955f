"""Mixed resolutions: which size a micro-batch has, how often, and that interruptions do not change it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foveal.backbone.weights import load_tensors
from foveal.errors import RecipeError
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.loader import MicroBatches
from foveal.pretrain.data.views import ViewSettings, sizes_of
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import Recipe

MakeRecipe = Callable[..., Recipe]

MIXED = "views.other_sizes=[[48, 24, 0.3], [24, 8, 0.2]]"


def test_sizes_come_as_often_as_asked_and_depend_on_step_and_group_alone() -> None:
    settings = ViewSettings(global_size=32, local_size=16, other_sizes=((48, 24, 0.3), (24, 8, 0.2)))
    drawn = [sizes_of(settings, seed=1, step=step, group=group) for step in range(500) for group in range(4)]
    counts = Counter((found.global_size, found.local_size) for found in drawn)
    for sizes, probability in {(32, 16): 0.5, (48, 24): 0.3, (24, 8): 0.2}.items():
        assert abs(counts[sizes] / 2000 - probability) < 4 * (probability * (1 - probability) / 2000) ** 0.5
    assert sizes_of(settings, seed=1, step=7, group=3) == drawn[31]
    assert len({found.global_size for found in drawn[:40:4]}) > 1  # the first groups of ten steps


def test_without_other_sizes_nothing_is_drawn() -> None:
    settings = ViewSettings(global_size=32)
    assert sizes_of(settings, seed=1, step=0, group=0) is settings


def test_all_crops_and_masks_of_a_micro_batch_have_its_size(tiny: MakeRecipe, photos: Path) -> None:
    batches = MicroBatches(ImageSet.open(photos), tiny(MIXED, "gram={anchor: teacher, resolution_factor: 2}"))
    seen = set()
    for number in range(12):
        batch = batches[number]
        size, local, anchor = (
            crops.shape[1] for crops in (batch.global_crops, batch.local_crops, batch.anchor_crops) if crops is not None
        )
        assert batch.masks.shape == (4, (size // 8) ** 2)
        assert anchor == 2 * size
        seen.add((size, local))
    assert seen == {(32, 16), (48, 24), (24, 8)}


def test_interruptions_change_nothing(tiny: MakeRecipe, tmp_path: Path) -> None:
    settings = (MIXED, "gram={anchor: teacher, start_step: 2, resolution_factor: 2}")
    whole = pretrain(tiny(*settings, out="whole")).run
    for steps in (1, 3, 2):
        pretrain(tiny(*settings, out="broken"), stop_after=steps)
    a, b = (load_tensors(run / "model" / "model.safetensors") for run in (whole, tmp_path / "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_sizes_that_do_not_fit_are_refused(tiny: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"views.other_sizes=36 is not a multiple of patch_size=8; use 32 or 40"):
        tiny("views.other_sizes=[[36, 16, 0.5]]")
    with pytest.raises(RecipeError, match="add up to 1 or more"):
        tiny("views.other_sizes=[[48, 16, 0.5], [24, 16, 0.5]]")
