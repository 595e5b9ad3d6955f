"""The grid of linear classifiers that the linear protocols train: learning rates, blocks and pooling, side by side.

Shapes: B samples, D width, K classes, R learning rates.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.evaluate.results import Measure

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
BATCH_SIZE = 128
_MOMENTUM = 0.9
_DEVIATION = 0.01


class Inputs(NamedTuple):
    """What one classifier of the grid reads: class tokens of the last blocks, and the mean patch token of the last."""

    num_blocks: int
    avgpool: bool


def layers_of(depth: int) -> list[int]:
    """Return the blocks whose tokens the grid reads: the last four, or all of a shallower network."""
    return list(range(max(0, depth - 4), depth))


def inputs_of(arrays: Mapping[str, Tensor], layers: Sequence[int]) -> dict[Inputs, Tensor]:
    """Return the inputs of all classifiers, (B, blocks * D) or (B, (blocks + 1) * D), from tokens by name."""
    mean = arrays[f"mean.layer{layers[-1]}"]
    found = {}
    for count in dict.fromkeys((1, len(layers))):
        cls = torch.cat([arrays[f"cls.layer{layer}"] for layer in layers[-count:]], dim=1)
        found[Inputs(count, False)] = cls
        found[Inputs(count, True)] = torch.cat([cls, mean], dim=1)
    return found


def check_grid(num_steps: int, learning_rates: Sequence[float]) -> None:
    """Refuse settings with which nothing would be trained; FovealError says which are allowed."""
    if num_steps < 1 or not learning_rates or min(learning_rates) <= 0:
        raise FovealError(f"num_steps={num_steps}, learning rates {learning_rates}; give at least one, above 0")


def cosine_share(step: int, num_steps: int) -> float:
    """Return the share of the learning rate at a step: a half cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


class Classifiers:
    """One linear classifier for each learning rate, all of one input, trained by SGD on the same batches.

    Momentum is 0.9 and nothing decays. The weights begin alike, normal of deviation 0.01; the biases at 0.

    Args:
        width: D.
        num_classes: K.
        learning_rates: R of them, for 256 samples a step.
        batch_size: samples of a whole step, which the rates are scaled to.
        generator: of the weights, on the CPU.
        device: where they are trained.

    Attributes:
        weight: (R, K, D).
        bias: (R, K).

    Source: arXiv 2304.07193, appendix B.3, and its public code.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        learning_rates: Sequence[float] = LEARNING_RATES,
        batch_size: int = BATCH_SIZE,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        first = _DEVIATION * torch.randn(num_classes, width, generator=generator)
        self.weight = first.to(device).expand(len(learning_rates), -1, -1).clone()
        self.bias = self.weight.new_zeros(self.weight.shape[:2])
        self._speeds = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self._rates = torch.tensor(learning_rates, device=device)[:, None] * batch_size / 256

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (R, B, K) of features (B, D)."""
        return features @ self.weight.mT + self.bias[:, None]

    def update(self, features: Tensor, labels: Tensor, *, share: float) -> None:
        """Take one step down the gradient of the mean cross-entropy.

        Args:
            features: (B, D).
            labels: (B,) int64.
            share: of the learning rates, at this step.
        """
        excess = self.logits(features).softmax(dim=2)
        excess[:, torch.arange(len(labels), device=labels.device), labels] -= 1
        excess /= len(labels)
        gradients = excess.mT @ features, excess.sum(dim=1)
        rates = self._rates * share
        for values, speed, gradient in zip((self.weight, self.bias), self._speeds, gradients, strict=True):
            speed.mul_(_MOMENTUM).add_(gradient)
            values.addcmul_(speed, rates[:, :, None] if values.ndim == 3 else rates, value=-1)

    def state(self) -> dict[str, Tensor]:
        """Return everything that training goes on from, by name."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "weight_speed": self._speeds[0],
            "bias_speed": self._speeds[1],
        }


def choice_measures(learning_rate: float, inputs: Inputs) -> list[Measure]:
    """Return the settings of the classifier that was chosen, as numbers without an interval."""
    settings = {"learning rate": learning_rate, "blocks": inputs.num_blocks, "mean patch token": inputs.avgpool}
    return [Measure(name, float(value), "", float(value), float(value)) for name, value in settings.items()]
