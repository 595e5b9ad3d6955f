"""Linear classifiers on features computed once: the published grid without augmented views, in minutes.

Not the published linear protocol: its figures never stand beside these.

Shapes: N samples, D width, K classes, R learning rates; the grid itself is in linear_grid.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.evaluate.few_shot import FewShot, right_measures, right_of_answers
from foveal.evaluate.held_out import check_choosable, split_tenth
from foveal.evaluate.labelled import extract_labelled
from foveal.evaluate.linear_grid import (
    BATCH_SIZE,
    LEARNING_RATES,
    Classifiers,
    Inputs,
    check_grid,
    choice_measures,
    cosine_share,
    inputs_of,
    layers_of,
)
from foveal.evaluate.results import Measure
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet

NUM_STEPS = 1250


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    num_steps: int = NUM_STEPS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    few_shot: FewShot | None = None,
    seed: int = 0,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
    trained: Progress | None = None,
) -> list[Measure]:
    """Evaluate a model by linear classifiers on fixed views.

    There is one for each of 13 learning rates, 1 or 4 last blocks, with or without the mean patch token. The best on a
    tenth of the train images, of equal ones the one of least cross-entropy, classifies the test images.

    Args:
        model: a loaded model.
        train: labelled images to learn from; a tenth of them, drawn with the seed, is kept for the choice.
        test: labelled images that are classified.
        num_steps: of SGD at 128 images, momentum 0.9, no weight decay, cosine to 0.
        learning_rates: for 256 images a step.
        few_shot: a few train images of each class, several times, instead of all; a tenth of each draw chooses.
        seed: of the initial weights, the draws and the intervals.
        batch_size: images at a time for the backbone.
        folder: see `extract_labelled`.
        progress: called with (images done, images in all), first for train, then for test.
        trained: called with (steps done, steps in all).

    Returns:
        Top-1 and, from 5 classes on, top-5 accuracy in percent, and the learning rate, blocks and pooling chosen; for
        few-shot the mean of each accuracy over the tries and its sample standard deviation.

    Raises:
        ImageSetError: labels missing or not matching, or images in both sets.
        FovealError: too few images.

    Source: arXiv 2304.07193, appendix B.3, but for the views and the images that choose.
    """
    check_grid(num_steps, learning_rates)
    check_choosable(train, few_shot)
    layers = layers_of(model.card.backbone.depth)
    first, second, classes = extract_labelled(
        model,
        train,
        test,
        what=("cls", "mean"),
        layers=layers,
        batch_size=batch_size,
        folder=folder,
        progress=progress,
    )
    return score(
        inputs_of(first.arrays, layers),
        first.labels,
        inputs_of(second.arrays, layers),
        second.labels,
        num_classes=len(classes),
        num_steps=num_steps,
        learning_rates=learning_rates,
        few_shot=few_shot,
        seed=seed,
        trained=trained,
    )


def score(
    train: Mapping[Inputs, Tensor],
    train_labels: Tensor,
    test: Mapping[Inputs, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
    num_steps: int = NUM_STEPS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    few_shot: FewShot | None = None,
    seed: int = 0,
    trained: Progress | None = None,
) -> list[Measure]:
    """Evaluate features that are already extracted; arguments and result as for `run`."""
    check_grid(num_steps, learning_rates)
    choose = partial(_choose, num_classes=num_classes, num_steps=num_steps, learning_rates=learning_rates, seed=seed)
    if few_shot is None:
        best, logits = choose(train, train_labels, test, trained=trained)
        return right_measures(_right(logits, test_labels), seed=seed) + choice_measures(*best)
    few_shot.check_choice()
    done = count()

    def right_of(drawn: Tensor) -> dict[str, np.ndarray]:
        part = {inputs: features[drawn] for inputs, features in train.items()}
        shifted = _shifted(trained, next(done), few_shot.n_tries)
        _, logits = choose(part, train_labels[drawn], test, trained=shifted)
        return _right(logits, test_labels)

    return few_shot.evaluate(train_labels, right_of, seed=seed)


def _right(logits: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    return right_of_answers(logits.topk(min(5, logits.shape[1]), dim=1).indices, labels)


def _choose(
    train: Mapping[Inputs, Tensor],
    train_labels: Tensor,
    test: Mapping[Inputs, Tensor],
    *,
    num_classes: int,
    num_steps: int,
    learning_rates: Sequence[float],
    seed: int,
    trained: Progress | None,
) -> tuple[tuple[float, Inputs], Tensor]:
    """Return learning rate and inputs of the classifier that is best on a tenth of the train samples, and its logits.

    These are (N, K), of the test samples.
    """
    held_out, kept = split_tenth(len(train_labels), seed=seed)
    best, most, logits = (0.0, Inputs(1, False)), (-1.0, 0.0), torch.empty(0)
    for number, (inputs, features) in enumerate(train.items()):
        classifiers = train_grid(
            features[kept],
            train_labels[kept],
            num_classes=num_classes,
            num_steps=num_steps,
            learning_rates=learning_rates,
            seed=seed,
            trained=_shifted(trained, number, len(train)),
        )
        judged = classifiers.logits(features[held_out])
        for rate, one, *linear in zip(learning_rates, judged, classifiers.weight, classifiers.bias, strict=True):
            accuracy = float((one.argmax(dim=1) == train_labels[held_out]).double().mean())
            merit = (accuracy, -float(F.cross_entropy(one, train_labels[held_out])))
            if merit > most:
                best, most, logits = (rate, inputs), merit, F.linear(test[inputs], *linear)
    return best, logits


def train_grid(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    num_steps: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    trained: Progress | None = None,
) -> Classifiers:
    """Train one linear classifier for each learning rate, all on the same batches.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 below num_classes.
        num_classes: K.
        num_steps: of 128 samples, drawn without repeats until all were seen.
        learning_rates: R of them, for 256 samples a step.
        seed: of the weights, normal of deviation 0.01, and of the draws.
        trained: called with (steps done, steps in all).
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(BATCH_SIZE, len(features))
    classifiers = Classifiers(
        features.shape[1], num_classes, learning_rates=learning_rates, batch_size=size, generator=generator
    )
    order = torch.empty(0, dtype=torch.int64)
    for step in range(num_steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(features), generator=generator)])
        drawn, order = order[:size], order[size:]
        classifiers.update(features[drawn], labels[drawn], share=cosine_share(step, num_steps))
        if trained is not None:
            trained(step + 1, num_steps)
    return classifiers


def _shifted(trained: Progress | None, number: int, count: int) -> Progress | None:
    """Return what reports the steps of part `number` of `count` equal ones as steps of the whole."""
    return None if trained is None else lambda done, total: trained(number * total + done, count * total)
