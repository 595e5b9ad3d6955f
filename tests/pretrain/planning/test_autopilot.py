"""Settings that follow from images and hardware."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foveal.errors import RecipeError
from foveal.pretrain.loop import pretrain
from foveal.pretrain.planning.autopilot import Hardware, fit_to_hardware, free_memory, this_hardware
from foveal.pretrain.planning.cost import memory_bytes
from foveal.pretrain.recipe import Recipe, load_recipe

LAPTOP = Hardware("cpu", memory=8 * 10**9, cores=4, bf16=False)
SERVER = Hardware("cuda", memory=80 * 10**9, cores=32, bf16=True)


def _recipe(*overrides: str, name: str = "vitl16_in1k_short") -> Recipe:
    return load_recipe(name, ["images=a", "out=b", "hardware=auto", *overrides])


def test_imagenet_on_a_large_device_gets_the_published_prototypes_and_a_full_memory() -> None:
    recipe, choices = fit_to_hardware(_recipe(), num_images=1_281_167, hardware=SERVER)
    assert recipe.heads.dino.num_prototypes == 65_536  # as published
    assert (recipe.batch_size, recipe.precision, recipe.num_workers) == (1024, "bf16", 16)
    used = sum(memory_bytes(recipe).values())
    twice = sum(memory_bytes(recipe.model_copy(update={"micro_batch_size": 2 * recipe.micro_batch})).values())
    assert used <= 0.8 * SERVER.memory < twice
    assert all(choice.reason for choice in choices)


def test_a_laptop_gets_a_small_batch_in_pieces_that_fit() -> None:
    recipe, _ = fit_to_hardware(_recipe("backbone.variant=vits"), num_images=5000, hardware=LAPTOP)
    assert (recipe.batch_size, recipe.heads.dino.num_prototypes) == (64, 256)
    assert (recipe.precision, recipe.num_workers) == ("fp32", 1)
    assert sum(memory_bytes(recipe).values()) <= 0.8 * LAPTOP.memory


def test_what_is_set_by_hand_stays() -> None:
    wanted = _recipe("batch_size=48", "precision=bf16", "backbone.variant=vits")
    assert wanted.hardware
    assert {"batch_size", "precision"} < set(wanted.hardware.keep)
    recipe, choices = fit_to_hardware(wanted, num_images=5000, hardware=LAPTOP, keep=wanted.hardware.keep)
    assert (recipe.batch_size, recipe.precision) == (48, "bf16")
    assert not {"batch_size", "precision", "backbone.variant"} & {choice.key for choice in choices}


@pytest.mark.parametrize(("gigabytes", "group"), [(8, 32), (3, None)])
def test_neighbours_are_looked_for_in_a_micro_batch_that_is_large_enough(gigabytes: int, group: int | None) -> None:
    small = Hardware("cpu", memory=gigabytes * 10**9, cores=4, bf16=False)
    recipe, choices = fit_to_hardware(_recipe("backbone.variant=vits"), num_images=5000, hardware=small)
    assert recipe.objective.koleo_group == group
    assert recipe.micro_batch < recipe.batch_size
    assert "objective.koleo_group" in {choice.key for choice in choices}


def test_a_batch_never_holds_an_image_twice() -> None:
    recipe, _ = fit_to_hardware(_recipe("backbone.variant=vits"), num_images=20, hardware=LAPTOP)
    assert recipe.batch_size == 16


def test_a_network_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(RecipeError, match=r"need 2\d\.\d GB and 8\.0 are there; choose a smaller backbone"):
        fit_to_hardware(_recipe(name="vitg14_lvd142m"), num_images=10**6, hardware=LAPTOP)


def test_this_computer_has_memory_and_cores() -> None:
    found = this_hardware(torch.device("cpu"))
    assert found.cores >= 1
    assert 0 < free_memory() < 2**50
    assert found.device == "cpu"


def test_a_run_says_its_choices_once_and_keeps_them(
    tiny_yaml: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"

    def recipe(*more: str) -> Recipe:
        given = [f"images={photos}", f"out={run}", "hardware=auto", "heads.ibot=null", "precision=fp32", *more]
        return load_recipe(str(tiny_yaml), given)

    with caplog.at_level(logging.INFO, logger="foveal"):
        pretrain(recipe(), stop_after=1)
    assert "hardware=auto: batch_size=8: the square root of 11 images" in caplog.text
    stored: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (stored["batch_size"], stored["hardware"]["keep"][:2]) == (8, ["images", "out"])
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="foveal"):
        assert pretrain(recipe(), stop_after=1).step == 2
    assert "keeps the choices of its first start" in caplog.text
    assert "square root" not in caplog.text
