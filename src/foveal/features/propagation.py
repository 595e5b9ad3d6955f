"""Labels carried from frames to the next one by the similarity of their patches.

Shapes: F context frames, C masks, D width; grid_h x grid_w patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError


def propagate(
    target: Tensor,
    contexts: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    radius: int = 12,
    top_k: int = 5,
    temperature: float = 0.1,
) -> Tensor:
    """Return the masks of a frame as weighted means of those of the frames before it.

    A patch looks at the patches of all contexts at most `radius` rows and columns away. Of the `top_k` with the largest
    cosine, the masks are averaged with weights exp(cosine / temperature), normalised to sum to 1. Memory beyond inputs
    and outputs is that of one row of patches against its window: F (2 radius + 1) grid_w^2 numbers.

    Args:
        target: (grid_h, grid_w, D) float.
        contexts: F of (grid_h, grid_w, D) float.
        masks: F of (C, grid_h, grid_w) float, those of the contexts.
        radius: patches.
        top_k: patches that are averaged; fewer where the window holds fewer.
        temperature: above 0.

    Returns:
        (C, grid_h, grid_w) float32.

    Raises:
        FovealError: shapes that do not fit, or a setting out of range.

    Source: arXiv 2104.14294, section 4.2.2, as its public evaluation computes it (after arXiv 2006.14613).
    """
    grid_h, grid_w, _ = target.shape
    if not contexts or any(frame.shape != target.shape for frame in contexts) or len(masks) != len(contexts):
        raise FovealError(
            f"{len(contexts)} context frames and {len(masks)} masks for a frame of {grid_h} x {grid_w} patches; "
            "give at least one, of the same size, and the masks of each"
        )
    if radius < 0 or top_k < 1 or temperature <= 0:
        raise FovealError(
            f"radius={radius}, top_k={top_k}, temperature={temperature}; they must be at least 0, at least 1, above 0"
        )
    queries = F.normalize(target.float(), dim=-1)
    keys = F.normalize(torch.stack(list(contexts)).float(), dim=-1)
    values = torch.stack(list(masks)).float()
    columns = torch.arange(grid_w, device=target.device)
    far = (columns[:, None] - columns[None, :]).abs() > radius
    rows = []
    for row in range(grid_h):
        window = slice(max(0, row - radius), row + radius + 1)
        seen = keys[:, window].flatten(0, 1)  # (F rows, grid_w, D)
        cosines = torch.einsum("qd,rkd->qrk", queries[row], seen).masked_fill(far[:, None], -torch.inf).flatten(1)
        nearest, places = cosines.topk(min(top_k, cosines.shape[1]), dim=1)
        weights = (nearest / temperature).softmax(dim=1)
        labels = values[:, :, window].transpose(0, 1).flatten(1)  # (C, F rows grid_w)
        rows.append((labels[:, places] * weights).sum(dim=2))
    return torch.stack(rows, dim=1)
