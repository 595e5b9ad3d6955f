"""Regression of a teacher's tokens: what a student learns from a teacher without heads."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_COSINE, _SMOOTH_L1 = 0.9, 0.1
_SMALLEST_STD = 1e-6


class Moments(NamedTuple):
    """Mean and standard deviation of each of D features, float32."""

    mean: Tensor
    std: Tensor

    def standardise(self, tokens: Tensor) -> Tensor:
        """Return tokens (..., D) with mean 0 and deviation 1 of each feature; a constant feature becomes 0."""
        return (tokens.float() - self.mean) / self.std.clamp_min(_SMALLEST_STD)


class MomentSums:
    """Adds up tokens batch by batch, in float64, until their moments are asked for."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, tokens: Tensor) -> None:
        """Count tokens (..., D) in."""
        rows = tokens.detach().flatten(0, -2).double()
        sums = rows.sum(0), rows.square().sum(0)
        self._sums = sums if self._sums is None else (self._sums[0] + sums[0], self._sums[1] + sums[1])
        self._count += len(rows)

    def moments(self) -> Moments:
        """Return mean and (biased) standard deviation of all tokens so far; at least one is needed."""
        assert self._sums is not None
        mean, square = (total / self._count for total in self._sums)
        return Moments(mean.float(), (square - mean.square()).clamp_min(0).sqrt().float())


def feature_loss(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over tokens of 0.9 (1 - cos(x, y)) + 0.1 smooth_l1(x, y).

    The cosine carries the direction, in which most of a feature's meaning lies; the smooth L1 distance (mean over the D
    features, threshold 1) holds the length. Targets are standardised before, else the few features of large variance
    that vision transformers have decide alone.

    Args:
        predicted: (N, D) the student's tokens, projected to the teacher's width.
        targets: (N, D) standardised tokens of the teacher; no gradient flows into them.

    Returns:
        A scalar, fp32.

    Source: the loss and its weights are those of AM-RADIO (arXiv 2312.06709, section 3.3, for spatial features) and
    Theia (arXiv 2407.20179, section 3.1); standardised targets are Theia's. Here class tokens have the same loss.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        x, y = predicted.float(), targets.detach().float()
        cosine = F.cosine_similarity(x, y, dim=-1).mean()
        return _COSINE * (1 - cosine) + _SMOOTH_L1 * F.smooth_l1_loss(x, y)
