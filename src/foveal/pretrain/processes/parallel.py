"""The processes of a run: who does what, and what they add up."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from foveal.objectives.ranks import Ranks

_BUCKET_ELEMENTS = 8 * 2**20  # gradients that travel in one message: enough to fill a network, little to copy


@dataclass(frozen=True)
class World:
    """Which process of a run this is: rank of size, on which of its computer's devices, and the group of them all.

    A run in one process has rank 0 of size 1 and no group; functions that take a group take None then. `canonical` asks
    for sums over micro-batches that are formed in the order of their numbers, so that no bit depends on `size`.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    canonical: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that there is one of."""
        return self.rank == 0

    @property
    def ranks(self) -> Ranks:
        """The processes as the objective knows them: those over which a batch is spread."""
        return Ranks(self.group, ordered=self.canonical)

    def part(self, count: int) -> range:
        """Return this process's part of `count` numbered things: equal blocks in the order of the ranks.

        Example:
            >>> World(rank=1, size=3).part(6)
            range(2, 4)
        """
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gave, by rank. Plain values, which travel as JSON: nothing is unpickled."""
        if self.group is None:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)]), group=self.group)
        longest = max(map(int, lengths))
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, F.pad(text, (0, longest - len(text))), group=self.group)
        return [json.loads(bytes(t[: int(n)].tolist())) for t, n in zip(texts, lengths, strict=True)]

    def agree(self, *flags: int) -> tuple[int, ...]:
        """Return for each flag the largest that any process gave."""
        if self.group is None:
            return flags
        largest = torch.tensor(flags)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return tuple(largest.tolist())

    def total(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scalars added up over the processes; every process gives the same names in the same order."""
        if self.group is None or not values:
            return dict(values)
        summed = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(summed, group=self.group)
        return dict(zip(values, summed.unbind(), strict=True))


ALONE = World()


class GradientSum:
    """Adds up over the processes what the micro-batches of a step left as gradients, once a step.

    It is data parallelism over whole copies of the parameters, as PyTorch's DistributedDataParallel has it. That wants
    one forward and one backward of one module in a step; here a step is several micro-batches of parts called by name,
    and parameters may be frozen for a while. What is given up is sending gradients while the last are being computed.

    In a canonical world every micro-batch's gradient is kept apart until the end of the step, and all of them are added
    in the order of their numbers: the bits are then those of one process.

    Args:
        parameters: of the student; those that need no gradient now may need one later. Shards are left out: whoever
            made them adds their gradients up.
        world: the processes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self._parameters = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        self._world = world
        self._pieces: dict[nn.Parameter, list[Tensor]] = {}
        if world.canonical and world.group is not None:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._set_aside)

    def _set_aside(self, parameter: Tensor) -> None:
        self._pieces.setdefault(parameter, []).append(parameter.grad)  # type: ignore[arg-type]
        parameter.grad = None

    def add_up(self) -> None:
        """Make the gradients of every process the sum over all of them."""
        world = self._world
        if world.group is None:
            return
        pieces = self._pieces if world.canonical else {p: [p.grad] for p in self._parameters if p.grad is not None}
        self._pieces = {}
        counts = world.agree(*(len(pieces.get(p, ())) for p in self._parameters))
        # A parameter that nobody used, or that is frozen, keeps no gradient; one that only others used starts from 0.
        used = {
            parameter: pieces.get(parameter) or [torch.zeros_like(parameter)] * count
            for parameter, count in zip(self._parameters, counts, strict=True)
            if count
        }
        if world.canonical:
            for parameter, own in used.items():
                parameter.grad = _sum_in_order(torch.stack(own), world)
            return
        for bucket in _buckets(list(used)):
            summed = torch.cat([used[parameter][0].flatten() for parameter in bucket])
            dist.all_reduce(summed, group=world.group)
            for parameter, grad in zip(bucket, summed.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = grad.view_as(parameter)


def _sum_in_order(pieces: Tensor, world: World) -> Tensor:
    """Return the sum of the pieces (k, ...) of every process, formed one by one in the order of ranks and pieces."""
    everyones = [torch.empty_like(pieces) for _ in range(world.size)]
    dist.all_gather(everyones, pieces, group=world.group)
    total, *rest = torch.cat(everyones).unbind()
    total = total.clone()
    for piece in rest:
        total += piece
    return total


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters in groups of some tens of megabytes, in their order."""
    bucket, held = list[nn.Parameter](), 0
    for parameter in parameters:
        bucket.append(parameter)
        held += parameter.numel()
        if held >= _BUCKET_ELEMENTS:
            yield bucket
            bucket, held = [], 0
    if bucket:
        yield bucket
