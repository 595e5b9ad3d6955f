"""Adapt a backbone to images of another kind, beside the naive continuation: what is gained there, and what is lost.

    python benchmarks/adapt.py --model FOLDER --general FOLDER --own FOLDER [--out benchmarks/out/adapt] [--seed 0]
                               [--steps 600]

FOLDER of --general and of --own holds train.txt and test.txt, one path and, after a tab, its class a line. --model was
trained on the images of --general. Each row is the kNN accuracy (k=20) on both, by the same protocol: the start; the
naive continuation, which is the recipe of the start's own training begun again from its weights; `foveal adapt`; and
`foveal adapt --recipe adapt_lora`. All see the same images in the same order. The gate has the labels of --general.
"""

import argparse
import time
from pathlib import Path

import torch

from foveal.evaluate.knn import run
from foveal.features.extract import load
from foveal.images.imageset import ImageSet
from foveal.pretrain.loop import Outcome, pretrain
from foveal.pretrain.recipe import load_recipe

K = 20
# What the few blocks of a small network want; the rest is as in the recipes.
SHORT = [
    "optimizer.warmup_steps=10",
    "teacher.temperature_start=0.03",
    "teacher.temperature_end=0.03",
    "teacher.temperature_warmup_steps=0",
    "optimizer.base_lr=8e-3",
    "teacher.momentum_start=0.97",
    "teacher.momentum_end=0.99",
    "checkpoints.every_steps=60",
]
VIEWS = [
    "views.num_local=2",
    "views.global_scale=[0.4, 1.0]",
    "views.local_scale=[0.1, 0.4]",
    "views.brightness=0.2",
    "views.contrast=0.2",
    "views.saturation=0.1",
    "views.hue=0.05",
    "views.grayscale_probability=0.1",
    "views.blur_kernel_size=5",
    "views.blur_sigma=[0.1, 1.0]",
    "views.solarize_probability=0.1",
]
GATED = ["optimizer.freeze_backbone_steps=20", "gate.every_steps=30", "gate.max_knn_drop=1"]
WAYS = {
    "naive": ("adapt", ["gate=null", "gram=null", "optimizer.freeze_backbone_steps=0", "optimizer.layer_decay=1",
                        "optimizer.backbone_lr_multiplier=1"]),
    "adapt": ("adapt", [*GATED, "optimizer.backbone_lr_multiplier=0.2"]),
    "lora": ("adapt_lora", GATED),
}  # fmt: skip


def main() -> None:
    """Run the ways that are asked for and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--own", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/adapt"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sets = {
        name: tuple(ImageSet.open(folder / f"{part}.txt") for part in ("train", "test"))
        for name, folder in (("own", arguments.own), ("general", arguments.general))
    }
    report("start", arguments.model, sets, "")
    for way in arguments.ways:
        recipe, settings = WAYS[way]
        out = arguments.out / f"{way}_{arguments.seed}"
        knn = [f"knn.train={arguments.general}/train.txt", f"knn.test={arguments.general}/test.txt"]
        knn += [f"knn.k={K}", f"knn.every_steps={arguments.steps}", f"total_steps={arguments.steps}"]
        overrides = [f"images={arguments.own}/train.txt", f"out={out}", f"seed={arguments.seed}", *SHORT, *VIEWS]
        started = time.perf_counter()
        outcome = pretrain(load_recipe(recipe, [f"start={arguments.model}", *overrides, *knn, *settings]))
        minutes = (time.perf_counter() - started) / 60
        report(way, out / "model", sets, f"{minutes:.0f} min  {told(outcome)}")


def told(outcome: Outcome) -> str:
    """Return how the gate ended a run."""
    if not outcome.judgements:
        return "no gate"
    passed = max(found.step for found in outcome.judgements if not found.failed)
    last = outcome.judgements[-1]
    return f"model of step {passed}" + (f"; step {last.step}: {last.failed}" if last.failed else "")


def report(name: str, folder: Path, sets: dict[str, tuple[ImageSet, ...]], more: str) -> None:
    """Print the kNN accuracy of a model on both kinds of images."""
    model = load(folder)
    values = [run(model, *pair, ks=[K], batch_size=64)[0].value for pair in sets.values()]
    print(
        f"{name:6s}",
        "  ".join(f"{kind} {value:.1f}" for kind, value in zip(sets, values, strict=True)),
        more,
        flush=True,
    )


if __name__ == "__main__":
    main()
