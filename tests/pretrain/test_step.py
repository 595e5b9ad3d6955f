"""One step: accumulation, stochastic depth, centres, EMA, and the guard."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.objectives.gram import gram_loss
from foveal.pretrain.step import (
    EMA,
    Batch,
    Centers,
    HeadSize,
    Network,
    ObjectiveSettings,
    accumulate_step,
    is_finite,
)

K_DINO, K_IBOT = 11, 7
CENTERING = ObjectiveSettings(centering="centering", koleo_weight=0.0)


def _networks(*, shared: bool = False, drop_path_rate: float = 0.0, num_registers: int = 0) -> tuple[Network, Network]:
    config = backbone_config(
        "vit_nano",
        depth=2,
        patch_size=4,
        image_size=16,
        layerscale_init=0.3,
        drop_path_rate=drop_path_rate,
        num_registers=num_registers,
    )
    ibot = None if shared else HeadSize(K_IBOT, 5, 6)
    student = Network(config, dino=HeadSize(K_DINO, 5, 6), ibot=ibot).init_weights(torch.Generator().manual_seed(0))
    teacher = Network(config, dino=HeadSize(K_DINO, 5, 6), ibot=ibot).init_weights(torch.Generator().manual_seed(1))
    return student, teacher.requires_grad_(False)


def _batch(num_images: int = 4, *, num_local: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(2 * num_images, 3, 16, 16, generator=generator),
        torch.randn(num_local * num_images, 3, 8, 8, generator=generator),
        torch.rand(2 * num_images, 16, generator=generator) < 0.3,
    )


def _slice(batch: Batch, images: slice, num_images: int) -> Batch:
    """Cut some images out of a crop-major batch."""

    def cut(x: Tensor) -> Tensor:
        return x.view(-1, num_images, *x.shape[1:])[:, images].flatten(0, 1)

    return Batch(*(cut(x) for x in batch))


def _centers(shared: bool = False) -> Centers:
    return Centers(torch.zeros(K_DINO), torch.zeros(K_DINO if shared else K_IBOT))


def _run(student: Network, teacher: Network, *batches: Batch, **changes: Any) -> dict[str, Tensor]:
    arguments: dict[str, Any] = {"settings": CENTERING, "centers": _centers(), "teacher_temperature": 0.05} | changes
    return accumulate_step(student, teacher, batches, **arguments)


def _gradients(network: Network) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_micro", [2, 4])
def test_accumulated_micro_batches_equal_the_large_batch(num_micro: int) -> None:
    """With a given centre and without KoLeo no term looks across images."""
    student, teacher = _networks()
    batch, whole_centers, part_centers = _batch(), _centers(), _centers()
    losses = _run(student, teacher, batch, centers=whole_centers)
    whole = _gradients(student)
    student.zero_grad(set_to_none=True)
    size = 4 // num_micro
    parts = [_slice(batch, slice(number * size, (number + 1) * size), 4) for number in range(num_micro)]
    found = _run(student, teacher, *parts, centers=part_centers)
    del found["koleo"], losses["koleo"]
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in losses.items()}, rel=1e-5)
    found_gradients = _gradients(student)
    assert found_gradients.keys() == whole.keys()
    largest = max(float(value.norm()) for value in whole.values())
    for name, value in whole.items():
        # float32 sums in another order; the keys' bias has no gradient but rounding, hence the floor
        assert float((found_gradients[name] - value).norm()) <= 1e-5 * max(float(value.norm()), 1e-2 * largest), name
    whole_centers.commit(0.9)
    part_centers.commit(0.9)
    for found_center, center in ((part_centers.dino, whole_centers.dino), (part_centers.ibot, whole_centers.ibot)):
        assert center.any()
        torch.testing.assert_close(found_center, center, rtol=1e-5, atol=1e-7)


def test_targets_of_a_step_use_the_centre_from_before_it() -> None:
    student, teacher = _networks()
    centers = _centers()
    first = _run(student, teacher, _batch(), centers=centers)
    again = _run(student, teacher, _batch(), centers=centers)
    assert first["loss"] == again["loss"]
    centers.commit(0.0)
    assert not centers.pending
    assert _run(student, teacher, _batch(), centers=centers)["loss"] != first["loss"]


def test_centre_is_the_mean_of_the_teachers_logits() -> None:
    student, teacher = _networks()
    batch, centers = _batch(), _centers()
    _run(student, teacher, batch, centers=centers)
    centers.commit(0.0)
    tokens = teacher.backbone(batch.global_crops)
    for head, features, center in (
        (teacher.dino_head, tokens.cls, centers.dino),
        (teacher.patch_head, tokens.patches[batch.masks], centers.ibot),
    ):
        logits = head(features) @ head.prototypes().T
        torch.testing.assert_close(center, logits.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("num_local", [0, 2])
def test_loss_is_the_weighted_sum_and_reaches_every_parameter(shared: bool, centering: str, num_local: int) -> None:
    student, teacher = _networks(shared=shared, num_registers=2)
    settings = ObjectiveSettings(2.0, 0.5, 0.3, centering)  # type: ignore[arg-type]
    batch = _batch(num_local=num_local)
    found = _run(student, teacher, batch, settings=settings, centers=_centers(shared))
    expected = 2 * (found["dino_local"] + found["dino_global"]) + 0.5 * found["ibot"] + 0.3 * found["koleo"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found["dino_local"].item() == 0) == (num_local == 0)
    assert not [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert not [name for name, parameter in teacher.named_parameters() if parameter.grad is not None]


def test_nothing_masked_gives_no_patch_term() -> None:
    student, teacher = _networks()
    batch = _batch()._replace(masks=torch.zeros(8, 16, dtype=torch.bool))
    centers = _centers()
    found = _run(student, teacher, batch, centers=centers)
    centers.commit(0.9)
    assert found["ibot"].item() == 0
    assert torch.isfinite(found["loss"])
    assert not centers.ibot.any()


def test_stochastic_depth_is_a_function_of_the_generator() -> None:
    student, teacher = _networks(drop_path_rate=0.5)

    def loss(seed: int | None) -> float:
        generators = None if seed is None else lambda number: torch.Generator().manual_seed(seed + number)
        return _run(student, teacher, _batch(), generators=generators)["loss"].item()

    assert loss(3) == loss(3)
    assert loss(4) != loss(3)
    assert loss(None) == loss(None) != loss(3)


def test_all_patches_are_read_and_none_hidden_for_distillation() -> None:
    """The teacher is wider and has registers; only the patch grid and the numbers of prototypes are shared."""
    student, _ = _networks()
    config = backbone_config("vit_nano", depth=3, width=64, num_heads=4, patch_size=4, image_size=16, num_registers=3)
    teacher = Network(config, dino=HeadSize(K_DINO, 8, 6), ibot=HeadSize(K_IBOT, 9, 6))
    teacher.init_weights(torch.Generator().manual_seed(2)).requires_grad_(False)
    batch = _batch()._replace(masks=torch.ones(8, 16, dtype=torch.bool))
    settings = replace(CENTERING, hide_masked=False)
    found = _run(student, teacher, batch, settings=settings)
    targets = torch.softmax(_logits_of_all_patches(teacher, batch) / 0.05, dim=-1)
    log_likely = torch.log_softmax(_logits_of_all_patches(student, batch) / 0.1, dim=-1)
    assert found["ibot"].item() == pytest.approx(-(targets * log_likely).sum(-1).mean().item(), rel=1e-5)
    hidden = _run(student, teacher, batch, settings=CENTERING)
    assert hidden["ibot"].item() != pytest.approx(found["ibot"].item(), rel=1e-3)


@torch.no_grad()
def _logits_of_all_patches(network: Network, batch: Batch) -> Tensor:
    head = network.patch_head
    return head(network.backbone(batch.global_crops).patches) @ head.prototypes().T


def test_gram_term_holds_the_patches_of_the_masked_forward() -> None:
    student, teacher = _networks()
    batch = _batch()
    anchors = torch.randn(8, 16, 7, generator=torch.Generator().manual_seed(5))
    plain = _run(student, teacher, batch)
    without = _gradients(student)
    student.zero_grad(set_to_none=True)
    found = _run(
        student, teacher, batch, settings=replace(CENTERING, gram_weight=0.25), anchor=lambda _: anchors.clone()
    )
    tokens = student.backbone(batch.global_crops, batch.masks)
    term = gram_loss(tokens.patches, anchors)
    assert found["gram"].item() == pytest.approx(term.item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx(plain["loss"].item() + 0.25 * term.item(), rel=1e-5)
    name = "backbone.blocks.0.attn.proj.weight"
    expected = without[name] + 0.25 * torch.autograd.grad(term, student.get_parameter(name))[0]
    torch.testing.assert_close(_gradients(student)[name], expected, rtol=1e-3, atol=1e-6)


def test_bf16_is_near_fp32() -> None:
    student, teacher = _networks()
    settings = replace(CENTERING, centering="sinkhorn_knopp", koleo_weight=0.1)
    exact = _run(student, teacher, _batch(), settings=settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = _run(student, teacher, _batch(), settings=settings)
    # 8 bits of mantissa: logits up to 1 / 0.05 are off by up to 2**-9 of that, some per cent of the loss
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in exact.items()}, rel=0.05)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_ema_by_hand() -> None:
    student, teacher = _networks()
    before = copy.deepcopy(teacher.state_dict())
    EMA(teacher, student).update(0.75)
    for name, value in teacher.state_dict().items():
        # one float32 rounding of the blend
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_ema_with_momentum_1_leaves_the_teacher_to_the_bit() -> None:
    student, teacher = _networks()
    before = copy.deepcopy(teacher.state_dict())
    EMA(teacher, student).update(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_finite_means_loss_and_every_norm(bad: float) -> None:
    fine, wrong = torch.tensor(1.0), torch.tensor(bad)
    assert is_finite({"loss": fine}, {"backbone": fine, "dino_head": fine})
    assert not is_finite({"loss": wrong}, {"backbone": fine})
    assert not is_finite({"loss": fine}, {"backbone": fine, "dino_head": wrong})
