"""The patch-level term: masked patches of the student against the teacher's view of the same patches."""

import torch
from torch import Tensor

from foveal.objectives.cross_entropy import prototype_cross_entropy
from foveal.objectives.logits import Targets, wide


def ibot_loss(
    features: Tensor, prototypes: Tensor, *, targets: Tensor | Targets, masks: Tensor, student_temperature: float = 0.1
) -> Tensor:
    """Return the iBOT term as the reference weighs it (arXiv 2304.07193, section 4; arXiv 2111.07832, section 3).

    The cross-entropy of a masked patch is divided by the number of masked patches of its image, and the sum by the
    number of all global crops in the batch. Crops without a mask count in that number too, as upstream: with mask
    probability 0.5 the effective weight of the term is one half.

    Args:
        features: (M, d) student bottleneck of the masked patches, in the order of `masks.nonzero()`.
        prototypes: (K, d) of the student.
        targets: (M, K) fp32 teacher targets of the same patches, or a function that forms them for some rows.
        masks: (crops, P) bool with M True entries.
        student_temperature: 0.1 in every published recipe.

    Returns:
        A scalar; 0 when nothing is masked.
    """
    per_crop = masks.sum(1)
    weights = torch.repeat_interleave(1 / per_crop.clamp_min(1).to(wide(features.dtype)), per_crop) / len(masks)
    return prototype_cross_entropy(
        features, prototypes, targets=targets, weights=weights, temperature=student_temperature
    )
