"""Checkpoints of several processes: written in parts, read by any other number of them."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from disks import no_file_above
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from foveal.errors import CheckpointError
from foveal.pretrain.checkpoints.pieces import Region, assemble, region_of, written_here
from foveal.pretrain.checkpoints.reader import find_damage, newest_intact, open_checkpoint
from foveal.pretrain.checkpoints.snapshot import take_snapshot
from foveal.pretrain.checkpoints.writer import CheckpointWriter, write_checkpoint
from foveal.pretrain.processes.parallel import World

SIZE = 4


def _whole(seed: int = 0) -> dict[str, torch.Tensor]:
    """Lengths that do not divide evenly, one shorter than the number of processes, and a scalar."""
    shapes = {"rows": (7, 3), "columns": (2, 5), "short": (2,), "copied": (11, 3), "plain": (3, 2), "scalar": ()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _laid_out(whole: dict[str, torch.Tensor], mesh: DeviceMesh, square: DeviceMesh | None) -> dict[str, torch.Tensor]:
    """The tensors as a run in several processes has them; `copied` is cut in halves, and each held twice."""
    laid = dict(whole)
    for name, dim in (("rows", 0), ("columns", 1), ("short", 0)):
        laid[name] = distribute_tensor(whole[name], mesh, [Shard(dim)])
    if square is not None:
        laid["copied"] = distribute_tensor(whole["copied"], square, [Replicate(), Shard(0)])
    return laid


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    world = World(rank=rank, size=SIZE, local_rank=rank, group=dist.group.WORLD)
    whole = _whole()
    mesh, square = DeviceMesh("cpu", range(SIZE)), DeviceMesh("cpu", [[0, 1], [2, 3]])
    laid = _laid_out(whole, mesh, square)
    with CheckpointWriter(folder / "run", keep=2, world=world) as writer:
        writer.save(5, tensors={"student": laid}, state={"skipped": [3]})

    found = newest_intact(folder / "run", world=world)
    assert found is not None
    again = found.read("student", like=laid)
    for name, tensor in laid.items():
        assert type(again[name]) is type(tensor), name
        if isinstance(tensor, torch.distributed.tensor.DTensor):
            assert again[name].placements == tensor.placements
            assert torch.equal(again[name].to_local(), tensor.to_local()), name
        else:
            assert torch.equal(again[name], tensor), name

    pair = dist.new_group([0, 1])
    small = DeviceMesh("cpu", [0, 1])
    if rank < 2:
        two = World(rank=rank, size=2, local_rank=rank, group=pair)
        fewer = newest_intact(folder / "run", world=two)
        assert fewer is not None
        # other layouts than it was saved in: fewer processes, and the columns cut along the rows
        like = {"rows": distribute_tensor(whole["rows"], small, [Shard(0)])}
        like["columns"] = distribute_tensor(whole["columns"], small, [Shard(0)])
        read = fewer.read("student", like=like)
        for name, tensor in like.items():
            assert torch.equal(read[name].to_local(), tensor.to_local()), name
        write_checkpoint(
            folder / "two", take_snapshot({"student": read}, step=6, state={}, world=two), keep=1, world=two
        )

    # Rank 2 may not write files: all hear of it, and the checkpoint before stays.
    writer = CheckpointWriter(folder / "run", keep=2, world=world)
    with no_file_above(10) if rank == 2 else nullcontext():
        writer.save(9, tensors={"student": laid}, state={})
        with pytest.raises(CheckpointError) as failed:
            writer.wait()
    (folder / f"error{rank}").write_text(str(failed.value))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes left."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_process, args=(folder,), nprocs=SIZE, join=True)
    return folder


def test_what_four_have_written_one_reads(folder: Path) -> None:
    path = folder / "run" / "step_00000005"
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files == [f"student-{rank:05d}-of-00004.safetensors" for rank in range(4)]
    assert find_damage(path) is None
    found = open_checkpoint(path)
    assert (found.num_processes, found.state()) == (4, {"step": 5, "skipped": [3]})
    assert len(found.tensors["student"]["rows"]["pieces"]) == 4
    assert len(found.tensors["student"]["short"]["pieces"]) == 2
    assert len(found.tensors["student"]["copied"]["pieces"]) == 2  # each of its halves is held twice and written once
    assert len(found.tensors["student"]["plain"]["pieces"]) == 1
    read = found.read("student")
    for name, value in _whole().items():
        assert torch.equal(read[name], value), name


def test_what_two_have_read_and_written_again_one_reads(folder: Path) -> None:
    read = open_checkpoint(folder / "two" / "step_00000006").read("student")
    for name, value in _whole().items():
        assert torch.equal(read[name], value), name


def test_what_one_process_cannot_write_is_an_error_in_all(folder: Path) -> None:
    for rank in range(SIZE):
        message = (folder / f"error{rank}").read_text()
        assert re.search(r"cannot write checkpoint .*step_00000009: .*[Ff]ile too large", message), message
        assert ("no file may exceed 10 bytes" in message) == (rank == 2)
    assert [path.name for path in (folder / "run").iterdir()] == ["step_00000005"]


def test_whole_tensors_are_dealt_evenly() -> None:
    sizes = [5, 3, 2, 2, 1, 1]
    tensors = {"a": {str(number): torch.zeros(size) for number, size in enumerate(sizes)}}
    dealt = [written_here(tensors, rank=rank, size=3)["a"] for rank in range(3)]
    assert sorted(name for names in dealt for name in names) == ["0", "1", "2", "3", "4", "5"]
    assert [sum(sizes[int(name)] for name in names) for names in dealt] == [5, 5, 4]


def test_a_part_across_pieces_by_hand() -> None:
    """Rows 1..3 of a (4, 3) tensor whose rows 0..1 and 2..3 lie apart."""
    whole = torch.arange(12.0).view(4, 3)
    pieces = [(Region((row, 0), (2, 3)), lambda slices, row=row: whole[row : row + 2][slices]) for row in (0, 2)]
    part = assemble(Region((1, 1), (3, 2)), pieces, dtype=torch.float32)
    assert part.tolist() == [[4, 5], [7, 8], [10, 11]]
    with pytest.raises(CheckpointError, match="holds 2 of 6 elements"):
        assemble(Region((1, 1), (3, 2)), pieces[:1], dtype=torch.float32)


def test_a_plain_tensor_is_all_here() -> None:
    assert region_of(torch.zeros(2, 3)) == Region((0, 0), (2, 3))
    assert region_of(torch.tensor(1.0)) == Region((), ())
