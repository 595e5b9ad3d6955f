"""Every frozen protocol on small data, for pretrained networks and for the same networks untrained.

    python benchmarks/frozen.py --runs RUN [RUN ...] --data FOLDER [--out benchmarks/out/frozen] [--steps 600]

RUN is the folder of a pretraining run, one for each seed; its untrained twin is drawn from the recipe of the run.
FOLDER holds caltech101, grocery, camvid, redkitchen and davis. Every measurement is a `foveal evaluate` command, so a
run that is stopped goes on with those that are missing. Prints one row a metric: the untrained and the trained
networks, seed by seed, and in how many seeds their 95 % intervals are apart; then the difference of depth errors on the
same frames, drawn in blocks of three. Predictions go to OUT/RUN_KIND/pictures.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from foveal.backbone.weights import save_model
from foveal.evaluate import depth
from foveal.evaluate.layouts.dense import open_depths
from foveal.evaluate.report import Row, read_rows
from foveal.evaluate.results import Measure, measured
from foveal.features.extract import load
from foveal.images.imageset import ImageSet
from foveal.pretrain.learner import build_networks
from foveal.pretrain.loop import model_card
from foveal.pretrain.recipe import load_recipe
from foveal.tasks.head import load_head
from foveal.tasks.predict import Predictor
from foveal.tasks.samples import DenseSet

# What a network of few blocks with patches of 8 pixels can be measured by in minutes, on two cores. The features of
# whole pictures are computed once, so that the linear layers want a higher rate than the published one on crops.
CACHED = ["--crop-size", "whole", "--batch-size", "8"]
SEGMENT, SEGMENT_SCALES, DEPTH, VIDEO = "240", "120", "240", "240"  # short sides, pixels


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/frozen"))
    parser.add_argument("--steps", type=int, default=600, help="of dense heads")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = {}
    for run in arguments.runs:
        names[run.name] = untrained(run, arguments.out), run / "model"
    products(arguments.data, arguments.out)
    for run, models in names.items():
        for kind, model in zip(("untrained", "trained"), models, strict=True):
            place = arguments.out / f"{run}_{kind}"
            for command in commands(model, arguments, place):
                execute(command, place)
    print_table(arguments.out, list(names))
    for run, models in names.items():
        for kind in ("lin.1", "lin.4"):
            before, after = (
                frame_errors(model, arguments.out / f"{run}_{state}" / "heads" / kind, arguments.data / "redkitchen")
                for state, model in zip(("untrained", "trained"), models, strict=True)
            )
            found = difference(after - before)
            print(f"{run} {kind} RMSE, trained less untrained: {found.text} m ({found.interval})")


def untrained(run: Path, out: Path) -> Path:
    """Save the network of a run before its first step, and return its folder."""
    folder = out / f"untrained_{run.name}"
    if not folder.exists():
        recipe = load_recipe(str(run / "recipe.yaml"))
        _, teacher = build_networks(recipe)
        save_model(folder, teacher.backbone, model_card(recipe, step=0, images_hash=ImageSet.open(recipe.images).hash))
    return folder


def products(data: Path, out: Path) -> None:
    """Write lists of packages with their product as group: photographs in shops, and pictures of the products."""
    grocery = (data / "grocery").resolve()
    for name, folder in (("shop", "test"), ("iconic", "iconic-images-and-descriptions")):
        files = sorted((grocery / folder / "Packages").rglob("*.jpg"))
        (out / f"{name}.txt").write_text("".join(f"{path}\t{path.parent.name}\n" for path in files))


def commands(model: Path, arguments: argparse.Namespace, place: Path) -> list[list[str]]:
    """Return the arguments of `foveal` for every measurement and for pictures of predictions."""
    data, steps = arguments.data, str(arguments.steps)
    found = []
    for labelled in (data / "caltech101", data / "grocery"):
        found += [
            ["knn", "--data", labelled, "--k", "20"],
            ["knn", "--data", labelled, "--k", "1", "--n-per-class", "5"],
            ["logistic", "--data", labelled],
            ["linear", "--data", labelled, "--num-steps", "200"],
        ]
    lists = [arguments.out / "iconic.txt", "--queries", arguments.out / "shop.txt"]
    found.append(["retrieval", "--data", *lists])
    heads, picture = place / "heads", place / "pictures"
    for kind, size in (("linear", SEGMENT), ("ms", SEGMENT_SCALES)):
        words = ["segment", "--data", data / "camvid", "--kind", kind, "--ignore", "11", "--learning-rate", "0.01"]
        found.append([*words, "--size", size, "--steps", steps, *CACHED, "--head-out", heads / kind])
    for kind, rate in (("lin.1", "0.003"), ("lin.4", "0.003")):
        words = ["depth", "--data", data / "redkitchen", "--kind", kind, "--learning-rate", rate, "--max-depth", "5"]
        found.append([*words, "--size", DEPTH, "--steps", steps, *CACHED, "--head-out", heads / kind])
    found.append(["video", "--data", data / "davis", "--short-side", VIDEO, "--masks", picture / "davis"])
    found = [["evaluate", *words, "--model", model, "--out", place] for words in found]
    for kind, pictures in (("linear", "camvid/test/*0.jpg"), ("lin.4", "redkitchen/*8*.color.jpg")):
        words = ["head", "predict", data / pictures, "--model", model, "--head", heads / kind]
        found.append([*words, "--max-images", "6", "--out", picture / kind])
    return [[str(word) for word in words] for words in found]


def execute(words: list[str], place: Path) -> None:
    """Run a measurement that has not been made."""
    done = place / "done.txt"
    line = shlex.join(words)
    if done.exists() and line in done.read_text().splitlines():
        return
    print("foveal", line, flush=True)
    subprocess.run([sys.executable, "-W", "ignore", "-m", "foveal", *words], check=True)
    with done.open("a") as file:
        file.write(line + "\n")


def print_table(out: Path, runs: list[str]) -> None:
    """Print a row a metric."""
    rows = {kind: [by_metric(out / f"{run}_{kind}") for run in runs] for kind in ("untrained", "trained")}
    for key in rows["trained"][0]:
        before, after = ([found[key] for found in rows[kind] if key in found] for kind in ("untrained", "trained"))
        apart = sum(b.high < a.low or a.high < b.low for b, a in zip(before, after, strict=True))
        values = (" / ".join(f"{row.value:.4g}" for row in found) for found in (before, after))
        print(" | ".join([*key, *values, f"{apart} of {len(after)}"]))


def frame_errors(model: Path, head: Path, data: Path) -> np.ndarray:
    """Return the RMSE of each test frame, metres."""
    predictor = Predictor(load(model), load_head(head))
    test = open_depths(data).test
    frames = [DenseSet([pair], test.reader) for pair in test.pairs]
    return np.array(
        [depth.run(predictor, frame, max_depth=5.0, size=int(DEPTH), flip=True)[0].value for frame in frames]
    )


def difference(values: np.ndarray) -> Measure:
    """Return the mean over frames with its interval, in which blocks of three consecutive frames are drawn."""
    blocks = np.array_split(values, len(values) // 3)
    return measured(
        "difference", lambda drawn: float(np.concatenate([blocks[i] for i in drawn]).mean()), len(blocks), unit="m"
    )


def by_metric(place: Path) -> dict[tuple[str, str, str], Row]:
    """Return the newest row of each data, protocol and metric that is measured in percent, points or metres."""
    rows = [row for row in read_rows(place) if row.unit]
    return {(row.data, row.protocol, row.metric): row for row in rows}


if __name__ == "__main__":
    main()
