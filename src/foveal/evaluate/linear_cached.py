"""Linear classifiers on features computed once: the published grid without augmented views, in minutes.

Not the published linear protocol: its figures never stand beside these.

Shapes: N samples, D width, K classes, R learning rates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate.results import Measure, measured_mean
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import check_apart, number_labels
from foveal.images.imageset import ImageSet

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
NUM_STEPS = 1250
_BATCH_SIZE = 128
_HELD_OUT = 10  # one in so many train images chooses the classifier


class Inputs(NamedTuple):
    """What one classifier of the grid reads: class tokens of the last blocks, and the mean patch token of the last."""

    num_blocks: int
    avgpool: bool


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    num_steps: int = NUM_STEPS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
    trained: Callable[[int, int], None] | None = None,
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
        seed: of the initial weights, the draws and the intervals.
        batch_size: images at a time for the backbone.
        progress: called with (images done, images in all), first for train, then for test.
        trained: called with (steps done, steps in all).

    Returns:
        Top-1 and, from 5 classes on, top-5 accuracy in percent, and the learning rate, blocks and pooling chosen.

    Raises:
        ImageSetError: labels missing or not matching, or images in both sets.
        FovealError: too few images.

    Source: arXiv 2304.07193, appendix B.3, but for the views and the images that choose.
    """
    check_apart(train, test)
    train_labels, test_labels, classes = number_labels(train, test)
    depth = model.card.backbone.depth
    layers = list(range(max(0, depth - 4), depth))

    def extract(images: ImageSet, labels: Tensor) -> tuple[dict[Inputs, Tensor], Tensor]:
        found = model.extract_set(images, what=("cls", "mean"), layers=layers, batch_size=batch_size, progress=progress)
        return inputs_of(found.arrays, layers), labels[found.indices]

    return score(
        *extract(train, train_labels),
        *extract(test, test_labels),
        num_classes=len(classes),
        num_steps=num_steps,
        learning_rates=learning_rates,
        seed=seed,
        trained=trained,
    )


def inputs_of(arrays: Mapping[str, Tensor], layers: Sequence[int]) -> dict[Inputs, Tensor]:
    """Return the inputs of all classifiers, (N, blocks * D) or (N, (blocks + 1) * D), from tokens by name."""
    mean = arrays[f"mean.layer{layers[-1]}"]
    found = {}
    for count in dict.fromkeys((1, len(layers))):
        cls = torch.cat([arrays[f"cls.layer{layer}"] for layer in layers[-count:]], dim=1)
        found[Inputs(count, False)] = cls
        found[Inputs(count, True)] = torch.cat([cls, mean], dim=1)
    return found


def score(
    train: Mapping[Inputs, Tensor],
    train_labels: Tensor,
    test: Mapping[Inputs, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
    num_steps: int = NUM_STEPS,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    trained: Callable[[int, int], None] | None = None,
) -> list[Measure]:
    """Evaluate features that are already extracted; arguments and result as for `run`."""
    if num_steps < 1 or not learning_rates or min(learning_rates) <= 0:
        raise FovealError(f"num_steps={num_steps}, learning rates {learning_rates}; give at least one, above 0")
    order = torch.randperm(len(train_labels), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]
    if not len(held_out):
        raise FovealError(f"{len(order)} readable train images; a tenth of them chooses, give at least 10")
    best, most, logits = (0.0, Inputs(1, False)), (-1.0, 0.0), torch.empty(0)
    for number, (inputs, features) in enumerate(train.items()):
        weight, bias = train_grid(
            features[kept],
            train_labels[kept],
            num_classes=num_classes,
            num_steps=num_steps,
            learning_rates=learning_rates,
            seed=seed,
            trained=None if trained is None else _shifted(trained, number * num_steps, len(train) * num_steps),
        )
        judged = features[held_out] @ weight.mT + bias[:, None]
        for rate, one, *linear in zip(learning_rates, judged, weight, bias, strict=True):
            accuracy = float((one.argmax(dim=1) == train_labels[held_out]).double().mean())
            merit = (accuracy, -float(F.cross_entropy(one, train_labels[held_out])))
            if merit > most:
                best, most, logits = (rate, inputs), merit, F.linear(test[inputs], *linear)
    right = 100 * (logits.topk(min(5, num_classes), dim=1).indices == test_labels[:, None]).double().numpy()
    found = [measured_mean("top-1", right[:, 0], unit="%", seed=seed)]
    if num_classes >= 5:
        found.append(measured_mean("top-5", right.sum(axis=1), unit="%", seed=seed))
    settings = {"learning rate": best[0], "blocks": best[1].num_blocks, "mean patch token": best[1].avgpool}
    return found + [Measure(name, float(value), "", float(value), float(value)) for name, value in settings.items()]


def train_grid(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    num_steps: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seed: int = 0,
    trained: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Train one linear classifier for each learning rate, all on the same batches.

    Args:
        features: (N, D) float32.
        labels: (N,) int64 below num_classes.
        num_classes: K.
        num_steps: of 128 samples, drawn without repeats until all were seen.
        learning_rates: R of them, for 256 samples a step.
        seed: of the weights, normal of deviation 0.01, and of the draws.
        trained: called with (steps done, steps in all).

    Returns:
        Weights (R, K, D) and biases (R, K).
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(_BATCH_SIZE, len(features))
    weight = 0.01 * torch.randn(num_classes, features.shape[1], generator=generator)
    weight = weight.expand(len(learning_rates), -1, -1).clone()
    bias = weight.new_zeros(weight.shape[:2])
    speeds = torch.zeros_like(weight), torch.zeros_like(bias)
    rates = torch.tensor(learning_rates)[:, None] * size / 256
    order = torch.empty(0, dtype=torch.int64)
    for step in range(num_steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(len(features), generator=generator)])
        drawn, order = order[:size], order[size:]
        batch = features[drawn]
        excess = (batch @ weight.mT + bias[:, None]).softmax(dim=2)
        excess[:, torch.arange(size), labels[drawn]] -= 1
        excess /= size
        rate = rates * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        speeds[0].mul_(0.9).add_(excess.mT @ batch)
        speeds[1].mul_(0.9).add_(excess.sum(dim=1))
        weight -= rate[:, :, None] * speeds[0]
        bias -= rate * speeds[1]
        if trained is not None:
            trained(step + 1, num_steps)
    return weight, bias


def _shifted(trained: Callable[[int, int], None], before: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: trained(before + done, total)
