"""A step over several processes against the same step in one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.objectives.koleo import koleo_loss
from foveal.objectives.logits import Logits
from foveal.objectives.sinkhorn import sinkhorn_knopp, updated_center
from foveal.pretrain.network import Batch, HeadSize, Network
from foveal.pretrain.processes.launch import joined
from foveal.pretrain.processes.parallel import GradientSum, World
from foveal.pretrain.step import Centers, ObjectiveSettings, accumulate_step

NUM_MICRO = 4
NUM_IMAGES = 3  # of a micro-batch
K_DINO, K_IBOT = 11, 7


def _networks(dtype: torch.dtype) -> tuple[Network, Network]:
    config = backbone_config("vit_nano", depth=2, patch_size=4, image_size=16, layerscale_init=0.3, drop_path_rate=0.5)
    student, teacher = (
        Network(config, dino=HeadSize(K_DINO, 5, 6), ibot=HeadSize(K_IBOT, 5, 6))
        .init_weights(torch.Generator().manual_seed(seed))
        .to(dtype)
        for seed in (0, 1)
    )
    return student, teacher.requires_grad_(False)


def _batch(number: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(number)
    return Batch(
        torch.randn(2 * NUM_IMAGES, 3, 16, 16, generator=generator).to(dtype),
        torch.randn(2 * NUM_IMAGES, 3, 8, 8, generator=generator).to(dtype),
        torch.rand(2 * NUM_IMAGES, 16, generator=generator) < 0.1 * (number + 1),
    )


def _step(world: World, settings: ObjectiveSettings, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the losses, gradients and centres of a step of four micro-batches, as this process has them at its end."""
    student, teacher = _networks(dtype)
    centers = Centers(torch.zeros(K_DINO, dtype=dtype), torch.zeros(K_IBOT, dtype=dtype))
    sums = GradientSum(student.parameters(), world)
    losses = accumulate_step(
        student,
        teacher,
        [_batch(number, dtype) for number in world.part(NUM_MICRO)],
        settings=settings,
        centers=centers,
        teacher_temperature=0.05,
        generators=lambda number: torch.Generator().manual_seed(100 + number),
        world=world,
    )
    sums.add_up()
    centers.commit(0.9)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    return losses | gradients | {"centers.dino": centers.dino, "centers.ibot": centers.ibot}


def _in_world(settings: list[ObjectiveSettings], dtype: torch.dtype, canonical: bool) -> list[dict[str, Tensor]]:
    with joined(canonical=canonical) as world:
        return [_step(world, each, dtype) for each in settings]


SETTINGS = [
    ObjectiveSettings(),
    ObjectiveSettings(centering="centering", koleo_group=6),
    ObjectiveSettings(koleo_group=4),
    ObjectiveSettings(batch_scope="micro_batch"),
    ObjectiveSettings(batch_scope="micro_batch", centering="centering"),
    ObjectiveSettings(koleo_weight=0.0),
]


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_processes_add_up_to_those_of_one(size: int) -> None:
    """In float64, where only the order of sums is left: also across the borders of processes and of KoLeo's groups."""
    expected = [_step(World(), each, torch.float64) for each in SETTINGS]
    for found in on_ranks(size, _in_world, SETTINGS, torch.float64, False):
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            largest = max(float(value.norm()) for value in other.values())
            for name, value in other.items():
                torch.testing.assert_close(one[name], value, rtol=1e-9, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_a_canonical_step_has_the_same_bits_in_any_number_of_processes(size: int) -> None:
    expected = [_step(World(canonical=True), each, torch.float32) for each in SETTINGS]
    for found in on_ranks(size, _in_world, SETTINGS, torch.float32, True):
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys()
            assert [name for name, value in other.items() if not torch.equal(one[name], value)] == []


def test_neighbours_in_other_processes_matter() -> None:
    """Else the tests above would pass with neighbours from a micro-batch."""
    whole, apart = (
        _step(World(), replace(ObjectiveSettings(), koleo_group=group), torch.float64) for group in (None, 3)
    )
    name = "backbone.blocks.0.attn.proj.weight"
    assert not torch.allclose(whole[name], apart[name], rtol=1e-3)


def _objectives(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Parts of different sizes, one of them perhaps empty; features of equal size for KoLeo."""
    logits, features = _values()
    with joined() as world:
        part = Logits(logits.split(sizes)[world.rank], torch.eye(7))
        (targets,) = sinkhorn_knopp([part], temperature=0.04, ranks=world.ranks)
        own = features.chunk(2)[world.rank].clone().requires_grad_()
        loss = koleo_loss(own, ranks=world.ranks)
        loss.backward()
        return {
            "targets": torch.cat([targets(rows) for rows in part.chunks()] or [torch.zeros(0, 7)]),
            "center": updated_center(torch.ones(7), part.sum()[None], [len(part)], ranks=world.ranks),
            "koleo": loss.detach(),
            "gradient": own.grad,
        }


def _values() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(11, 7, generator=generator) - 1, torch.randn(10, 5, generator=generator)


@pytest.mark.parametrize("sizes", [(3, 8), (0, 11)])
def test_terms_over_two_processes_equal_those_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    logits, features = _values()
    part = Logits(logits, torch.eye(7))
    (targets,) = sinkhorn_knopp([part], temperature=0.04)
    whole = features.clone().requires_grad_()
    loss = koleo_loss(whole)
    loss.backward()
    found = on_ranks(2, _objectives, sizes)
    close = {"rtol": 1e-4, "atol": 1e-6}  # only the order of float32 sums differs
    torch.testing.assert_close(torch.cat([one["targets"] for one in found]), targets(slice(0, 11)), **close)
    torch.testing.assert_close(torch.cat([one["gradient"] for one in found]), whole.grad, **close)
    for one in found:
        torch.testing.assert_close(one["center"], updated_center(torch.ones(7), part.sum()[None], [11]), **close)
        torch.testing.assert_close(one["koleo"], loss.detach(), **close)
        assert torch.equal(one["center"], found[0]["center"])
