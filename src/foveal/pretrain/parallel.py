"""The processes of a run."""

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """Which process of a run this is: rank of size, on which of its computer's devices, and the group of them all.

    A run in one process has rank 0 of size 1 and no group; functions that take a group take None then.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that there is one of."""
        return self.rank == 0


ALONE = World()
