"""How far the features of a set are spread out: what falls first when a network collapses.

Shapes: N images, D width. Everything is computed in float64 on the CPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.errors import FovealError


def rank_me(features: Tensor) -> float:
    """Return the effective rank of features: exp of the entropy of their singular values.

    RankMe = exp(-sum_k p_k log p_k) with p_k = sigma_k / sum_j sigma_j, sigma the singular values of the matrix as it
    is, not centred. It runs from 1 (every row a multiple of one vector) to min(N, D), and on one and the same set of
    images it follows the accuracy of a linear classifier without any label. It grows with N: compare equal N only.

    Args:
        features: (N, D) float.

    Raises:
        FovealError: no rows, all zero, or features that are not finite.

    Source: arXiv 2210.02885, equations 1 and 2; its 1e-7 inside the logarithm is left out, 0 log 0 being 0.

    Example:
        >>> round(rank_me(torch.eye(5)), 6)
        5.0
    """
    _check(features, least=1)
    values = torch.linalg.svdvals(features.detach().double().cpu())
    total = values.sum()
    if total == 0:
        raise FovealError("features are all zero: they have no rank; the model that made them is not trained")
    return float(torch.special.entr(values / total).sum().exp())


def neighbour_distance(features: Tensor) -> float:
    """Return the mean distance of each unit-length feature to its nearest other one, from 0 to 2.

    mean_i |x_i - x_nn(i)|, the quantity whose logarithm KoLeo raises (arXiv 1806.03198, section 3). 0 says that every
    image has a twin; it falls with N.

    Args:
        features: (N, D) float, N at least 2, of any length; a row of zeros is at distance 1 of all others.

    Raises:
        FovealError: fewer than two rows, or features that are not finite.

    Example:
        >>> round(neighbour_distance(torch.eye(3)), 6)  # each at sqrt(2) of the others
        1.414214
    """
    _check(features, least=2)
    unit = F.normalize(features.detach().double().cpu(), dim=1, eps=1e-300)
    # |a - b|, not sqrt(2 - 2 a.b): near a common point that would lose all digits.
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.fill_diagonal_(torch.inf).amin(dim=1).mean())


def _check(features: Tensor, *, least: int) -> None:
    if features.ndim != 2 or len(features) < least:
        raise FovealError(f"features of shape {tuple(features.shape)}; give (images, width) of {least} images or more")
    if not features.isfinite().all():
        raise FovealError("features hold NaN or infinity; the model that made them has diverged")
