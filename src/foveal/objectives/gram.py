"""The Gram term: patches stay as similar to each other as they are in an anchor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.objectives.logits import wide


def gram_loss(patches: Tensor, anchors: Tensor) -> Tensor:
    """Return the mean of (x_i . x_j - y_i . y_j)^2 over all pairs of patches of each image, for unit vectors x and y.

    Only similarities within an image are held, so the student is free to rotate its features, and the two widths may
    differ. Keeps dense features from decaying in long runs (DINOv3, arXiv 2508.10104, section 4.2). Always fp32.

    Args:
        patches: (B, P, D) patch tokens of the student after the final norm.
        anchors: (B, P, E) patch tokens to hold to, on the same grid; no gradient flows into them.

    Returns:
        A scalar.
    """
    with torch.autocast(patches.device.type, enabled=False):
        x, y = (F.normalize(tokens.to(wide(tokens.dtype)), dim=-1) for tokens in (patches, anchors.detach()))
        return (x @ x.mT - y @ y.mT).square().mean()
