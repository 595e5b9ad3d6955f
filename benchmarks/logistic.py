"""Logistic regression over 45 penalties beside scikit-learn, on one thread: time for the whole path, and who is lower.

Features are pixels of CIFAR-10 images (or of any labelled set), small enough to run in minutes: `--data` names it.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from foveal.evaluate.knn import pixel_features
from foveal.evaluate.logistic import CS
from foveal.evaluate.softmax_regression import fit_path
from foveal.images.imageset import ImageSet


def main() -> None:
    """Print objectives and times of both for each C, and the ratio of the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a labelled image set")
    parser.add_argument("--num-images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=10, help="pixels of a side")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    images = ImageSet.open(arguments.data)
    images = images.subset(np.random.default_rng(0).permutation(len(images))[: arguments.num_images])
    features = pixel_features(images, size=arguments.size).arrays["pixels"]
    names = np.asarray(images.labels)
    labels = np.searchsorted(np.unique(names), names)
    started = time.perf_counter()
    fits = list(fit_path(features, torch.from_numpy(labels), CS))
    ours, theirs = time.perf_counter() - started, 0.0
    for fit in fits:
        started = time.perf_counter()
        found = LogisticRegression(C=fit.c, max_iter=1000, tol=1e-12).fit(features.double().numpy(), labels)
        theirs += time.perf_counter() - started
        chosen = found.predict_log_proba(features.double().numpy())[np.arange(len(labels)), labels]
        objective = -chosen.sum() + (found.coef_**2).sum() / (2 * fit.c)
        print(f"C={fit.c:9.3g}  {fit.steps:4d} steps  ours/theirs - 1 = {fit.objective / objective - 1:+.1e}")
    print(f"{len(labels)} x {features.shape[1]}, {labels.max() + 1} classes: {ours:.1f} s, scikit-learn {theirs:.1f} s")
    print(f"{theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
