"""How a training step's cost grows with batch, tokens, prototypes and ranks: measured, fitted, and on paper.

    python benchmarks/cost.py                    # about ten minutes on two cores
    python benchmarks/cost.py --plot cost.png    # and the measured points beside the law as a picture
    python benchmarks/cost.py --paper            # only the tables that need no machine

Steps of a small ViT in float32 with data in memory, in one thread. One quantity changes at a time. The law: seconds =
a + b (operations of the backbones) + c (operations of the heads) + d (bytes that the optimizer and the teacher's
average pass over), fitted by non-negative least squares of relative errors over all points; 1/b and 1/c are rates, 1/d
a bandwidth. Ranks: the same global batch with 1 and 2 processes of one thread each. On paper: what a device holds and
sends of the largest published recipe on up to 256 devices.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import nnls

from foveal.pretrain.data.masks import make_masks
from foveal.pretrain.learner import SelfDistillation
from foveal.pretrain.network import Batch
from foveal.pretrain.optimizer import adamw, clip_each, parameter_groups, set_rates
from foveal.pretrain.planning.cost import communication_bytes, memory_bytes, num_parameters, step_flops
from foveal.pretrain.processes.launch import joined
from foveal.pretrain.processes.parallel import ALONE, GradientSum, World
from foveal.pretrain.recipe import Recipe, build_recipe, load_recipe

_BASE: dict[str, Any] = {"batch": 8, "size": 112, "prototypes": 8192}
_VARIED: dict[str, list[int]] = {
    "batch": [2, 4, 8, 16],
    "size": [56, 112, 168, 224],
    "prototypes": [1024, 8192, 32768, 65536],
}
_PASSES = 4 * 8  # student, teacher and two moments are read and written, four bytes each


def recipe_of(*, batch: int, size: int, prototypes: int, micro: int | None = None) -> Recipe:
    """Return a run of a ViT of width 192 and 12 blocks."""
    backbone = {"variant": "vit_tiny", "patch_size": 14, "image_size": size}
    heads = {"dino": {"num_prototypes": prototypes, "bottleneck": 128, "hidden": 512}}
    values = {
        "images": "-", "out": "-", "total_steps": 1000, "batch_size": batch, "micro_batch_size": micro,
        "backbone": backbone, "heads": heads, "teacher": {"temperature_warmup_steps": 0},
        "optimizer": {"warmup_steps": 0}, "views": {"global_size": size, "local_size": size // 28 * 14, "num_local": 4},
    }  # fmt: skip
    return build_recipe(values, where="benchmark")


def seconds_of(recipe: Recipe, *, repeats: int, world: World = ALONE) -> float:
    """Return the least seconds of a whole step, update included: what the machine takes when nothing disturbs it."""
    learner = SelfDistillation(recipe, device=torch.device("cpu"), world=world)
    optimizer = adamw(parameter_groups(learner.student, layer_decay=0.9, patch_embed_lr_multiplier=0.2))
    gradients = GradientSum(learner.student.parameters(), world)
    own = [batch_of(recipe, number) for number in world.part(recipe.batch_size // recipe.micro_batch)]
    times = []
    for step in range(repeats + 1):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        learner.accumulate(own, step=step, rates={"teacher_temperature": 0.05})
        gradients.add_up()
        clip_each(learner.student, 3.0)
        set_rates(optimizer, lr=1e-4, weight_decay=0.04, last_layer_lr=1e-4, backbone_lr=1e-4)
        optimizer.step()
        learner.commit({"teacher_momentum": 0.99})
        times.append(time.perf_counter() - started)
    return min(times[1:])


def batch_of(recipe: Recipe, number: int) -> Batch:
    """Return random crops of one micro-batch."""
    views, images, generator = recipe.views, recipe.micro_batch, torch.Generator().manual_seed(number)
    grid = views.global_size // recipe.backbone.patch_size
    masks = make_masks(num_images=2 * images, grid_h=grid, grid_w=grid, seed=0, step=0, group=number)
    crops = [
        torch.randn(count, 3, size, size, generator=generator)
        for count, size in ((2 * images, views.global_size), (views.num_local * images, views.local_size))
    ]
    return Batch(crops[0], crops[1], torch.from_numpy(masks))


def terms(recipe: Recipe) -> list[float]:
    """Return the quantities of the law: one, GFLOP of the backbones, GFLOP of the heads, gigabytes of states."""
    flops = step_flops(recipe)
    heads = sum(value for name, value in flops.items() if "heads" in name)
    return [1.0, (sum(flops.values()) - heads) / 1e9, heads / 1e9, _PASSES * sum(num_parameters(recipe).values()) / 1e9]


def measure(repeats: int, plot: Path | None) -> None:
    """Print the measured table and the fitted law, and draw both."""
    points = [
        (name, value, recipe_of(**{**_BASE, name: value})) for name, values in _VARIED.items() for value in values
    ]
    seconds = [seconds_of(recipe, repeats=repeats) for *_, recipe in points]
    left = np.array([terms(recipe) for *_, recipe in points])
    weights = 1 / np.array(seconds)
    law, _ = nnls(left * weights[:, None], np.ones(len(points)))
    print("| varied | value | GFLOP | s/step | law | error |\n|---|---|---|---|---|---|")
    for (name, value, _), found, row in zip(points, seconds, left, strict=True):
        predicted = float(row @ law)
        work, error = row[1] + row[2], predicted / found - 1
        print(f"| {name} | {value} | {work:.1f} | {found:.3f} | {predicted:.3f} | {error:+.0%} |")
    if plot:
        draw(plot, [point[:2] for point in points], seconds, left @ law)
    rates = [f"{1 / x:.0f}" if x > 0 else "unlimited" for x in law[1:]]
    fixed = law[0] * 1e3
    print(f"\nlaw: {fixed:.0f} ms + backbones at {rates[0]} GFLOP/s + heads at {rates[1]} + states at {rates[2]} GB/s")


def draw(file: Path, points: list[tuple[str, int]], seconds: list[float], predicted: np.ndarray) -> None:
    """Draw seconds a step against each quantity, logarithmic: points measured, lines by the law."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(_VARIED), sharey=True), _VARIED, strict=True):
        rows = [row for row, (varied, _) in enumerate(points) if varied == name]
        values = [points[row][1] for row in rows]
        axes.loglog(values, [predicted[row] for row in rows], color="0.5", label="law")
        axes.loglog(values, [seconds[row] for row in rows], "o", color="tab:blue", label="measured")
        axes.set_xlabel({"size": "side of the global crops, pixels"}.get(name, name))
        axes.set_xticks(values, [f"{value // 1024} k" if value >= 1024 else str(value) for value in values])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds a step")
    figure.axes[0].set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    figure.axes[0].legend()
    figure.savefig(file, dpi=110)


