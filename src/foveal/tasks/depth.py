"""Depth from frozen features: linear bins and DPT, with the losses of the public heads.

Shapes: B images, D width, H W pixels.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.tasks.dense import Level
from foveal.tasks.dpt import DPT, DptForm, upsampled

NUM_BINS = 256
WARM_UP_STEPS = 100
_LOG_OFFSET = 1e-3
_MEAN_SHARE = 0.15
_GRADIENT_STEPS = (1, 2, 4, 6)

DepthOutput = Literal["relu", "sigmoid"]


class LinearDepth(nn.Module):
    """A linear layer on patch and class tokens whose outputs weigh depths between two bounds.

    p = (relu(z) + 0.1) / sum(relu(z) + 0.1); depth = sum_k p_k c_k, the c evenly spaced from min_depth to max_depth
    (the "lin." heads of arXiv 2304.07193, section 7.4; bins as in AdaBins, arXiv 2011.14141). The logits are upsampled
    to four times the patch grid. They are formed on the patch grid first, which gives the same numbers as upsampling
    the features, the layer being linear and the weights of the interpolation summing to 1.

    Args:
        width: D of the backbone.
        num_levels: 1 or 4 blocks.
        min_depth: of the range, metres.
        max_depth: of the range, metres.
        num_bins: K.
    """

    def __init__(
        self, width: int, *, num_levels: int, min_depth: float, max_depth: float, num_bins: int = NUM_BINS
    ) -> None:
        super().__init__()
        check_range(min_depth, max_depth)
        self.conv_depth = nn.Conv2d(2 * width * num_levels, num_bins, 1)
        self.min_depth, self.max_depth = min_depth, max_depth

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Return depths (B, 1, 4 grid_h, 4 grid_w), metres."""
        patches = torch.cat([level.patches for level in levels], dim=1)
        cls = torch.cat([level.cls for level in levels], dim=1)
        # Of every level D weights for its patches, then D for its class token, which is the same all over the grid.
        weight = self.conv_depth.weight[:, :, 0, 0].unflatten(1, (len(levels), 2, -1))
        logits = F.conv2d(patches, weight[:, :, 0].flatten(1)[:, :, None, None], self.conv_depth.bias)
        logits = logits + F.linear(cls, weight[:, :, 1].flatten(1))[:, :, None, None]
        return self._weighed(logits.contiguous(memory_format=torch.channels_last))

    def _weighed(self, logits: Tensor) -> Tensor:
        """Return sum_k p_k c_k as (sum_k relu(z_k) c_k + 0.1 sum_k c_k) / (sum_k relu(z_k) + 0.1 K).

        Both sums are one product with two columns, so that nothing else as large as the upsampled logits is made; a
        step of fitting takes about a third of the time that it takes by the first formula.
        """
        z = F.relu(F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False))
        bins = torch.linspace(self.min_depth, self.max_depth, z.shape[1], device=z.device, dtype=z.dtype)
        weighed, total = (z.movedim(1, -1) @ torch.stack([bins, torch.ones_like(bins)], dim=1)).unbind(-1)
        return ((weighed + 0.1 * bins.sum()) / (total + 0.1 * len(bins))).unsqueeze(1)


