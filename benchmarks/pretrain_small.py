"""Pretrain a small ViT on CIFAR-10 from scratch and follow its kNN accuracy over time.

    python benchmarks/pretrain_small.py --data FOLDER [--out benchmarks/out/cifar10] [--threads 2] [key=value ...]

FOLDER holds train.parquet and test.parquet with the columns image and class_name. The recipe is `cifar10_small`; only
kNN reads the labels. Prints raw pixels, the untrained network, and the teacher as training goes on. Minutes are those
of the training steps, data path included, kNN left out. Interrupted, it continues.
"""

import argparse
from pathlib import Path

import torch

from foveal.engine.torch_engine import TorchEngine
from foveal.evaluate.knn import run, run_pixels
from foveal.features.extract import Model, load
from foveal.images.imageset import ImageSet
from foveal.pretrain.learner import build_networks
from foveal.pretrain.loop import Progress, model_card, pretrain
from foveal.pretrain.recipe import load_recipe
from foveal.pretrain.run import read_metrics


def main() -> None:
    """Train, then print the curve and the final table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/cifar10"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_path, test_path = arguments.data / "train.parquet", arguments.data / "test.parquet"
    recipe = load_recipe(
        "cifar10_small",
        [
            f"images={train_path}",
            f"out={arguments.out}",
            f"knn.train={train_path}",
            f"knn.test={test_path}",
            "knn.every_steps=1400",
            *arguments.overrides,
        ],
    )
    train, test = ImageSet.open(train_path), ImageSet.open(test_path)
    _, teacher = build_networks(recipe)
    untrained = Model(TorchEngine(teacher.backbone), model_card(recipe, step=0, images_hash=train.hash))
    tables = {"raw pixels": run_pixels(train, test), "untrained": run(untrained, train, test, batch_size=128)}

    def listen(progress: Progress) -> None:
        if progress.step % 100 == 0 or "knn" in progress.metrics:
            knn = f"  kNN {progress.metrics['knn']:.1f}" if "knn" in progress.metrics else ""
            print(
                f"step {progress.step}/{progress.total_steps}  loss {progress.metrics['loss']:.3f}  "
                f"{progress.images_per_s:.0f} images/s{knn}",
                flush=True,
            )

    pretrain(recipe, listener=listen)
    tables["trained"] = run(load(arguments.out / "model"), train, test, batch_size=128)
    for name, rows in tables.items():
        print(f"{name:12s}", "  ".join(f"{row.metric} {row.value:.1f}" for row in rows if row.metric.endswith("top-1")))
    minutes = 0.0
    for line in read_metrics(arguments.out):
        minutes += recipe.batch_size / line["images_per_s"] / 60 if "images_per_s" in line else 0.0
        if "knn" in line:
            print(f"{minutes:5.1f} min  step {line['step'] + 1:5d}  kNN (k=20) {line['knn']:.1f}")


if __name__ == "__main__":
    main()
