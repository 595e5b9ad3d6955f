"""Images per second of whole evaluations against those of extraction alone, from JPEG files of 500 x 375 pixels.

    python benchmarks/evaluate_rate.py                      # cut-outs of scikit-image's photographs, random ViT-S/14
    python benchmarks/evaluate_rate.py --model model --data photos --num-images 2000 --turns 3

All are measured in turns in one run, so that a machine that changes its speed changes it for all. "extraction" gives
class tokens of both sets in memory. The evaluations are those of the command line with --out, from opened model and
set to measures: they keep features, and train. Share is the median over turns of the rate beside that of extraction in
the same turn. "After features" are the seconds of an evaluation once its last image was encoded, which hardly grow with
the number of images below some tens of thousands. The linear protocol on new views has a benchmark of its own.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from data_path import encode, load_photographs
from rich.console import Console
from rich.table import Table
from store_bytes import random_model

import foveal
from foveal.evaluate import knn, linear_cached, logistic
from foveal.evaluate.layouts.classification import Classification, open_classification
from foveal.features.batches import Progress
from foveal.features.extract import Model

_CUT_OUT = 0.8  # of a photograph's sides


class Pass(NamedTuple):
    """What one pass took: images that the backbone saw, seconds in all, and seconds after the last image."""

    num_images: int
    seconds: float
    seconds_after: float

    @property
    def rate(self) -> float:
        """Images per second of the whole."""
        return self.num_images / self.seconds


def write_cut_outs(folder: Path, num_images: int, *, seed: int = 0) -> None:
    """Write CLASS/NNNNN.jpg: cut-outs of photographs, of which each is a class."""
    generator = np.random.default_rng(seed)
    photographs = load_photographs(None)
    for number in range(num_images):
        photograph = photographs[number % len(photographs)]
        left, top = (int(generator.integers(int((1 - _CUT_OUT) * side))) for side in photograph.size)
        right, bottom = left + int(_CUT_OUT * photograph.width), top + int(_CUT_OUT * photograph.height)
        path = folder / f"class{number % len(photographs):02d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_out = photograph.crop((left, top, right, bottom))
        path.write_bytes(encode(cut_out, size=(500, 375), format_name="JPEG"))


def passes(
    model: Model, data: Classification, options: argparse.Namespace
) -> dict[str, Callable[[Path, Progress], int]]:
    """Return what is measured: each takes a new folder and what is to be told of images, and gives how many it saw."""
    both = len(data.train) + len(data.test)
    size = {"batch_size": options.batch_size}

    def extraction(_: Path, progress: Progress) -> int:
        for images in (data.train, data.test):
            model.extract_set(images, progress=progress, **size)
        return both

    def cached(run: Callable[..., object]) -> Callable[[Path, Progress], int]:
        def whole(folder: Path, progress: Progress) -> int:
            run(model, data.train, data.test, folder=folder, progress=progress, **size)
            return both

        return whole

    every = {
        "extraction": extraction,
        "knn": cached(partial(knn.run, ks=[10])),
        "logistic": cached(logistic.run),
        "linear-cached": cached(linear_cached.run),
    }
    return {name: one for name, one in every.items() if name == "extraction" or name in options.protocols}


def measure(one: Callable[[Path, Progress], int]) -> Pass:
    """Run one pass in a folder of its own."""
    last = 0.0

    def progress(_done: int, _total: int) -> None:
        nonlocal last
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        num_images = one(Path(folder), progress)
        end = time.perf_counter()
    return Pass(num_images, end - start, end - last)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as of `foveal evaluate`; default: random ViT-S/14")
    parser.add_argument("--data", help="labelled images; default: cut-outs of photographs")
    parser.add_argument("--num-images", type=int, default=160)
    parser.add_argument("--protocols", nargs="*", default=["knn", "logistic", "linear-cached"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    model = foveal.load(options.model) if options.model else random_model()
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            write_cut_outs(Path(folder), options.num_images)
        data = open_classification(options.data or folder)
        measured = passes(model, data, options)
        model.extract_set(data.test)  # warm up
        found = {name: [measure(one)] for name, one in measured.items()}
        for _ in range(options.turns - 1):
            for name, one in measured.items():
                found[name].append(measure(one))
    table = Table("", "images/s", "share", "after features, s", title=f"{model.card.name}, {data.sizes}")
    for name, runs in found.items():
        shares = [run.rate / plain.rate for run, plain in zip(runs, found["extraction"], strict=True)]
        after = f"{median(run.seconds_after for run in runs):.1f}"
        table.add_row(name, f"{median(run.rate for run in runs):.1f}", f"{median(shares):.0%}", after)
    Console().print(table)


if __name__ == "__main__":
    main()