class DptDepth(DPT):
    """The DPT decoder, two 3x3 convolutions and one map of depth: relu + min_depth, or sigmoid * max_depth.

    Between the convolutions the map is upsampled: to twice its size ("dinov2", 16 times the patch grid), or to the
    pixels of the picture ("depth_anything").

    Args:
        width: D of the backbone.
        channels: see `DPT`.
        fusion_width: see `DPT`.
        form: see `DPT`.
        patch_size: pixels; used by "depth_anything" alone.
        output: "relu", or "sigmoid" for the metric heads of Depth Anything V2.
        min_depth: added after the relu; 0 for relative depth.
        max_depth: factor of the sigmoid; None for relative depth, whose unit is none.
    """

    def __init__(
        self,
        width: int,
        *,
        channels: Sequence[int] | None = None,
        fusion_width: int = 256,
        form: DptForm = "dinov2",
        patch_size: int = 14,
        output: DepthOutput = "relu",
        min_depth: float = 0.0,
        max_depth: float | None = None,
    ) -> None:
        super().__init__(width, channels, fusion_width=fusion_width, form=form)
        if output not in get_args(DepthOutput) or (output == "sigmoid" and max_depth is None):
            raise FovealError(f"output='{output}' with max_depth={max_depth}; choose relu, or sigmoid with a max_depth")
        if max_depth is not None:
            check_range(min_depth, max_depth)
        head = nn.Sequential(
            nn.Conv2d(fusion_width, fusion_width // 2, 3, padding=1),
            nn.Identity(),  # where the map is upsampled
            nn.Conv2d(fusion_width // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )
        self.conv_depth = nn.ModuleDict({"head": head})
        self.patch_size = patch_size
        self.output, self.min_depth, self.max_depth = output, min_depth, max_depth

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Return depths (B, 1, h, w)."""
        grid_h, grid_w = levels[-1].patches.shape[2:]
        size = (grid_h * self.patch_size, grid_w * self.patch_size) if self.form == "depth_anything" else None
        head: nn.Sequential = self.conv_depth["head"]  # type: ignore[assignment]
        found = head[2:](upsampled(head[0](self.fused(levels)), size))
        if self.output == "sigmoid":
            assert self.max_depth is not None  # checked above
            return found.sigmoid() * self.max_depth
        return F.relu(found) + self.min_depth


def check_range(min_depth: float, max_depth: float) -> None:
    """Refuse a range of depths that is none."""
    if not 0 <= min_depth < max_depth < math.inf:
        raise FovealError(f"depths from {min_depth} to {max_depth}; give 0 <= min_depth < max_depth, in metres")


def valid_depth(target: Tensor, *, max_depth: float | None) -> Tensor:
    """Return where a depth is known: above 0, and at most `max_depth`."""
    known = target > 0
    return known if max_depth is None else known & (target <= max_depth)


def sig_loss(predicted: Tensor, target: Tensor, *, max_depth: float | None, warm_up: bool = False) -> Tensor:
    """Return the scale-invariant loss on logarithms: sqrt(var(g) + 0.15 mean(g)^2).

    g = log(predicted + 0.001) - log(target + 0.001) over the known pixels of the batch (arXiv 1406.2283, as in
    arXiv 2011.14141); during warm-up sqrt(0.15 mean(g)^2) alone, which brings the mean right first.

    Args:
        predicted: (B, 1, H, W), metres.
        target: likewise; 0 is not known.
        max_depth: beyond it a target is not known.
        warm_up: for the first 100 steps, or the first tenth of a short fit.
    """
    known = valid_depth(target, max_depth=max_depth)
    if int(known.sum()) < 2:
        return predicted.sum() * 0
    g = torch.log(predicted[known] + _LOG_OFFSET) - torch.log(target[known] + _LOG_OFFSET)
    mean = _MEAN_SHARE * g.mean() ** 2
    return torch.sqrt(mean if warm_up else g.var() + mean)


def gradient_loss(predicted: Tensor, target: Tensor, *, max_depth: float | None) -> Tensor:
    """Return the mean difference of the gradients of log depth, summed over strides 1, 2, 4 and 6.

    At each stride the error of the logarithms is differenced over two pixels of the thinned picture, where both are
    known: sum(|g[y] - g[y + 2]|) + sum(|g[x] - g[x + 2]|), divided by the known pixels (arXiv 1804.00607, equation 4).

    The authors of the public heads index the first two dimensions of (B, 1, H, W) instead, so that pictures are
    differenced and not pixels, and with two pictures a process, as they had, nothing is: their loss was `sig_loss`.
    """
    loss = predicted.sum() * 0
    for step in _GRADIENT_STEPS:
        thin, wanted = predicted[..., ::step, ::step], target[..., ::step, ::step]
        known = valid_depth(wanted, max_depth=max_depth)
        count = known.sum()
        if not count:
            continue
        g = torch.log(thin + _LOG_OFFSET) - torch.log(wanted.clamp(min=0) + _LOG_OFFSET)
        rows = (g[..., :-2, :] - g[..., 2:, :]).abs() * (known[..., :-2, :] & known[..., 2:, :])
        columns = (g[..., :-2] - g[..., 2:]).abs() * (known[..., :-2] & known[..., 2:])
        loss = loss + (rows.sum() + columns.sum()) / count
    return loss
