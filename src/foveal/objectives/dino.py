"""The image-level term: local and global crops against the teacher's view of the other global crop."""

import torch
from torch import Tensor

from foveal.objectives.cross_entropy import prototype_cross_entropy


def dino_loss(
    global_features: Tensor,
    local_features: Tensor,
    prototypes: Tensor,
    *,
    targets: Tensor,
    num_locals: int,
    student_temperature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Return the DINO terms (local, global) as the reference weighs them.

    With 2 global and V local crops there are 2 + 2 V pairs of a student crop and a teacher view of the other crop.
    Each pair's cross-entropy is averaged over the images; local is the sum over the 2 V local pairs, global the sum
    over the 2 cross pairs, both divided by 2 + 2 V. A local crop meets both views, so its target is their sum.

    Args:
        global_features: (2 B, d) student bottleneck of the global crops: first crops of all images, then second.
        local_features: (V B, d), crop after crop.
        prototypes: (K, d) of the student.
        targets: (2 B, K) fp32 teacher targets of the global crops, in the order of `global_features`.
        num_locals: V; may be 0.
        student_temperature: 0.1 in every published recipe.

    Returns:
        Two scalars; their sum is the DINO loss. Source: arXiv 2304.07193, section 4.
    """
    num_images = len(targets) // 2
    first, second = targets.split(num_images)
    num_terms = 2 + 2 * num_locals
    weight = 1 / (num_images * num_terms)
    swapped = torch.arange(2 * num_images, device=targets.device).roll(num_images)
    loss_global = prototype_cross_entropy(
        global_features,
        prototypes,
        targets=targets,
        target_rows=swapped,
        weights=targets.new_full((2 * num_images,), weight),
        temperature=student_temperature,
    )
    if not num_locals:
        return loss_global.new_zeros(()), loss_global
    loss_local = prototype_cross_entropy(
        local_features,
        prototypes,
        targets=first + second,
        target_rows=torch.arange(num_images, device=targets.device).repeat(num_locals),
        weights=targets.new_full((num_locals * num_images,), weight),
        temperature=student_temperature,
    )
    return loss_local, loss_global
