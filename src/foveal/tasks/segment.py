"""Segmentation from frozen features: a linear layer or an MLP on patch tokens, or the DPT decoder.

Shapes: B images, D width, K classes; grid_h x grid_w patches.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.tasks.dense import Level, resized
from foveal.tasks.dpt import DPT

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


class MlpSegmenter(nn.Module):
    """Two layers on every patch token of the last block: batch norm, 1x1 convolution, GELU, 1x1 convolution.

    Args:
        width: D of the backbone, and of the layer between.
        num_classes: K.
    """

    def __init__(self, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.hidden = nn.Conv2d(width, width, 1)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Return logits (B, K, grid_h, grid_w)."""
        (level,) = levels
        return self.conv_seg(F.gelu(self.hidden(self.bn(level.patches))))


class DptSegmenter(DPT):
    """The DPT decoder of the official depth heads, then a 1x1 convolution to one logit a class (arXiv 2103.13413).

    It reads what those read: the ends of the four quarters with their class tokens, before the final norm. There is no
    dropout and, as in those, no batch norm.

    Args:
        width: D of the backbone.
        num_classes: K.
        fusion_width: see `DPT`.
    """

    def __init__(self, width: int, *, num_classes: int, fusion_width: int = 256) -> None:
        super().__init__(width, fusion_width=fusion_width)
        self.conv_seg = nn.Conv2d(fusion_width, num_classes, 1)

    def forward(self, levels: Sequence[Level]) -> Tensor:
        """Return logits (B, K, 8 grid_h, 8 grid_w); of an odd grid a little more."""
        return self.conv_seg(self.fused(levels))


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
