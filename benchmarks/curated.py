"""Whether a curated set trains better than the pile that it comes from: the same recipe on a pool, a part and a choice.

    python benchmarks/curated.py --data FOLDER --out OUT [--seeds 0 1 2] [--steps 600]

FOLDER holds caltech101, cifar10, imagenet_sample and grocery. The pool is long-tailed on purpose: 6,000 draws from the
training photographs of caltech101 with classes by rank^-1 (so that many come again and again), among 10,000 of cifar10
and 1,000 of imagenet_sample as clutter. Three photographs of each class, which are not in the pool, are the seeds; the
test photographs of caltech101 and all of grocery are kept out. From it come a random part and, by `foveal curate`, a
choice, of 2,000 each. Descriptor: --model, else the network trained on the whole pool with the first seed. An oracle
that knows where each image comes from takes each of caltech101 once, and the rest from imagenet_sample: what
there is to gain.

Every network is then trained by the same recipe for the same steps, and judged by kNN (k=20) on photographs that none
has seen. Differences are paired by test image over all seeds, with 95 % bootstrap intervals. What is there is not made
again: repeat the command to go on.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from foveal.evaluate.labelled import extract_labelled
from foveal.features.extract import load
from foveal.features.neighbours import knn_ranks
from foveal.images.imageset import ImageSet

KINDS = ("pool", "random", "curated", "oracle")
SIZE, DRAWS, CLUTTER, SEEDS_A_CLASS, K = 2000, 6000, 10_000, 3, 20
# A network of 64 pixels that some hundred steps on one core can train.
NETWORK = [
    "backbone.width=128",
    "backbone.depth=4",
    "backbone.num_heads=2",
    "backbone.patch_size=8",
    "backbone.image_size=64",
    "views.global_size=64",
    "views.local_size=32",
    "views.blur_kernel_size=5",
    "features.crop_size=64",
    "features.resize_size=64",
    "teacher.temperature_warmup_steps=200",
    "precision=bf16",
]


def main() -> None:
    """Make what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--model", type=Path, help="descriptor; default: the network of the pool")
    parser.add_argument("--limit", type=float, default=0.98, help="cosine above which images are copies")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "random").exists():
        make_sets(options.data.resolve(), options.out)
    for seed in options.seeds:
        for kind in KINDS:
            if kind == "curated" and not (options.out / "curated/summary.json").exists():
                curate(options)
            train(options, kind, seed)
    report(options)


def make_sets(data: Path, out: Path) -> None:
    """Write the pool, the seeds, what is kept out, and the random part."""
    generator = np.random.default_rng(0)
    caltech = rows_below(data, "caltech101/train.txt")
    classes = np.array([uri.split("/")[1] for uri in caltech.column("uri").to_pylist()])
    names = generator.permutation(np.unique(classes))
    weights = 1 / np.arange(1, len(names) + 1)
    seeds: list[int] = []
    draws: list[int] = []
    for name, count in zip(names, generator.multinomial(DRAWS, weights / weights.sum()), strict=True):
        members = generator.permutation(np.flatnonzero(classes == name))
        seeds += members[:SEEDS_A_CLASS].tolist()
        draws += generator.choice(members[SEEDS_A_CLASS:], count).tolist()
    cifar = rows_below(data, "cifar10/train.parquet")
    cifar = cifar.take(np.sort(generator.choice(len(cifar), CLUTTER, replace=False)))
    pool = pa.concat_tables([caltech.take(draws), cifar, rows_below(data, "imagenet_sample")])
    pool = pool.take(generator.permutation(len(pool)))
    lists = ("caltech101/test.txt", "grocery/train.txt", "grocery/test.txt")
    ImageSet(pool, root=data).save(out / "pool")
    ImageSet(caltech.take(sorted(seeds)), root=data).save(out / "seeds")
    ImageSet(pa.concat_tables([rows_below(data, one) for one in lists]), root=data).save(out / "keepout")
    part = np.sort(generator.choice(len(pool), SIZE, replace=False))
    ImageSet(pool.take(part), root=data).save(out / "random")
    first: dict[str, int] = {}
    for row, uri in enumerate(pool.column("uri").to_pylist()):
        first.setdefault(uri, row)
    known = [
        row for source in ("caltech101", "imagenet_sample") for uri, row in first.items() if uri.startswith(source)
    ]
    ImageSet(pool.take(sorted(known[:SIZE])), root=data).save(out / "oracle")


