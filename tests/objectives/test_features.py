"""Regression of a teacher's tokens: the loss by hand, and the moments of its features."""

import pytest
import torch

from foveal.objectives.features import Moments, MomentSums, feature_loss


def test_loss_by_hand() -> None:
    """Rows (3, 4) against (3, 4), and (1, 0) against (0, 2): cosines 1 and 0; smooth L1 0, 0, 0.5 and 1.5."""
    predicted, targets = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert feature_loss(predicted, targets).item() == pytest.approx(0.9 * 0.5 + 0.1 * (0.5 + 1.5) / 4)


def test_gradient_reaches_the_prediction_alone_and_is_fp32_under_autocast() -> None:
    predicted = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = feature_loss(predicted, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(feature_loss(predicted, targets), plain)
    plain.backward()
    assert predicted.grad is not None
    assert targets.grad is None


def test_moments_are_those_of_all_batches_together() -> None:
    tokens = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(2)) * 4 + 100
    sums = MomentSums()
    for part in tokens.split(2):
        sums.add(part)
    rows = tokens.flatten(0, 1)
    mean, std = sums.moments()
    assert torch.allclose(mean, rows.mean(0), rtol=1e-6)
    assert torch.allclose(std, rows.std(0, correction=0), rtol=1e-4)
    standardised = Moments(mean, std).standardise(rows)
    assert standardised.mean(0).abs().max() < 1e-4
    assert torch.allclose(standardised.std(0, correction=0), torch.ones(5), rtol=1e-3)


def test_a_constant_feature_becomes_0() -> None:
    moments = Moments(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert moments.standardise(torch.tensor([[2.0, 3.0]])).tolist() == [[0.0, 2.0]]
