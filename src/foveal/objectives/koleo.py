"""KoLeo: the regulariser that spreads image features out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.objectives.logits import wide
from foveal.objectives.ranks import ALONE, Ranks


def koleo_loss(features: Tensor, *, group_size: int | None = None, ranks: Ranks = ALONE, eps: float = 1e-8) -> Tensor:
    """Return -mean_i log(|x_i - x_nn(i) + eps| + eps) of unit vectors x and their nearest neighbours.

    The Kozachenko-Leonenko estimate of the entropy of the batch (arXiv 1806.03198, equation 1). Neighbours are chosen
    within groups of images that follow each other in the batch. Always fp32 or wider: in fp16 eps would vanish and
    duplicates would give infinity, as upstream.

    Args:
        features: (B, D) class tokens of one view of this process's part of the batch, any float type; not normalised.
        group_size: images of a group, of which the batch is a multiple; None is the whole batch.
        ranks: processes over which the batch is spread, B images each. The value is that of the whole batch in each of
            them, and so is the gradient: that of this process's features, as images and as others' neighbours.
        eps: keeps duplicates finite.

    Returns:
        A scalar. A group of one image has no neighbour and gives 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(wide(features.dtype))
        x = F.normalize(features, dim=-1, eps=eps)
        if ranks.processes is not None:
            first, everyones = ranks.rank * len(x), ranks.gather(x.detach())
            x = torch.cat([everyones[:first], x, everyones[first + len(x) :]])
        size = group_size or len(x)
        if size < 2:
            return features.sum() * 0
        with torch.no_grad():
            groups = x.unflatten(0, (-1, size))
            likeness = groups @ groups.mT
            likeness.diagonal(dim1=1, dim2=2).fill_(-1)
            start = torch.arange(len(groups), device=x.device)[:, None] * size
            neighbours = (likeness.argmax(dim=2) + start).flatten()
        distances = F.pairwise_distance(x, x.index_select(0, neighbours), eps=eps)
        return -torch.log(distances + eps).mean()
