"""What processes add up and agree on, against one process."""

from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

from foveal.pretrain.processes.launch import joined
from foveal.pretrain.processes.parallel import GradientSum, World


def _pieces(number: int) -> list[Tensor | None]:
    """Gradients of micro-batch `number`: of all sizes of magnitude, so that the order of a sum shows in its bits."""
    generator = torch.Generator().manual_seed(number)
    scale = 10.0 ** (number % 5 - 2)
    first = torch.randn(7, 3, generator=generator) * scale
    return [first, None, torch.randn(5, generator=generator) if number == 5 else None]


def _accumulate(world: World, count: int) -> list[Tensor | None]:
    """Let the micro-batches of this process leave gradients, and add up; the second parameter is never used."""
    parameters = [nn.Parameter(torch.zeros(7, 3)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(5))]
    sums = GradientSum(parameters, world)
    for _ in range(2):  # the second step must not see the first
        for parameter in parameters:
            parameter.grad = None
        for number in world.part(count):
            terms = [(p * g).sum() for p, g in zip(parameters, _pieces(number), strict=True) if g is not None]
            torch.stack(terms).sum().backward()
        sums.add_up()
    return [parameter.grad for parameter in parameters]


def _in_world(canonical: bool) -> dict[str, Any]:
    with joined(canonical=canonical) as world:
        return {
            "gradients": _accumulate(world, 12),
            "agreed": world.agree(world.rank, 7 - world.rank),
            "gathered": world.gather({"é": list(range(world.rank))}),
            "total": {k: v.item() for k, v in world.total({"a": torch.tensor(world.rank + 1.0)}).items()},
            "part": list(world.part(12)),
            "files": world.is_main,
        }


@pytest.mark.parametrize("canonical", [False, True])
def test_processes_add_up_to_one(canonical: bool) -> None:
    alone = _accumulate(World(canonical=canonical), 12)
    first, unused, rare = alone
    assert unused is None
    assert rare is not None
    assert first is not None
    found = on_ranks(4, _in_world, canonical)
    assert [one["part"] for one in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [one["files"] for one in found] == [True, False, False, False]
    for one in found:
        assert one["agreed"] == (3, 7)
        assert one["gathered"] == [{"é": list(range(rank))} for rank in range(4)]
        assert one["total"] == {"a": 10.0}
        gradient, none, of_few = one["gradients"]
        assert none is None
        assert torch.equal(of_few, rare)
        assert torch.equal(gradient, found[0]["gradients"][0])  # else the copies of the network would drift apart
        assert torch.equal(gradient, first) or (not canonical and torch.allclose(gradient, first, rtol=1e-6))
    if not canonical:  # else the test above could not tell
        assert not torch.equal(found[0]["gradients"][0], first)


def test_alone_is_a_world_too() -> None:
    world = World()
    assert (world.part(3), world.agree(1, 2), world.gather("x")) == (range(3), (1, 2), ["x"])
    value = torch.tensor(3.0)
    assert world.total({"a": value})["a"] is value
