"""Loss and both gradients against autograd through the formula in float64."""

import math

import pytest
import torch
from torch import Tensor

from foveal.objectives import logits
from foveal.objectives.cross_entropy import prototype_cross_entropy

N, M, D, K = 7, 3, 5, 11

# float32 sums over K = 11 terms, logits up to 10: a few units of 6e-8 relative to values of order 1.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(N, D, generator=generator), dim=1)
    prototypes = torch.randn(K, D, generator=generator)
    targets = torch.rand(N, K, generator=generator)  # masses far from 1
    return features, prototypes, targets, torch.rand(N, generator=generator)


def _direct(
    features: Tensor, prototypes: Tensor, targets: Tensor, weights: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    f, p = (x.double().requires_grad_() for x in (features.detach(), prototypes.detach()))
    log_probabilities = torch.log_softmax(f @ p.T / temperature, dim=1)
    loss = (weights.double() * (-targets.double() * log_probabilities).sum(1)).sum()
    return loss.detach(), *torch.autograd.grad(loss, (f, p))


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, N, 100])
def test_value_and_gradients_match_float64_whatever_the_chunk(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", chunk_rows * K)
    features, prototypes, targets, weights = _inputs()
    f, p = features.clone().requires_grad_(), prototypes.clone().requires_grad_()
    loss = prototype_cross_entropy(f, p, targets=targets, weights=weights, temperature=0.1)
    (3 * loss).backward()
    expected, grad_f, grad_p = _direct(features, prototypes, targets, weights, 0.1)
    torch.testing.assert_close(loss.detach(), expected.float(), **CLOSE)
    torch.testing.assert_close(f.grad, 3 * grad_f.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(p.grad, 3 * grad_p.float(), rtol=1e-5, atol=1e-5)


def test_chunks_smaller_than_one_row_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 1)
    features, prototypes, targets, weights = _inputs()
    loss = prototype_cross_entropy(features, prototypes, targets=targets, weights=weights, temperature=0.1)
    torch.testing.assert_close(loss, _direct(features, prototypes, targets, weights, 0.1)[0].float(), **CLOSE)


def test_target_rows_pick_a_target_for_each_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 2 * K)
    features, prototypes, targets, weights = _inputs()
    rows = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    f = features.clone().requires_grad_()
    loss = prototype_cross_entropy(
        f, prototypes, targets=targets[:M], target_rows=rows, weights=weights, temperature=0.2
    )
    loss.backward()
    expected, grad_f, _ = _direct(features, prototypes, targets[:M][rows], weights, 0.2)
    torch.testing.assert_close(loss.detach(), expected.float(), **CLOSE)
    torch.testing.assert_close(f.grad, grad_f.float(), rtol=1e-5, atol=1e-5)


def test_targets_may_be_formed_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "CHUNK_ELEMENTS", 3 * K)
    features, prototypes, targets, weights = _inputs()
    asked = []

    def formed(rows: slice) -> Tensor:
        asked.append((rows.start, rows.stop))
        return targets[rows]

    loss = prototype_cross_entropy(features, prototypes, targets=formed, weights=weights, temperature=0.1)
    whole = prototype_cross_entropy(features, prototypes, targets=targets, weights=weights, temperature=0.1)
    assert torch.equal(loss, whole)
    assert asked == [(0, 3), (3, 6), (6, N)]


def test_float64_stays_float64() -> None:
    features, prototypes, targets, weights = (x.double() for x in _inputs())
    f = features.clone().requires_grad_()
    loss = prototype_cross_entropy(f, prototypes, targets=targets, weights=weights, temperature=0.1)
    loss.backward()
    expected, grad_f, _ = _direct(features, prototypes, targets, weights, 0.1)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(f.grad, grad_f, rtol=1e-12, atol=1e-13)


def test_hand_computed_case() -> None:
    """Logits (ln 3, 0), target (0.25, 0.75): -0.25 ln(3/4) - 0.75 ln(1/4); weight 2."""
    features, prototypes = torch.tensor([[1.0]]), torch.tensor([[math.log(3) / 2], [0.0]])
    loss = prototype_cross_entropy(
        features,
        prototypes,
        targets=torch.tensor([[0.25, 0.75]]),
        weights=torch.tensor([2.0]),
        temperature=0.5,
    )
    assert loss.item() == pytest.approx(2 * (-0.25 * math.log(0.75) - 0.75 * math.log(0.25)), rel=1e-6)


def test_no_rows_give_zero_with_zero_gradients() -> None:
    f, p = torch.zeros(0, D, requires_grad=True), torch.ones(K, D, requires_grad=True)
    loss = prototype_cross_entropy(f, p, targets=torch.zeros(0, K), weights=torch.zeros(0), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert f.grad is not None
    assert f.grad.shape == (0, D)
    assert p.grad is not None
    assert not p.grad.any()


def test_a_row_of_zero_mass_costs_nothing() -> None:
    features, prototypes, targets, weights = _inputs()
    targets[2] = 0
    f = features.clone().requires_grad_()
    prototype_cross_entropy(f, prototypes, targets=targets, weights=weights, temperature=0.1).backward()
    assert f.grad is not None
    assert not f.grad[2].any()
    assert f.grad[1].any()


def test_huge_logits_stay_finite() -> None:
    features, prototypes, targets, weights = _inputs()
    f = (1e4 * features).requires_grad_()
    loss = prototype_cross_entropy(f, prototypes, targets=targets, weights=weights, temperature=0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert f.grad is not None
    assert torch.isfinite(f.grad).all()


def test_under_bf16_autocast_only_the_products_are_bf16() -> None:
    """With logits that bf16 holds exactly, the loss is the float32 one: the dot with the targets must not be bf16."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-2, 3, (N, D), generator=generator).float()
    prototypes = torch.randint(-2, 3, (K, D), generator=generator).float()
    targets = torch.softmax(torch.randn(N, K, generator=generator), dim=1)
    weights = torch.ones(N)
    with torch.autocast("cpu", torch.bfloat16):
        f = features.clone().requires_grad_()
        loss = prototype_cross_entropy(f, prototypes, targets=targets, weights=weights, temperature=1.0)
    loss.backward()
    expected, grad_f, _ = _direct(features, prototypes, targets, weights, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected.float(), **CLOSE)
    assert f.grad is not None
    assert f.grad.dtype == torch.float32
    # The gradient with respect to the logits is rounded to bf16 (2**-9) before its product with the prototypes.
    torch.testing.assert_close(f.grad, grad_f.float(), rtol=0, atol=2**-9 * 2 * K)
