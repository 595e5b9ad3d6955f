"""Teacher targets against the iterations of the reference page in float64, in one part and in several."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.objectives import logits as logits_module
from foveal.objectives import sinkhorn as sinkhorn_module
from foveal.objectives.logits import Logits
from foveal.objectives.sinkhorn import sinkhorn_knopp, softmax_center, updated_center

B, K = 5, 7
TAU = 0.04

# Three rounds of float32 products over a few terms: some 1e-7 of values up to 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def _cosines(rows: int, columns: int = K, *, seed: int = 0) -> Tensor:
    return 2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 1


def _parts(logits: Tensor, sizes: Sequence[int] | None = None) -> list[Logits]:
    """Logits as products with the unit matrix, which changes no bit of them."""
    eye = torch.eye(logits.shape[1], dtype=torch.promote_types(logits.dtype, torch.float32))
    return [Logits(part, eye) for part in logits.split(list(sizes) if sizes else [len(logits)])]


def _balanced(logits: Tensor, sizes: Sequence[int] | None = None, **arguments: Any) -> Tensor:
    parts = _parts(logits, sizes)
    targets = sinkhorn_knopp(parts, **({"temperature": TAU} | arguments))
    none = logits.new_zeros(0, logits.shape[1], dtype=torch.float32)
    formed = [found(rows) for part, found in zip(parts, targets, strict=True) for rows in part.chunks()]
    return torch.cat(formed) if formed else none


def _direct(logits: Tensor, *, temperature: float = TAU, num_iterations: int = 3) -> Tensor:
    """The matrix iteration, line by line."""
    q = torch.exp(logits.double() / temperature).T
    num_prototypes, num_samples = q.shape
    q /= q.sum()
    for _ in range(num_iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= num_prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= num_samples
    return (q * num_samples).T


@pytest.mark.parametrize("num_iterations", [1, 3, 10])
@pytest.mark.parametrize("rows", [1, B, 64])
def test_matches_the_matrix_iteration(rows: int, num_iterations: int) -> None:
    logits = _cosines(rows)
    found = _balanced(logits, num_iterations=num_iterations)
    expected = _direct(logits, num_iterations=num_iterations)
    torch.testing.assert_close(found, expected.float(), **CLOSE)
    torch.testing.assert_close(found.sum(1), torch.ones(rows), rtol=0, atol=1e-5)


def test_by_hand() -> None:
    """Two samples that both prefer prototype 0: it is shared, and the weaker liking goes to prototype 1.

    exp(z / tau) = [[4, 1], [2, 1]]; prototypes' totals 6, 2 -> [[2/3, 1/2], [1/3, 1/2]]; samples' totals 7/6, 5/6.
    """
    logits = TAU * torch.log(torch.tensor([[4.0, 1.0], [2.0, 1.0]]))
    found = _balanced(logits, num_iterations=1)
    torch.testing.assert_close(found, torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]]), **CLOSE)


def test_prototypes_end_up_balanced() -> None:
    found = _balanced(_cosines(64) + torch.tensor([0.5, *[0.0] * (K - 1)]), temperature=0.5, num_iterations=50)
    torch.testing.assert_close(found.sum(0), torch.full((K,), 64 / K), rtol=1e-3, atol=0)


def test_a_part_without_samples_gives_no_targets_and_changes_no_others() -> None:
    found = _balanced(_cosines(B), [2, 0, 3])
    assert torch.equal(found, _balanced(_cosines(B), [2, 3]))
    (part,) = _parts(torch.zeros(0, K))
    assert len(sinkhorn_knopp([part], temperature=TAU)) == 1
    assert part.chunks() == []


def test_one_sample_is_spread_over_all_prototypes() -> None:
    torch.testing.assert_close(_balanced(_cosines(1)), torch.full((1, K), 1 / K), rtol=1e-5, atol=0)


def test_one_sample_far_below_the_others_keeps_a_target() -> None:
    """exp((its logits - the largest) / tau) is 0 in float32; the exact result, with 200 subtracted, is that with 3."""
    logits = _cosines(6)
    far, near = logits.clone(), logits.clone()
    far[0] -= 200
    near[0] -= 3
    found = _balanced(far, num_iterations=30)
    torch.testing.assert_close(found.sum(1), torch.ones(6), rtol=0, atol=1e-5)
    # Scaling a sample changes only the path to the fixed point: after many iterations both agree.
    torch.testing.assert_close(found, _balanced(near, num_iterations=30), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite_and_sum_to_one(scale: float) -> None:
    found = _balanced(scale * _cosines(64, 33))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(64), rtol=0, atol=1e-5)


def test_is_fp32_inside_bf16_autocast() -> None:
    """The matrix-vector products must not fall to bf16, which would be off by 2**-9."""
    logits = _cosines(64)
    with torch.autocast("cpu", torch.bfloat16):
        targets = sinkhorn_knopp(_parts(logits), temperature=TAU)
    assert torch.equal(targets[0](slice(0, 64)), _balanced(logits))


def test_bf16_logits_are_taken_as_float32_and_left_alone() -> None:
    logits = _cosines(B).bfloat16()
    before = logits.clone()
    torch.testing.assert_close(_balanced(logits), _direct(before.double()).float(), **CLOSE)
    assert torch.equal(logits, before)


def test_softmax_center_is_the_formula() -> None:
    logits, center = _cosines(B), _cosines(1, seed=1)[0]
    expected = torch.softmax((logits.double() - center.double()) / TAU, dim=1)
    (targets,) = softmax_center(_parts(logits), center=center, temperature=TAU)
    torch.testing.assert_close(targets(slice(1, 4)), expected[1:4].float(), **CLOSE)


def test_center_moves_a_tenth_of_the_way_to_the_mean() -> None:
    center = torch.tensor([1.0, 0.0])
    logits = torch.tensor([[2.0, 4.0], [4.0, 0.0]])
    torch.testing.assert_close(updated_center(center, logits, [1, 1]), torch.tensor([1.2, 0.2]))
    torch.testing.assert_close(updated_center(center, logits, [1, 1], momentum=0.5), torch.tensor([2.0, 1.0]))


def test_center_without_samples_stays() -> None:
    center = torch.tensor([1.0, -2.0])
    assert torch.equal(updated_center(center, torch.zeros(1, 2), [0]), center)


def test_the_sum_of_logits_is_that_of_their_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    part = Logits(torch.randn(B, 4, generator=generator), torch.randn(K, 4, generator=generator))
    torch.testing.assert_close(part.sum(), part(slice(0, B)).sum(0), rtol=1e-5, atol=1e-6)
    assert not Logits(torch.zeros(0, 4), torch.ones(K, 4)).sum().any()


@pytest.mark.parametrize("sizes", [(5, 6), (1, 3, 7), (11,)])
def test_parts_are_balanced_together(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the logits of a part take several chunks, of very different sizes of the largest logit."""
    monkeypatch.setattr(logits_module, "CHUNK_ELEMENTS", 2 * K)
    logits = (_cosines(11) * torch.linspace(0.2, 3, 11)[:, None]).double()
    expected = _direct(logits)
    # float64 throughout: sums of eleven terms in another order
    torch.testing.assert_close(_balanced(logits, sizes), expected, rtol=1e-11, atol=1e-14)


def test_forming_q_anew_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "CHUNK_ELEMENTS", 2 * K)
    generator = torch.Generator().manual_seed(3)
    parts = [Logits(torch.randn(n, 4, generator=generator), torch.randn(K, 4, generator=generator)) for n in (5, 3)]
    kept = sinkhorn_knopp(parts, temperature=TAU)
    monkeypatch.setattr(sinkhorn_module, "KEPT_ELEMENTS", 8 * K - 1)
    anew = sinkhorn_knopp(parts, temperature=TAU)
    for part, one, other in zip(parts, kept, anew, strict=True):
        for rows in part.chunks():
            assert torch.equal(one(rows), other(rows))
            assert torch.equal(one(rows), one(rows))  # targets may be asked for again
