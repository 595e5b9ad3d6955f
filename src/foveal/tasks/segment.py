"""Segmentation from frozen features: batch norm and a linear layer on patch tokens.

Shapes: B images, D width, K classes; grid_h x grid_w patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.tasks.dense import Level, resized

IGNORED = -1  # in a target: pixels that count neither in training nor in evaluation


class LinearSegmenter(nn.Module):
    """Batch norm over the channels of the patch tokens, then a 1x1 convolution to one logit a class.

    The "lin." head reads the last block, the "+ms" head the last four (arXiv 2304.07193, section 7.4), after the final
    norm. State-dict keys are those of the official heads, without "decode_head.".

    Args:
        width: D of the backbone.
        num_levels: blocks that are read.
        num_classes: K.
    """

    def __init__(self, width: int, *, num_levels: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width * num_levels)
        self.conv_seg = nn.Conv2d(width * num_levels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Return logits (B, K, grid_h, grid_w)."""
        return self.conv_seg(self.bn(torch.cat([level.patches for level in levels], dim=1)))


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pixels that count, the logits upsampled to them.

    Args:
        logits: (B, K, h, w).
        target: (B, H, W) int64, class ids, `IGNORED` where a pixel does not count.
    """
    if not bool((target != IGNORED).any()):
        return logits.sum() * 0
    size = (target.shape[1], target.shape[2])
    return F.cross_entropy(resized(logits, size), target, ignore_index=IGNORED)
