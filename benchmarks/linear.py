"""Images/s of the published linear protocol beside those of plain extraction: crops and classifiers should cost little.

Times are of the processor, all threads together, so that other work on the computer does not count.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import foveal
from foveal.evaluate.layouts.classification import open_classification
from foveal.evaluate.linear_training import LinearSettings, train_grid
from foveal.features.labels import number_labels


def main() -> None:
    """Print the rates of both, in turns, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="labelled images, as for foveal evaluate linear")
    parser.add_argument("--num-steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = foveal.load(arguments.model, engine="torch", device="cpu")
    data = open_classification(arguments.data)
    labels, _, classes = number_labels(data.train, data.test)
    settings = LinearSettings(num_steps=arguments.num_steps, batch_size=arguments.batch_size)
    num_images = arguments.num_steps * arguments.batch_size
    order = np.random.default_rng(0).permutation(len(data.train))
    images = data.train.subset(np.resize(order, num_images))

    def extract() -> None:
        model.extract_set(images, batch_size=arguments.batch_size)

    def train() -> None:
        train_grid(model, data.train, labels, num_classes=len(classes), settings=settings, num_threads=2)

    for _ in range(arguments.num_rounds):
        plain, linear = (num_images / seconds(work) for work in (extract, train))
        print(f"{len(classes)} classes: extraction {plain:.2f}, linear {linear:.2f} images/s: {linear / plain:.0%}")


def seconds(work: Callable[[], None]) -> float:
    """Return the processor time that `work` takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