def rows_below(data: Path, source: str) -> pa.Table:
    """Return the rows of a source with uris from `data`, and no labels: nothing here may learn from them."""
    images = ImageSet.open(data / source)
    folder = images.root.relative_to(data).as_posix()
    uris = pa.array([f"{folder}/{uri}" for uri in images.rows.column("uri").to_pylist()])
    return pa.table({"uri": uris, "bytes": images.rows.column("bytes"), "mtime": images.rows.column("mtime")})


def curate(options: argparse.Namespace) -> None:
    """Choose as many images of the pool as the random part has."""
    out, limit = options.out, options.limit
    model = options.model or out / f"pool_{options.seeds[0]}/model"
    foveal(
        "curate", out / "pool", "--seed", out / "seeds", "--keep-out", out / "keepout", "--target", SIZE,
        "--out", out / "curated", f"model={model}", f"dedup.similarity={limit}", f"dedup.keep_out_similarity={limit}",
    )  # fmt: skip


def train(options: argparse.Namespace, kind: str, seed: int) -> None:
    """Pretrain on one of the sets."""
    run = options.out / f"{kind}_{seed}"
    if not (run / "model").exists():
        settings = [f"images={options.out / kind}", f"out={run}", f"seed={seed}", f"total_steps={options.steps}"]
        foveal("pretrain", "--recipe", "cifar10_small", *settings, *NETWORK)


def foveal(*arguments: object) -> None:
    """Run one command."""
    command = [sys.executable, "-m", "foveal", *map(str, arguments)]
    print("$", " ".join(command[1:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def report(options: argparse.Namespace) -> None:
    """Print what the sets hold, and the accuracy of every network."""
    for kind in KINDS:
        uris = ImageSet.open(options.out / kind).rows.column("uri").to_pylist()
        sources = Counter(uri.split("/")[0] for uri in uris)
        classes = Counter(uri.split("/")[1] for uri in uris if uri.startswith("caltech101"))
        largest = 100 * max(classes.values()) / sources["caltech101"]
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(sources.items()))
        print(f"{kind}: {counts}; {len(classes)} classes, the largest {largest:.0f} % of caltech101")
    print("| kNN, k=20 | " + " | ".join(KINDS) + " | curated - pool | curated - random | oracle - pool |")
    print("|---" * 8 + "|")
    for name in ("caltech101", "grocery"):
        right = {kind: [answers(options, kind, seed, name) for seed in options.seeds] for kind in KINDS}
        cells = [" / ".join(f"{100 * one.mean():.1f}" for one in right[kind]) for kind in KINDS]
        cells += [difference(right["curated"], right[other]) for other in ("pool", "random")]
        cells.append(difference(right["oracle"], right["pool"]))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def answers(options: argparse.Namespace, kind: str, seed: int, name: str) -> np.ndarray:
    """Return which test images a network gets right, (Q,) bool."""
    model = load(options.out / f"{kind}_{seed}/model", engine="torch")
    train, test, _ = extract_labelled(
        model, *(ImageSet.open(options.data / name / f"{part}.txt") for part in ("train", "test"))
    )
    return (knn_ranks(*train.cls, *test.cls, ks=[K])[K] == 0).numpy()


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    """Return the mean difference in points over seeds and test images, with its interval over test images."""
    paired = 100 * (np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    generator = np.random.default_rng(0)
    means = [paired[generator.integers(0, len(paired), len(paired))].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{paired.mean():+.1f} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
