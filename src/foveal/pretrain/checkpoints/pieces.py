"""Tensors in pieces: which part of one this process holds, and any part put together from pieces in files."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from foveal.errors import CheckpointError


@dataclass(frozen=True)
class Region:
    """A box of a tensor: for each dimension where it begins and how long it is."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements in it."""
        return math.prod(self.shape)

    def meet(self, other: "Region") -> "Region":
        """Return the box common to both, in the coordinates of the whole tensor; empty where they do not touch."""
        starts = [max(a, b) for a, b in zip(self.offset, other.offset, strict=True)]
        ends = [
            min(a + n, b + m) for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        ]
        return Region(tuple(starts), tuple(max(0, e - s) for s, e in zip(starts, ends, strict=True)))

    def within(self, outer: "Region") -> tuple[slice, ...]:
        """Return the slices that cut this box out of a tensor that is the box `outer`."""
        return tuple(slice(a - b, a - b + n) for a, b, n in zip(self.offset, outer.offset, self.shape, strict=True))


def region_of(tensor: Tensor) -> Region:
    """Return the part of a tensor that this process holds: all of a plain one, its shard of a DTensor.

    Raises:
        CheckpointError: the DTensor is laid out in a way that is not known here.
    """
    if not isinstance(tensor, DTensor):
        return Region((0,) * tensor.ndim, tuple(tensor.shape))
    offset, shape = [0] * tensor.ndim, list(tensor.shape)
    coordinates = tensor.device_mesh.get_coordinate()
    for number, placement in enumerate(tensor.placements):
        if type(placement) is Shard:
            # As torch.chunk deals: equal parts of ceil(n / k), a shorter one, then empty ones.
            dim, held = placement.dim, shape[placement.dim]
            each = -(-held // tensor.device_mesh.size(number))
            start = min(each * coordinates[number], held) if coordinates else held
            offset[dim] += start
            shape[dim] = min(each, held - start)
        elif type(placement) is not Replicate:
            raise CheckpointError(f"a tensor placed as {placement} cannot be saved; use Shard or Replicate")
    region = Region(tuple(offset), tuple(shape))
    if coordinates and region.shape != tuple(tensor.to_local().shape):
        raise CheckpointError(
            f"a tensor placed as {tensor.placements} is dealt otherwise than in chunks: this process holds "
            f"{tuple(tensor.to_local().shape)}, expected {region.shape}"
        )
    return region


def local_part(tensor: Tensor) -> Tensor:
    """Return the part that `region_of` describes."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def written_here(tensors: Mapping[str, Mapping[str, Tensor]], *, rank: int, size: int) -> dict[str, list[str]]:
    """Return which of the tensors this process writes its part of, so that every part is written once.

    A shard is written by the process that holds it. What several hold alike, they share evenly: copies of a shard by
    turns, and of whole tensors each goes to whoever has the fewest bytes so far, the largest first.

    Args:
        tensors: file stem -> name -> tensor; every process gives the same names, shapes and order.
        rank: of this process.
        size: number of processes.

    Returns:
        File stem -> names.
    """
    load = [0] * size
    chosen: dict[str, list[str]] = {stem: [] for stem in tensors}
    everything = [(stem, name, tensor) for stem, named in tensors.items() for name, tensor in named.items()]
    for number, (stem, name, tensor) in enumerate(sorted(everything, key=lambda each: -each[2].nbytes)):
        if isinstance(tensor, DTensor):
            if _has_turn(tensor, number) and region_of(tensor).numel:
                chosen[stem].append(name)
            continue
        least = load.index(min(load))
        load[least] += tensor.nbytes
        if least == rank:
            chosen[stem].append(name)
    return {stem: sorted(names) for stem, names in chosen.items()}


def _has_turn(tensor: DTensor, number: int) -> bool:
    """Return whether, of all processes with the same part of a tensor, this is the one that writes it."""
    coordinates = tensor.device_mesh.get_coordinate()
    if coordinates is None:
        return False
    copy, copies = 0, 1
    for dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            count = tensor.device_mesh.size(dim)
            copy, copies = copy * count + coordinates[dim], copies * count
    return copy == number % copies


def assemble(
    wanted: Region, pieces: Iterable[tuple[Region, Callable[[tuple[slice, ...]], Tensor]]], *, dtype: torch.dtype
) -> Tensor:
    """Put a part of a tensor together.

    Args:
        wanted: the part.
        pieces: of the whole tensor, disjoint: each one's region, and a function that reads slices of it.
        dtype: of the tensor.

    Returns:
        A tensor of shape `wanted.shape`.

    Raises:
        CheckpointError: the pieces do not cover it.
    """
    found, whole = 0, torch.empty(wanted.shape, dtype=dtype)
    for region, read in pieces:
        common = wanted.meet(region)
        if common.numel:
            whole[common.within(wanted)] = read(common.within(region))
            found += common.numel
    if found != wanted.numel:
        raise CheckpointError(f"holds {found:,} of {wanted.numel:,} elements")
    return whole


def as_laid_out(part: Tensor, like: Tensor) -> Tensor:
    """Return the part of a tensor that `region_of(like)` names as the tensor that `like` is: plain, or a DTensor."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
