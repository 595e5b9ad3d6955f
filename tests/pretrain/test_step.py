"""One step: accumulation, stochastic depth, centres, EMA, and the guard."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.objectives import logits, sinkhorn
from foveal.objectives.gram import gram_loss
from foveal.pretrain.network import Batch, HeadSize, Network, class_tokens, student_tokens
from foveal.pretrain.step import (
    EMA,
    Centers,
    ObjectiveSettings,
    accumulate_step,
    is_finite,
    student_gradients,
    teacher_targets,
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


def _batch(num_images: int = 4, *, num_local: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(2 * num_images, 3, 16, 16, generator=generator).to(dtype),
        torch.randn(num_local * num_images, 3, 8, 8, generator=generator).to(dtype),
        torch.rand(2 * num_images, 16, generator=generator) < 0.3,
    )


def _split(batch: Batch, count: int) -> list[Batch]:
    """Cut a crop-major batch into micro-batches of equally many images."""
    num_images = len(batch.masks) // 2

    def cut(x: Tensor) -> list[Tensor]:
        by_image = x.unflatten(0, (-1, num_images))
        return [part.flatten(0, 1) for part in by_image.chunk(count, dim=1)]

    return [Batch(*parts) for parts in zip(*(cut(x) for x in batch if x is not None), strict=True)]


def _centers(shared: bool = False, dtype: torch.dtype = torch.float32) -> Centers:
    return Centers(torch.zeros(K_DINO, dtype=dtype), torch.zeros(K_DINO if shared else K_IBOT, dtype=dtype))


def _run(student: Network, teacher: Network, *batches: Batch, **changes: Any) -> dict[str, Tensor]:
    arguments: dict[str, Any] = {"settings": CENTERING, "centers": _centers(), "teacher_temperature": 0.05} | changes
    return accumulate_step(student, teacher, batches, **arguments)


def _gradients(network: Network) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


BALANCED = ObjectiveSettings()


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference of a gradient, relative to its norm, or to a hundredth of the largest norm.

    The keys' bias has no gradient but rounding, hence the floor.
    """
    assert found.keys() == expected.keys()
    floor = 1e-2 * max(float(value.norm()) for value in expected.values())
    return max(float((found[k] - v).norm()) / max(float(v.norm()), floor) for k, v in expected.items())


@pytest.mark.parametrize("num_micro", [2, 4])
@pytest.mark.parametrize(
    "settings", [BALANCED, replace(BALANCED, centering="centering"), replace(BALANCED, koleo_group=2)]
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_accumulated_micro_batches_equal_the_large_batch(
    num_micro: int, settings: ObjectiveSettings, dtype: torch.dtype, limit: float
) -> None:
    """Targets and neighbours are those of the whole step; only the order of sums differs."""
    student, teacher = (network.to(dtype) for network in _networks())
    batch, centers = _batch(dtype=dtype), [_centers(dtype=dtype) for _ in range(2)]
    losses = _run(student, teacher, batch, settings=settings, centers=centers[0])
    whole = _gradients(student)
    student.zero_grad(set_to_none=True)
    found = _run(student, teacher, *_split(batch, num_micro), settings=settings, centers=centers[1])
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in losses.items()}, rel=limit)
    assert _difference(_gradients(student), whole) <= limit
    for each in centers:
        each.commit(0.9)
    for name in ("dino", "ibot"):
        found_center, center = getattr(centers[1], name), getattr(centers[0], name)
        assert center.any() == (settings.centering == "centering")
        torch.testing.assert_close(found_center, center, rtol=limit, atol=limit)


def test_no_logits_of_the_whole_batch_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, none kept: the same gradients."""
    student, teacher = (network.double() for network in _networks())
    parts = _split(_batch(dtype=torch.float64), 2)
    _run(student, teacher, *parts, settings=BALANCED)
    whole = _gradients(student)
    student.zero_grad(set_to_none=True)
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 3 * K_DINO)
    monkeypatch.setattr(sinkhorn, "KEPT_ELEMENTS", 0)
    _run(student, teacher, *parts, settings=BALANCED)
    assert _difference(_gradients(student), whole) <= 1e-10


def test_in_the_scope_of_a_micro_batch_each_is_a_step_of_its_own() -> None:
    student, teacher = (network.double() for network in _networks())
    parts = _split(_batch(dtype=torch.float64), 2)
    apart = [_run(student, teacher, part, settings=BALANCED) for part in parts]
    summed = _gradients(student)
    student.zero_grad(set_to_none=True)
    found = _run(student, teacher, *parts, settings=replace(BALANCED, batch_scope="micro_batch"))
    assert _difference(_gradients(student), {name: value / 2 for name, value in summed.items()}) <= 1e-10
    expected = {name: (apart[0][name] + apart[1][name]).item() / 2 for name in found}
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-10)
    student.zero_grad(set_to_none=True)
    _run(student, teacher, *parts, settings=BALANCED)
    assert _difference(_gradients(student), {name: value / 2 for name, value in summed.items()}) > 1e-3


@pytest.mark.parametrize("num_local", [0, 3])
def test_class_tokens_without_local_crops_are_those_of_the_whole_pass(num_local: int) -> None:
    """Dropped branches included, or the gradient of KoLeo would be that of another network."""
    student, _ = _networks(drop_path_rate=0.5, num_registers=1)
    batch = _batch(num_local=num_local)

    def draws() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    whole = student_tokens(student, batch, hide_masked=True, all_patches=False, generator=draws()).global_cls
    found = class_tokens(student, batch, hide_masked=True, generator=draws())
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    other = class_tokens(student, batch, hide_masked=True, generator=torch.Generator().manual_seed(4))
    assert not torch.allclose(other, whole, rtol=1e-2, atol=1e-2)
    assert not found.requires_grad


def test_one_teacher_pass_serves_several_students() -> None:
    student, teacher = _networks()
    other = _networks()[1].requires_grad_(True)
    parts = _split(_batch(), 2)
    targets = list(teacher_targets(teacher, parts, settings=BALANCED, centers=_centers(), temperature=0.05))
    for network in (student, other):
        expected = _run(network, teacher, *parts, settings=BALANCED)
        assert student_gradients(network, parts, targets, settings=BALANCED) == expected


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
    settings = ObjectiveSettings(dino_weight=2.0, ibot_weight=0.5, koleo_weight=0.3, centering=centering)  # type: ignore[arg-type]
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
    plain = _run(student, teacher, batch, anchor=lambda _: pytest.fail("without a weight nobody needs an anchor"))
    assert "gram" not in plain
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