def ranks(repeats: int) -> None:
    """Print the step time of one global batch with one and two processes."""
    print("\n| processes | s/step | sent a step, MB |\n|---|---|---|")
    recipe = recipe_of(**_BASE, micro=4)
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            subprocess.run(
                [*command, __file__, "--as-rank", folder, "--repeats", str(repeats)],
                check=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            found = float(Path(folder, "seconds").read_text())
        sent = sum(communication_bytes(recipe, num_devices=size).values())
        print(f"| {size} | {found:.3f} | {sent / 1e6:.1f} |", flush=True)


def as_rank(folder: str, repeats: int) -> None:
    """Be one of the processes that `ranks` starts."""
    torch.set_num_threads(1)
    with joined(gpus=False, canonical=False, timeout_s=600) as world:
        found = seconds_of(recipe_of(**_BASE, micro=4), repeats=repeats, world=world)
        if world.is_main:
            Path(folder, "seconds").write_text(str(found))


def paper() -> None:
    """Print what the largest published recipe needs on 1 to 256 devices."""
    recipe = load_recipe("vitg14_lvd142m", ["images=-", "out=-"])
    columns = ("devices", "states", "activations", "all", "all, recomputed", "weights sent", "gradients sent")
    print("\nViT-g/14 as published, GB:\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for devices in (1, 8, 64, 256):
        held = memory_bytes(recipe, num_devices=devices, sharded=True)
        less = memory_bytes(recipe, num_devices=devices, sharded=True, recomputed=True)
        sent = communication_bytes(recipe, num_devices=devices, sharded=True)
        states = sum(held[name] for name in ("student", "gradients", "AdamW", "teacher"))
        row = [states, held["activations"], sum(held.values()), sum(less.values()), sent["weights"], sent["gradients"]]
        print(f"| {devices} | " + " | ".join(f"{value / 1e9:.2f}" for value in row) + " |")


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the measured points and the law")
    parser.add_argument("--as-rank", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_rank:
        as_rank(arguments.as_rank, arguments.repeats)
        return
    torch.set_num_threads(1)
    if not arguments.paper:
        measure(arguments.repeats, arguments.plot)
        ranks(arguments.repeats)
    paper()


if __name__ == "__main__":
    main()
