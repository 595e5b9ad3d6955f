"""Compare a small student distilled on CIFAR-10 with the same student pretrained alone for as many steps.

    python benchmarks/distill.py --teacher MODEL [--data FOLDER] [--out FOLDER] [--steps 400]
                                 [--arms alone heads features] [--seeds 0 1 2] [--threads 2]

MODEL is what `benchmarks/pretrain_small.py` leaves in its folder `model` (width 128, 4 blocks, 0.8 M parameters). The
student has width 64 and 3 blocks, a fifth of that. Everything but the section `distill`, and what that makes idle, is
equal in all arms: recipe `cifar10_small` with smaller heads and shorter schedules. kNN reads the class token of the
result, the moving average. Prints every run, the mean of each arm, and the paired bootstrap interval of its difference
to "alone" over test images and seeds. Finished runs are read, not made again, so arms and seeds can be made apart.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import foveal
from foveal.features.extract import load
from foveal.features.labels import number_labels
from foveal.features.neighbours import knn_vote, top_k
from foveal.images.imageset import ImageSet
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import build_recipe

K = 20
RECIPE = Path(foveal.__file__).parent / "recipes" / "cifar10_small.yaml"


def main() -> None:
    """Make the runs that are missing, then print the table of those asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/distill"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--arms", nargs="+", default=["alone", "heads", "features"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    correct: dict[str, list[np.ndarray]] = {arm: [] for arm in arguments.arms}
    for seed in arguments.seeds:
        for arm in arguments.arms:
            out = arguments.out / f"{arm}{seed}"
            recipe = build_recipe(settings(arm, seed=seed, out=out, arguments=arguments), where=arm)
            pretrain(recipe)
            correct[arm].append(knn_correct(out / "model", data=arguments.data, kept=out / "knn.npy"))
            print(f"{arm:9s} seed {seed}  kNN (k={K}) {100 * correct[arm][-1].mean():.1f}", flush=True)
    for arm, runs in correct.items():
        line = f"{arm:9s} mean {100 * np.mean(runs):.1f}"
        if arm != "alone" and "alone" in correct:
            low, high = paired_interval(np.stack(runs), np.stack(correct["alone"]))
            line += f"  minus alone: 95 % between {100 * low:+.1f} and {100 * high:+.1f} points"
        print(line)


def settings(arm: str, *, seed: int, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one run as plain values."""
    values: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    values |= {"images": str(arguments.data / "train.parquet"), "out": str(out), "seed": seed}
    values["total_steps"] = arguments.steps
    values["backbone"] |= {"width": 64, "depth": 3}
    values["heads"]["dino"] |= {"bottleneck": 64, "hidden": 128}
    values["optimizer"] |= {"base_lr": 8e-3, "warmup_steps": arguments.steps // 4}
    values["teacher"]["temperature_warmup_steps"] = arguments.steps // 2
    values["checkpoints"]["every_steps"] = 100
    if arm != "alone":
        values["distill"] = {"teacher": str(arguments.teacher), "objective": arm}
    if arm == "features":  # reads none of these
        del values["heads"], values["objective"]
        values["teacher"] = {k: v for k, v in values["teacher"].items() if k.startswith("momentum")}
        values["views"]["num_local"] = 0
    return values


def knn_correct(model_folder: Path, *, data: Path, kept: Path) -> np.ndarray:
    """Return for every test image whether kNN names its class; from the file where an earlier call kept it."""
    if not kept.is_file():
        train, test = ImageSet.open(data / "train.parquet"), ImageSet.open(data / "test.parquet")
        train_labels, test_labels, _ = number_labels(train, test)
        model = load(model_folder)
        features, queries = (model.extract_set(images, batch_size=128).arrays["cls"] for images in (train, test))
        similarities, indices = top_k(queries, features, k=K)
        votes = knn_vote(similarities, train_labels[indices], num_classes=int(train_labels.max()) + 1, ks=[K])
        np.save(kept, (votes[K].argmax(1) == test_labels).numpy())
    found: np.ndarray = np.load(kept)
    return found


def paired_interval(one: np.ndarray, other: np.ndarray, *, draws: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of the mean of one - other, both (seeds, images), over drawn images and seeds."""
    rng = np.random.default_rng(0)
    difference = one.astype(np.float64) - other
    seeds, images = difference.shape
    means = [
        difference[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean() for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
