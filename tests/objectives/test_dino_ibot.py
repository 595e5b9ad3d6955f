"""The image-level and the patch-level term against the loops of the reference page, written out in float64."""

import math

import pytest
import torch
from torch import Tensor

from foveal.objectives.dino import dino_loss
from foveal.objectives.ibot import ibot_loss

B, V, D, K = 3, 5, 4, 7
TAU = 0.1


def _unit(*shape: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _targets(rows: int, seed: int) -> Tensor:
    return torch.softmax(3 * torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)), dim=1)


def _cross_entropy(target: Tensor, feature: Tensor, prototypes: Tensor) -> float:
    logits = feature.double() @ prototypes.double().T / TAU
    return float(-(target.double() * torch.log_softmax(logits, dim=-1)).sum())


def test_dino_is_the_double_loop_over_pairs() -> None:
    global_features, local_features, prototypes = _unit(2 * B, D, seed=0), _unit(V * B, D, seed=1), _unit(K, D, seed=2)
    targets = _targets(2 * B, seed=3)
    teacher = targets.view(2, B, K)
    local_sum = sum(
        sum(_cross_entropy(teacher[t, b], local_features[v * B + b], prototypes) for b in range(B)) / B
        for v in range(V)
        for t in range(2)
    )
    global_sum = sum(
        sum(_cross_entropy(teacher[1 - s, b], global_features[s * B + b], prototypes) for b in range(B)) / B
        for s in range(2)
    )
    terms = 2 + 2 * V
    local, both = dino_loss(global_features, local_features, prototypes, targets=targets, num_locals=V)
    # float32 sums of some hundred terms of order 10: relative error far below 1e-6
    assert float(local) == pytest.approx(local_sum / terms, rel=1e-6)
    assert float(both) == pytest.approx(global_sum / terms, rel=1e-6)


def test_dino_by_hand() -> None:
    """One image, two prototypes, features (1, 0): p = sigmoid(10) for the first; each cross pair weighs 1/2."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    local, both = dino_loss(
        features, torch.zeros(0, 2), torch.eye(2), targets=torch.tensor([[1.0, 0.0], [0.0, 1.0]]), num_locals=0
    )
    p = 1 / (1 + math.exp(-10))
    assert float(local) == 0
    # first crop meets the second view's target (0, 1), second crop the first view's (1, 0)
    assert float(both) == pytest.approx((-math.log(1 - p) - math.log(p)) / 2, rel=1e-5)


def test_dino_gradient_reaches_students_only() -> None:
    features, prototypes = _unit(2 * B, D, seed=0).requires_grad_(), _unit(K, D, seed=2).requires_grad_()
    local = _unit(V * B, D, seed=1).requires_grad_()
    sum(dino_loss(features, local, prototypes, targets=_targets(2 * B, seed=3), num_locals=V)).backward()  # type: ignore[union-attr]
    assert all(x.grad is not None and x.grad.any() for x in (features, prototypes, local))


def test_ibot_is_the_loop_over_masked_patches() -> None:
    masks = torch.zeros(2 * B, 9, dtype=torch.bool)
    masks[0, [1, 4, 5]] = True
    masks[3, 8] = True
    masks[4, [0, 7]] = True  # crops 1, 2 and 5 have no mask
    features, prototypes, targets = _unit(6, D, seed=0), _unit(K, D, seed=1), _targets(6, seed=2)
    expected, row = 0.0, 0
    for mask in masks:
        masked = int(mask.sum())
        for _ in range(masked):
            expected += _cross_entropy(targets[row], features[row], prototypes) / masked
            row += 1
    loss = ibot_loss(features, prototypes, targets=targets, masks=masks)
    assert loss.item() == pytest.approx(expected / len(masks), rel=1e-6)


def test_ibot_counts_unmasked_crops() -> None:
    """Uniform targets and equal logits cost ln K a patch; one of four crops is masked: ln K / 4 for any mask."""
    masks = torch.zeros(4, 5, dtype=torch.bool)
    masks[2, :3] = True
    loss = ibot_loss(torch.zeros(3, D), torch.ones(K, D), targets=torch.full((3, K), 1 / K), masks=masks)
    assert loss.item() == pytest.approx(math.log(K) / 4, rel=1e-6)


def test_ibot_without_masks_is_zero() -> None:
    features = torch.zeros(0, D, requires_grad=True)
    loss = ibot_loss(features, torch.ones(K, D), targets=torch.zeros(0, K), masks=torch.zeros(4, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
