import math

import pytest
import torch
from torch import Tensor

from foveal.objectives.koleo import koleo_loss


def _direct(features: Tensor) -> float:
    """The formula, image by image, in float64."""
    x = [row / row.norm() for row in features.double()]
    total = 0.0
    for i, row in enumerate(x):
        nearest = max((j for j in range(len(x)) if j != i), key=lambda j: float(row @ x[j]))
        total -= math.log(float((row - x[nearest] + 1e-8).norm()) + 1e-8)
    return total / len(x)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_matches_the_loop_in_float64(scale: float) -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * scale
    # float32 distances of order 1: relative error below 1e-5
    assert koleo_loss(features).item() == pytest.approx(_direct(features), rel=1e-5, abs=1e-6)


def test_by_hand() -> None:
    """Three unit vectors at 0, 90 and 180 degrees: every nearest neighbour is at distance sqrt(2)."""
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert koleo_loss(features).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)


def test_gradient_matches_float64() -> None:
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    f = features.clone().requires_grad_()
    koleo_loss(f).backward()
    step = 1e-6
    numeric = torch.zeros(5, 3, dtype=torch.float64)
    for i in range(5):
        for j in range(3):
            up, down = features.double(), features.double()
            up[i, j] += step
            down[i, j] -= step
            numeric[i, j] = (_direct(up) - _direct(down)) / (2 * step)
    # central differences: error about step**2; float32 gradient: about 1e-6 of values of order 1
    torch.testing.assert_close(f.grad, numeric.float(), rtol=1e-4, atol=1e-5)


def test_duplicates_are_finite_with_finite_gradient() -> None:
    features = torch.ones(4, 6, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    # distance |(1e-8, ...)| = sqrt(6) 1e-8
    assert loss.item() == pytest.approx(-math.log((math.sqrt(6) + 1) * 1e-8), rel=1e-3)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_zero_vectors_are_finite() -> None:
    features = torch.zeros(3, 4, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_neighbours_gives_zero(batch: int) -> None:
    features = torch.ones(batch, 4, requires_grad=True)
    loss = koleo_loss(features)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_is_fp32_inside_bf16_autocast() -> None:
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo_loss(features)
    assert loss.dtype == torch.float32
    assert loss.item() == float(koleo_loss(features.float()))


def test_neighbours_are_looked_for_in_groups_of_the_batch() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    expected = sum(_direct(group) for group in features.split(4)) / 3
    assert koleo_loss(features, group_size=4).item() == pytest.approx(expected, rel=1e-5)
    assert koleo_loss(features).item() != pytest.approx(expected, rel=1e-3)
    assert koleo_loss(features, group_size=1).item() == 0


def test_float64_stays_float64() -> None:
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert koleo_loss(features).item() == pytest.approx(_direct(features), rel=1e-13)
