"""Networks in shards, compiled or recomputed, against the plain ones."""

from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch.distributed.tensor import DTensor

from foveal.images.imageset import ImageSet
from foveal.pretrain.data.loader import micro_batches
from foveal.pretrain.loop import Trainer
from foveal.pretrain.processes.launch import joined
from foveal.pretrain.processes.sharding import whole
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import RunFolder

STEPS = 4


def _train(recipe: Recipe) -> dict[str, Any]:
    """Run some steps without checkpoints; return metrics, whole tensors, and how many numbers this process holds."""
    with joined() as world:
        images = ImageSet.open(recipe.images)
        folder = RunFolder(recipe, images_hash=images.hash, writes=world.is_main)
        trainer = Trainer(recipe, folder=folder, images=images, world=world)
        raw = iter(micro_batches(images, recipe, steps=range(STEPS), world=world))
        metrics = []
        for step in range(STEPS):
            count = recipe.batch_size // recipe.micro_batch // world.size
            metrics.append(trainer.train_step([next(raw) for _ in range(count)]))
            trainer.step = step + 1
        held = {f"{stem}.{name}": v for stem, named in trainer._tensors().items() for name, v in named.items()}
        folder.close()
        return {
            "metrics": metrics,
            "tensors": {name: whole(value).detach().clone() for name, value in held.items()},
            "held": sum(v.to_local().numel() if isinstance(v, DTensor) else v.numel() for v in held.values()),
        }


def test_shards_train_like_whole_copies(tiny: Any) -> None:
    # Among all eight of these few pictures some are the same, and the logarithm of their distance is that of rounding.
    settings = ["batch_size=8", "objective.koleo_group=4"]
    alone = _train(tiny(*settings, out="alone"))
    found = on_ranks(2, _train, tiny(*settings, "parallel.strategy=fsdp"))
    for one in found:
        assert isinstance(one, dict), one
        for ours, reference in zip(one["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(reference, rel=1e-4)
        assert one["tensors"].keys() == alone["tensors"].keys()
        for name, value in alone["tensors"].items():
            assert torch.allclose(one["tensors"][name], value, rtol=1e-3, atol=1e-5), name
        assert one["held"] < 0.6 * alone["held"]


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_recomputed_blocks_train_to_the_same_bits(tiny: Any, drop_path_rate: float) -> None:
    settings = f"backbone.drop_path_rate={drop_path_rate}"
    plain = _train(tiny(settings, out="plain"))
    recomputed = _train(tiny(settings, "parallel.recompute=true"))
    assert recomputed["metrics"] == plain["metrics"]
    assert all(torch.equal(recomputed["tensors"][name], value) for name, value in plain["tensors"].items())


@pytest.mark.full
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_compiled_blocks_train_alike(tiny: Any) -> None:
    plain = _train(tiny(out="plain"))
    compiled = _train(tiny("parallel.compile=true"))
    for ours, reference in zip(compiled["metrics"], plain["metrics"], strict=True):
        assert ours == pytest.approx(reference, rel=1e-3)
    assert all(torch.allclose(compiled["tensors"][k], v, rtol=1e-2, atol=1e-4) for k, v in plain["tensors"].items())


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_shards_compiled_recomputed_and_in_bf16_train_like_whole_copies(tiny: Any) -> None:
    alone = _train(tiny("batch_size=8", "precision=bf16", out="alone"))
    settings = ["parallel.strategy=fsdp", "parallel.compile=true", "parallel.recompute=true", "precision=bf16"]
    for one in on_ranks(2, _train, tiny("batch_size=8", *settings), deadline_s=1200):
        assert isinstance(one, dict), one
        for ours, reference in zip(one["metrics"], alone["metrics"], strict=True):
            assert ours["loss"] == pytest.approx(reference["loss"], rel=2e-2)
