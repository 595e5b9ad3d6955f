"""What a checkpoint costs: the pause of the step, the time to the disk, and what arithmetic loses meanwhile.

    python benchmarks/checkpoint.py --out some/folder --variant vits --prototypes 65536

Networks, teacher and AdamW's moments of ViT-S/14 with its heads, as a run saves them. The floor of the pause is copying
the same number of bytes between two tensors that are in memory already. "Foreground" is what a step would wait for
without the thread. Arithmetic is a product of 1024 x 1024 matrices, counted while nothing is written and while it is.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from foveal.backbone.variants import backbone_config
from foveal.pretrain.checkpoints.snapshot import take_snapshot
from foveal.pretrain.checkpoints.writer import CheckpointWriter, write_checkpoint
from foveal.pretrain.network import HeadSize
from foveal.pretrain.step import Network


def state_of_a_run(variant: str, *, num_prototypes: int) -> dict[str, dict[str, Tensor]]:
    """Return tensors with the names and shapes of a run's checkpoint."""
    head = HeadSize(num_prototypes=num_prototypes, bottleneck=256, hidden=2048)
    network = Network(backbone_config(variant, layerscale_init=1e-5), dino=head, ibot=None)
    weights = network.init_weights(torch.Generator().manual_seed(0)).state_dict()
    stems = {stem: {name: value.clone() for name, value in weights.items()} for stem in ("student", "teacher")}
    moments = {f"{n}.{key}": torch.rand_like(v) for n, v in weights.items() for key in ("exp_avg", "exp_avg_sq")}
    return stems | {"optimizer": moments}


def copy_seconds(num_bytes: int, *, times: int) -> float:
    """Return the median time of copying so many bytes within memory."""
    source, target = (torch.ones(num_bytes // 4) for _ in range(2))
    return statistics.median(_seconds(lambda: target.copy_(source)) for _ in range(times))


def products_per_s(seconds: float) -> float:
    """Return how many products of matrices are done in a second."""
    one, other = torch.rand(1024, 1024), torch.rand(1024, 1024)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        torch.mm(one, other)
        count += 1
    return count / (time.perf_counter() - started)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder on the disk to measure; emptied")
    parser.add_argument("--variant", default="vits")
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tensors = state_of_a_run(args.variant, num_prototypes=args.prototypes)
    num_bytes = sum(value.nbytes for named in tensors.values() for value in named.values())
    floor = copy_seconds(num_bytes, times=args.saves)
    snapshot = take_snapshot(tensors, step=0, state={})
    foreground = [_seconds(partial(write_checkpoint, args.out, snapshot, keep=1)) for _ in range(args.saves)]
    del snapshot
    alone = products_per_s(2)
    pauses, beside, whole = [], [], []
    with CheckpointWriter(args.out, keep=1) as writer:
        for step in range(1, args.saves + 2):
            started = time.perf_counter()
            pauses.append(_seconds(partial(writer.save, step, tensors=tensors, state={})))
            beside.append(products_per_s(1))
            writer.wait()
            whole.append(time.perf_counter() - started)
    shutil.rmtree(args.out)
    table = Table("", "median", "best")
    table.add_row("floor: copy in memory, s", f"{floor:.3f}", "")
    table.add_row("pause of the step, s", f"{statistics.median(pauses[1:]):.3f}", f"{min(pauses[1:]):.3f}")
    table.add_row("pause of the first save, s", f"{pauses[0]:.3f}", "")
    table.add_row("in the foreground, s", f"{statistics.median(foreground):.2f}", f"{min(foreground):.2f}")
    table.add_row(
        "from begin to end, beside arithmetic, s", f"{statistics.median(whole[1:]):.2f}", f"{min(whole[1:]):.2f}"
    )
    table.add_row("arithmetic meanwhile, of what it is alone", f"{statistics.median(beside[1:]) / alone:.2f}", "")
    Console().print(f"{args.variant}, {args.prototypes} prototypes: {num_bytes:,} bytes", table)


if __name__ == "__main__":
    main()
