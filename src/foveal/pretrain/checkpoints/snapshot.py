"""What a process contributes to a checkpoint, apart from the networks that it was taken from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.pretrain.checkpoints.pieces import local_part, region_of, written_here
from foveal.pretrain.processes.parallel import ALONE, World


@dataclass(frozen=True)
class Snapshot:
    """What one process contributes to a checkpoint, apart from the networks that it was taken from.

    Attributes:
        step: number of finished steps.
        state: plain values, the same in every process.
        tensors: file stem -> name -> the part that this process writes, on the CPU.
        layout: file stem -> name -> shape and type of the whole tensor.
        offsets: file stem -> name -> where the part begins in the whole.
    """

    step: int
    state: Mapping[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    layout: dict[str, dict[str, tuple[list[int], str]]]
    offsets: dict[str, dict[str, list[int]]]

    @property
    def num_bytes(self) -> int:
        """Bytes of this process's parts."""
        return sum(tensor.nbytes for named in self.tensors.values() for tensor in named.values())


def take_snapshot(
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    step: int,
    state: Mapping[str, Any],
    world: World = ALONE,
    into: Snapshot | None = None,
) -> Snapshot:
    """Copy what this process writes to the CPU.

    Args:
        tensors: file stem -> name -> tensor, plain or DTensor.
        step: number of finished steps.
        state: plain values.
        world: the processes; all call this with the same names and shapes.
        into: an earlier snapshot, whose memory is used again.
    """
    chosen = written_here(tensors, rank=world.rank, size=world.size)
    parts: dict[str, dict[str, Tensor]] = {}
    for stem, names in chosen.items():
        old = into.tensors.get(stem, {}) if into else {}
        parts[stem] = {name: _copied(local_part(tensors[stem][name]), old.get(name)) for name in names}
    return Snapshot(
        step,
        json.loads(json.dumps(state)),
        parts,
        {
            stem: {name: (list(tensor.shape), _type_name(tensor.dtype)) for name, tensor in named.items()}
            for stem, named in tensors.items()
        },
        {stem: {name: list(region_of(tensors[stem][name]).offset) for name in names} for stem, names in chosen.items()},
    )


def _copied(source: Tensor, memory: Tensor | None) -> Tensor:
    if memory is None or memory.shape != source.shape or memory.dtype != source.dtype:
        memory = torch.empty(source.shape, dtype=source.dtype)
    return memory.copy_(source)


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
