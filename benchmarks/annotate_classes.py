"""Labels that a few-shot head needs, one photograph that finds the others of its product, and the time of a refit.

    python benchmarks/annotate_classes.py extract --models MODEL ... --untrained MODEL ... --data FOLDER --features OUT
    python benchmarks/annotate_classes.py offers --features OUT [--sets grocery caltech101] [--pool 1500]
    python benchmarks/annotate_classes.py one-to-many --features OUT
    python benchmarks/annotate_classes.py refit

A simulated annotator gives the true label of one image after the other: of those that `FewShot.next_image` offers, or
of images drawn at random; after each the head is fitted anew. The pool is drawn from the train images, several times a
network; accuracy is that on the test images. Baselines are the same networks untrained, and histograms of colour. One
seed a model.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from foveal.annotate.few_shot import FewShot
from foveal.evaluate.results import measured_mean
from foveal.features.extract import load
from foveal.images.imageset import ImageSet

EVERY, SHOWN = 25, (50, 100, 200, 400, 800)  # labels between two measurements; those that are printed
BINS = 8  # of a colour
Vectors = tuple[np.ndarray, np.ndarray]  # features (N, D), names of classes (N,)


def main() -> None:
    """Do one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("extract", "offers", "one-to-many", "refit"))
    parser.add_argument("--models", type=Path, nargs="*", default=[])
    parser.add_argument("--untrained", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--features", type=Path, default=Path("benchmarks/out/annotate_classes"))
    parser.add_argument("--sets", nargs="+", default=["grocery", "caltech101"])
    parser.add_argument("--sources", nargs="+", default=["trained", "untrained", "colour"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--draws", type=int, default=3, help="of the pool, for each network")
    parser.add_argument("--pool", type=int, default=1500, help="images that may be labelled")
    arguments = parser.parse_args()
    {"extract": extract, "offers": offers, "one-to-many": one_to_many, "refit": refit}[arguments.part](arguments)


def extract(arguments: argparse.Namespace) -> None:
    """Write the features of every set by every network, and its colours, where they are missing."""
    arguments.features.mkdir(parents=True, exist_ok=True)
    sources = [
        (f"{kind}{seed}", model)
        for kind, models in (("trained", arguments.models), ("untrained", arguments.untrained))
        for seed, model in enumerate(models)
    ]
    for name, images in labelled(arguments.data).items():
        for source, model in [*sources, ("colour", None)]:
            path = arguments.features / f"{name}.{source}.npz"
            if path.exists():
                continue
            if model is None:
                features = np.stack([colours(images.decode(row)) for row in range(len(images))])
            else:
                features = load(model, engine="torch").extract_set(images).arrays["cls"].numpy()
            assert len(features) == len(images), "an image cannot be read"
            np.savez(path, features=features, names=np.array(images.labels))
            print(path.name, features.shape, flush=True)


def labelled(data: Path) -> dict[str, ImageSet]:
    """Return the sets by name; packages are the photographs of packages in shops."""
    found = {}
    for part in ("train", "test"):
        lines = (data / "caltech101" / f"{part}.txt").read_text().split()
        found[f"caltech101.{part}"] = ImageSet.of_files(
            data / "caltech101", lines, labels=[line.split("/")[0] for line in lines]
        )
        rows = [line.split(", ") for line in (data / "grocery" / f"{part}.txt").read_text().splitlines()]
        found[f"grocery.{part}"] = ImageSet.of_files(
            data / "grocery", [row[0] for row in rows], labels=[f"{int(row[1]):02d}" for row in rows]
        )
    packages = [row for row in range(len(found["grocery.test"])) if "/Packages/" in found["grocery.test"].uri(row)]
    return found | {"packages": found["grocery.test"].subset(packages)}


def colours(pixels: np.ndarray) -> np.ndarray:
    """Return the square roots of the shares of pixels in each of 8 x 8 x 8 colours, (512,) float32."""
    numbers = (pixels // (256 // BINS)).astype(np.int64) @ np.array([BINS * BINS, BINS, 1])
    counts = np.bincount(numbers.ravel(), minlength=BINS**3)
    return np.sqrt(counts / counts.sum()).astype(np.float32)


def read(features: Path, name: str, source: str, seed: int) -> Vectors:
    """Return the features of a set."""
    found = np.load(features / f"{name}.{source}{'' if source == 'colour' else seed}.npz")
    return found["features"], found["names"]


def offers(arguments: argparse.Namespace) -> None:
    """Print the labels needed for 90 % of the fully labelled accuracy, offered and random."""
    for name in arguments.sets:
        for source in arguments.sources:
            needed: dict[str, list[list[int]]] = {"offered": [], "random": []}
            for seed in arguments.seeds:
                found = [draw_pool(arguments, name, source, seed, draw) for draw in range(arguments.draws)]
                for way, counts in needed.items():
                    counts.append([one[way] for one in found])
            print_row(name, source, {way: np.array(counts) for way, counts in needed.items()})


def draw_pool(arguments: argparse.Namespace, name: str, source: str, seed: int, draw: int) -> dict[str, int]:
    """Draw a pool, and return the labels of it that are needed, offered and random."""
    pool, test = (read(arguments.features, f"{name}.{part}", source, seed) for part in ("train", "test"))
    generator = np.random.default_rng([seed, draw])
    chosen = generator.permutation(len(pool[0]))[: arguments.pool]
    order = generator.permutation(len(chosen)).tolist()
    pool = pool[0][chosen], pool[1][chosen]
    full = accuracy(pool, test, np.arange(len(chosen)))
    found = {}
    for way in ("offered", "random"):
        curve = learning_curve(pool, test, None if way == "offered" else order, seed=seed, enough=0.9 * full)
        found[way] = max(curve)
        points = " ".join(f"{at}:{100 * curve[at]:.1f}" for at in SHOWN if at in curve)
        print(f"{name} {source}{seed}.{draw} {way}: full {100 * full:.1f} %, {max(curve)} labels; {points}", flush=True)
    return found


def print_row(name: str, source: str, needed: dict[str, np.ndarray]) -> None:
    """Print the means, and the share of the random labels that the offered ones are, with its interval over seeds."""
    shares = (needed["offered"] / needed["random"]).mean(axis=1)  # needed is seeds x draws
    means = " | ".join(f"{needed[way].mean():.0f}" for way in ("random", "offered"))
    spread = 4.303 * shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) == 3 else float("nan")  # t of 2 degrees
    each = ", ".join(f"{share:.2f}" for share in shares)
    print(f"| {name} | {source} | {means} | {each} | {shares.mean():.2f} +- {spread:.2f} |", flush=True)


def learning_curve(
    pool: Vectors, test: Vectors, order: list[int] | None, *, seed: int, enough: float
) -> dict[int, float]:
    """Label images in some order, or as they are offered, until the test accuracy is enough; return it by labels."""
    few_shot, rows, curve = FewShot(pool[0], seed=seed), list[int](), dict[int, float]()
    fit = None
    while len(rows) < len(pool[0]):
        rows.append(few_shot.next_image(rows, fit).row if order is None else order[len(rows)])
        labels = {row: str(pool[1][row]) for row in rows}
        if order is None and len(set(labels.values())) > 1:
            fit = few_shot.fit(labels)
        if len(rows) % EVERY == 0:
            curve[len(rows)] = accuracy(pool, test, np.array(rows))
            if curve[len(rows)] >= enough:
                break
    return curve or {len(rows): enough}


def accuracy(pool: Vectors, test: Vectors, rows: np.ndarray) -> float:
    """Return the test accuracy of the head of some rows of the pool, 0 to 1."""
    head = FewShot(np.concatenate([pool[0][rows], test[0]])).fit(dict(enumerate(pool[1][rows].tolist())))
    return float(np.mean(np.array(head.classes)[head.answers[len(rows) :]] == test[1]))


def one_to_many(arguments: argparse.Namespace) -> None:
    """Print the precision where half of the other photographs of a product are found by one of them."""
    for source in arguments.sources:
        found = []
        for seed in arguments.seeds if source != "colour" else [0]:
            features, names = read(arguments.features, "packages", source, seed)
            found.append(precisions(features, names))
        precision = measured_mean("precision", 100 * np.mean(found, axis=0), unit="%")
        print(f"| {source} | {precision.text} % ({precision.interval}) |", flush=True)


def precisions(features: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Return the precision at recall 0.5 of each photograph as the only query."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -np.inf)
    found = []
    for row in range(len(names)):
        right = names[np.argsort(-similarities[row], kind="stable")[:-1]] == names[row]
        if (half := -(-int(right.sum()) // 2)) > 0:
            found.append(half / (np.flatnonzero(right)[half - 1] + 1))
    return np.array(found)


def refit(arguments: argparse.Namespace) -> None:
    """Print the time of a refit and of an offer, 100,000 images of 384 numbers and 20 classes."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 20, 100_000)
    features = generator.normal(size=(20, 384)).astype(np.float32)[truth]
    features += generator.standard_normal(features.shape, np.float32)
    few_shot = FewShot(features)
    for count in (5, 20, 100, 400, 1000):
        labels = {row: f"class {truth[row]}" for row in few_shot.order[:count].tolist()}
        times: dict[str, list[float]] = {"fit": [], "offer": []}
        for _ in range(9):
            start = time.perf_counter()
            fit = few_shot.fit(labels)
            middle = time.perf_counter()
            few_shot.next_image(labels, fit)
            times["fit"].append(1000 * (middle - start))
            times["offer"].append(1000 * (time.perf_counter() - middle))
        words = ", ".join(
            f"{name} {np.median(found):.0f} ms (slowest {max(found):.0f})" for name, found in times.items()
        )
        print(f"{count} labels: {words}", flush=True)


if __name__ == "__main__":
    main()
