"""Linear layers in int8: how each is scaled, clipped and rounded, found on real images one layer at a time.

A layer y = W x + b becomes y = W' x' + b' with

    x' = round of x / s, per input channel, to 256 steps between `low` and `high` (one range for all channels)
    W' = round of W s, per output row, to whole numbers between -m and m
    b' = b + the mean of what the rounding took away

s is what makes it aware of outliers: a channel that is 100 times as large as the others would leave them a hundredth
of the steps; divided by its own size it takes no more than its share, and its column of W makes up for it. How far to
go is decided layer by layer, by the error of the layer's output. `low` and `high` leave out rare extremes of patches
where that makes the error smaller, and reach beyond what the few class tokens showed.

Source: the scales are those of SmoothQuant, arXiv 2211.10438, equation 4, with the exponent chosen per layer.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# Activations: unsigned 8 bits.
LEVELS = 256
_EXPONENTS = (None, 0.5, 0.75)
_CLIPS = (1.0, 0.85, 0.7, 0.5)
# The range reaches so many times beyond what class and register tokens showed: one an image, they show too little of
# what other images hold. Measured on a trained network: of 256 new images 43 % had a class token out of range at the
# output projection of the last block, which cost a cosine of 0.016.
_HEADROOM = 1.5
# Rows on which scales and ranges are compared; the bias is corrected on all.
_SEARCH_ROWS = 256


@dataclass(frozen=True)
class Quantised:
    """How a linear layer (O, C) runs in int8.

    Attributes:
        input_scale: s, (C,).
        low: least value of x / s that is kept apart; zero is one of the steps.
        high: largest such value.
        weight_scale: (O,), size of one step of each row of W s.
        bias: b', (O,).
        max_integer: m, 127, or 63 where a processor adds two products in 16 bits.
        error: mean square of the error of the output, in its own units.
    """

    input_scale: Tensor
    low: float
    high: float
    weight_scale: Tensor
    bias: Tensor
    max_integer: int
    error: float = 0.0
    levels: int = LEVELS

    def integer_weight(self, weight: Tensor) -> Tensor:
        """Return W' (O, C) as int8."""
        steps = weight * self.input_scale / self.weight_scale[:, None]
        return steps.round().clamp(-self.max_integer, self.max_integer).to(torch.int8)

    def round_input(self, x: Tensor) -> Tensor:
        """Return x' for rows x (T, C), as floats."""
        step = (self.high - self.low) / (self.levels - 1)
        return ((x / self.input_scale).clamp(self.low, self.high) - self.low).div(step).round() * step + self.low

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's output for rows x (T, C), computed in float32 from the rounded numbers."""
        return F.linear(self.round_input(x), self.integer_weight(weight) * self.weight_scale[:, None], self.bias)


@torch.no_grad()
def quantise(weight: Tensor, bias: Tensor, x: Tensor, *, num_prefix_rows: int = 0, max_integer: int = 127) -> Quantised:
    """Find the scales, range and bias with which a layer's output changes least on given inputs.

    Args:
        weight: (O, C) float32.
        bias: (O,) float32.
        x: (T, C) float32, inputs of the layer on real images.
        num_prefix_rows: so many first rows are class and register tokens. Together they count as much as all patches:
            they are few, differ from patches most in the last blocks, and are what is judged.
        max_integer: see `Quantised`.
    """
    prefix, patches = x[:num_prefix_rows], x[num_prefix_rows:]
    few = torch.cat([prefix, patches[:: max(1, len(patches) // _SEARCH_ROWS)]])
    # The search sees a part of the rows; the range it clips is that of all of them.
    largest = x.abs().amax(dim=0)
    exact = F.linear(few, weight, bias)
    best: Quantised | None = None
    for exponent in _EXPONENTS:
        scale = _input_scale(largest, weight, exponent)
        low, high = _range(x / scale)
        least, most = (_HEADROOM * bound for bound in _range(prefix / scale))
        weight_scale = ((weight * scale).abs().amax(dim=1) / max_integer).clamp(min=1e-30)
        base = Quantised(scale, low, high, weight_scale, bias, max_integer)
        rounded = base.integer_weight(weight) * weight_scale[:, None]
        for clip in _CLIPS:
            low_kept, high_kept = _with_zero(min(clip * low, least), max(clip * high, most))
            tried = replace(base, low=low_kept, high=high_kept)
            errors = (F.linear(tried.round_input(few), rounded, bias) - exact).square()
            error = float(mean_of_rows(errors, num_prefix_rows).mean())
            if best is None or error < best.error:
                best = replace(tried, error=error)
    assert best is not None
    missing = F.linear(x, weight, bias) - best.run(x, weight)
    lost = mean_of_rows(missing, num_prefix_rows)
    return replace(best, bias=bias + lost, error=float(mean_of_rows((missing - lost).square(), num_prefix_rows).mean()))


def mean_of_rows(values: Tensor, num_prefix_rows: int) -> Tensor:
    """Return the mean of rows (T, ...), the first `num_prefix_rows` together counting as much as all others."""
    parts = [part.mean(dim=0) for part in (values[:num_prefix_rows], values[num_prefix_rows:]) if len(part)]
    return torch.stack(parts).mean(dim=0)


@torch.no_grad()
def quantise_plainly(weight: Tensor, bias: Tensor, x: Tensor, *, max_integer: int = 127) -> Quantised:
    """Quantise as is usual: one range from the least to the largest input, no scales, no clipping, no correction."""
    weight_scale = (weight.abs().amax(dim=1) / max_integer).clamp(min=1e-30)
    low, high = _with_zero(*_range(x))
    return Quantised(torch.ones(weight.shape[1]), low, high, weight_scale, bias, max_integer)


def _input_scale(largest: Tensor, weight: Tensor, exponent: float | None) -> Tensor:
    """Return s (C,): largest input ** exponent / largest weight ** (1 - exponent), per channel; None is no scale."""
    if exponent is None:
        return torch.ones_like(largest)
    scale = largest.clamp(min=1e-5) ** exponent / weight.abs().amax(dim=0).clamp(min=1e-5) ** (1 - exponent)
    return scale / scale.log().mean().exp()


def _range(x: Tensor) -> tuple[float, float]:
    """Return the least and the largest value, and 0 where it is beyond these or there is none."""
    return min(x.min().item(), 0.0) if x.numel() else 0.0, max(x.max().item(), 0.0) if x.numel() else 0.0


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """Move a range a little, so that 0 is one of its steps and stays exact."""
    step = max(high - low, 1e-12) / (LEVELS - 1)
    zero = round(-low / step)
    return -zero * step, (LEVELS - 1 - zero) * step
