"""Teacher targets against the iterations of the reference page in float64, in one process and in two."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from foveal.objectives.sinkhorn import sinkhorn_knopp, softmax_center, updated_center

B, K = 5, 7
TAU = 0.04

# Three rounds of float32 products over a few terms: some 1e-7 of values up to 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def _cosines(rows: int, columns: int = K, *, seed: int = 0) -> Tensor:
    return 2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 1


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
    found = sinkhorn_knopp(logits.clone(), temperature=TAU, num_iterations=num_iterations)
    expected = _direct(logits, num_iterations=num_iterations)
    torch.testing.assert_close(found, expected.float(), **CLOSE)
    torch.testing.assert_close(found.sum(1), torch.ones(rows), rtol=0, atol=1e-5)


def test_by_hand() -> None:
    """Two samples that both prefer prototype 0: it is shared, and the weaker liking goes to prototype 1.

    exp(z / tau) = [[4, 1], [2, 1]]; prototypes' totals 6, 2 -> [[2/3, 1/2], [1/3, 1/2]]; samples' totals 7/6, 5/6.
    """
    logits = TAU * torch.log(torch.tensor([[4.0, 1.0], [2.0, 1.0]]))
    found = sinkhorn_knopp(logits, temperature=TAU, num_iterations=1)
    torch.testing.assert_close(found, torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]]), **CLOSE)


def test_prototypes_end_up_balanced() -> None:
    found = sinkhorn_knopp(_cosines(64) + torch.tensor([0.5, *[0.0] * (K - 1)]), temperature=0.5, num_iterations=50)
    torch.testing.assert_close(found.sum(0), torch.full((K,), 64 / K), rtol=1e-3, atol=0)


def test_no_samples_give_no_targets() -> None:
    found = sinkhorn_knopp(torch.zeros(0, K), temperature=TAU)
    assert found.shape == (0, K)
    assert found.dtype == torch.float32


def test_one_sample_is_spread_over_all_prototypes() -> None:
    torch.testing.assert_close(
        sinkhorn_knopp(_cosines(1), temperature=TAU), torch.full((1, K), 1 / K), rtol=1e-5, atol=0
    )


def test_one_sample_far_below_the_others_keeps_a_target() -> None:
    """exp((its logits - the largest) / tau) is 0 in float32; the exact result, with 200 subtracted, is that with 3."""
    logits = _cosines(6)
    far, near = logits.clone(), logits.clone()
    far[0] -= 200
    near[0] -= 3
    found = sinkhorn_knopp(far, temperature=TAU, num_iterations=30)
    torch.testing.assert_close(found.sum(1), torch.ones(6), rtol=0, atol=1e-5)
    # Scaling a sample changes only the path to the fixed point: after many iterations both agree.
    torch.testing.assert_close(found, sinkhorn_knopp(near, temperature=TAU, num_iterations=30), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite_and_sum_to_one(scale: float) -> None:
    found = sinkhorn_knopp(scale * _cosines(64, 33), temperature=TAU)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(64), rtol=0, atol=1e-5)


def test_is_fp32_inside_bf16_autocast() -> None:
    """The matrix-vector products must not fall to bf16, which would be off by 2**-9."""
    logits = _cosines(64)
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn_knopp(logits.clone(), temperature=TAU)
    assert torch.equal(found, sinkhorn_knopp(logits.clone(), temperature=TAU))


def test_bf16_logits_are_taken_as_float32_and_left_alone() -> None:
    logits = _cosines(B).bfloat16()
    before = logits.clone()
    torch.testing.assert_close(sinkhorn_knopp(logits, temperature=TAU), _direct(before.double()).float(), **CLOSE)
    assert torch.equal(logits, before)


def test_softmax_center_is_the_formula() -> None:
    logits, center = _cosines(B), _cosines(1, seed=1)[0]
    expected = torch.softmax((logits.double() - center.double()) / TAU, dim=1)
    torch.testing.assert_close(softmax_center(logits, center=center, temperature=TAU), expected.float(), **CLOSE)


def test_center_moves_a_tenth_of_the_way_to_the_mean() -> None:
    center = torch.tensor([1.0, 0.0])
    logits = torch.tensor([[2.0, 4.0], [4.0, 0.0]])
    torch.testing.assert_close(updated_center(center, logits.sum(0), 2), torch.tensor([1.2, 0.2]))
    torch.testing.assert_close(updated_center(center, logits.sum(0), 2, momentum=0.5), torch.tensor([2.0, 1.0]))


def test_center_without_samples_stays() -> None:
    center = torch.tensor([1.0, -2.0])
    assert torch.equal(updated_center(center, torch.zeros(2), 0), center)


def _two_processes(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    group = dist.group.WORLD
    try:
        for name, sizes in (("uneven", (3, 8)), ("one_empty", (0, 11))):
            logits = _cosines(11).split(sizes)[rank]
            targets = sinkhorn_knopp(logits.clone(), temperature=TAU, group=group)
            center = updated_center(torch.ones(K), logits.sum(0), len(logits), group=group)
            torch.save((targets, center), Path(folder) / f"{name}{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_two_processes, args=(port, str(tmp_path)), nprocs=2)
    logits = _cosines(11)
    whole = sinkhorn_knopp(logits.clone(), temperature=TAU)
    center = updated_center(torch.ones(K), logits.sum(0), 11)
    for name in ("uneven", "one_empty"):
        (first, center_0), (second, center_1) = (
            torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2)
        )
        # only the order of the float32 sums differs
        torch.testing.assert_close(torch.cat([first, second]), whole, **CLOSE)
        torch.testing.assert_close(center_0, center, rtol=1e-6, atol=1e-6)
        assert torch.equal(center_0, center_1)
