"""KoLeo: the regulariser that spreads image features out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo_loss(features: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Return -mean_i log(|x_i - x_nn(i) + eps| + eps) of unit vectors x and their nearest neighbours.

    The Kozachenko-Leonenko estimate of the entropy of the batch (arXiv 1806.03198, equation 1). The neighbours are
    chosen within the given batch, which is the group of this term. Always fp32: in fp16 eps would vanish and duplicates
    would give infinity, as upstream.

    Args:
        features: (B, D) class tokens of one view of a batch, any float type; not normalised.
        eps: keeps duplicates finite.

    Returns:
        A scalar, fp32. A batch of one image has no neighbour and gives 0.
    """
    with torch.autocast(features.device.type, enabled=False):
        if len(features) < 2:
            return features.float().sum() * 0
        x = F.normalize(features.float(), dim=-1, eps=eps)
        with torch.no_grad():
            neighbours = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)
        distances = F.pairwise_distance(x, x.index_select(0, neighbours), eps=eps)
        return -torch.log(distances + eps).mean()
