"""The processes that share a batch: what the terms of the objective need to know of each other's part."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The processes over which a batch is spread, each with equally many micro-batches, in the order of their ranks.

    processes: None for this process alone.
    ordered: add what the micro-batches give one by one in the order of the batch, so that no bit of a sum depends on
        how many processes there are. Every process then receives the parts of all, not their sum only.
    """

    processes: dist.ProcessGroup | None = None
    ordered: bool = False

    def sum(self, parts: Tensor) -> Tensor:
        """Return the sum of parts (n, ...), one of each micro-batch of this process, over all micro-batches."""
        total, *rest = (self.gather(parts) if self.ordered else parts).unbind()
        total = total.clone()
        for part in rest:
            total += part
        if self.processes is not None and not self.ordered:
            dist.all_reduce(total, group=self.processes)
        return total

    def maximum(self, parts: Tensor) -> Tensor:
        """Return the largest of parts (n,) over all micro-batches."""
        largest = parts.amax(0)
        if self.processes is not None:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.processes)
        return largest

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows (n, ...) of all processes, equally many of each: (processes n, ...)."""
        if self.processes is None:
            return rows
        everyones = [torch.empty_like(rows) for _ in range(dist.get_world_size(self.processes))]
        dist.all_gather(everyones, rows.contiguous(), group=self.processes)
        return torch.cat(everyones)

    @property
    def rank(self) -> int:
        """Number of this process among them."""
        return 0 if self.processes is None else dist.get_rank(self.processes)


ALONE = Ranks()
