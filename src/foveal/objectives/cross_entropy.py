"""Cross-entropy between teacher targets and a student's prototypes, without ever holding all logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foveal.objectives.logits import Targets, product_dtype, row_chunks, wide


def prototype_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    *,
    targets: Tensor | Targets,
    weights: Tensor,
    temperature: float,
    target_rows: Tensor | None = None,
) -> Tensor:
    """Return sum_n w_n sum_k -t_nk log softmax_k(f_n . p_k / temperature), and its gradient, chunk by chunk.

    For logits z and m_n = sum_k t_nk, a row's loss is m_n logsumexp(z_n) - t_n . z_n and its gradient with respect to
    z_n is m_n softmax(z_n) - t_n. Both are formed while a chunk of logits exists; the forward pass keeps the two
    finished gradients, and the backward pass only scales them.

    Args:
        features: (N, d) student bottleneck vectors.
        prototypes: (K, d).
        targets: (M, K) fp32, no gradient; rows need not sum to 1 (the sum of two targets stands for two terms). Or a
            function that forms them for the rows of a chunk, without `target_rows`.
        weights: (N,) fp32 weight of each row.
        temperature: of the student, 0.1 in every published recipe.
        target_rows: (N,) int64, the row of `targets` for each feature; None when M = N in the same order.

    Returns:
        A scalar, fp32. Under bf16 autocast the products run in bf16, everything else in fp32.
    """
    precision = product_dtype(features)
    with torch.autocast(features.device.type, enabled=False):  # else it would take the dot products to bf16 too
        loss: Tensor = _PrototypeCrossEntropy.apply(
            features, prototypes, targets, weights, temperature, target_rows, precision
        )
    return loss


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        prototypes: Tensor,
        targets: Tensor | Targets,
        weights: Tensor,
        temperature: float,
        target_rows: Tensor | None,
        precision: torch.dtype,
    ) -> Tensor:
        scaled = (features / temperature).to(precision)
        table = prototypes.to(precision)
        sums = wide(features.dtype)
        loss = torch.zeros((), dtype=sums, device=features.device)
        grad_features = torch.empty_like(features, dtype=sums)
        grad_prototypes = torch.zeros_like(prototypes, dtype=sums)
        for part in row_chunks(len(features), len(prototypes)):
            target = _target(targets, target_rows, part)
            weight = weights[part, None]
            logits = (scaled[part] @ table.T).to(sums)
            mass = target.sum(1, keepdim=True)
            attracted = torch.linalg.vecdot(target, logits)[:, None]
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += ((mass * log_sum - attracted) * weight).sum()
            grad = logits.sub_(log_sum).exp_().mul_(mass * weight).addcmul_(target, weight, value=-1).to(precision)
            grad_features[part] = (grad @ table).to(sums) / temperature
            grad_prototypes += (grad.T @ scaled[part]).to(sums)
        ctx.save_for_backward(grad_features, grad_prototypes)
        ctx.dtypes = features.dtype, prototypes.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_prototypes = ctx.saved_tensors
        factor = grad_outputs[0]
        of_features, of_prototypes = ctx.dtypes
        return (
            (grad_features * factor).to(of_features),
            (grad_prototypes * factor).to(of_prototypes),
            *(None,) * 5,
        )


def _target(targets: Tensor | Targets, target_rows: Tensor | None, part: slice) -> Tensor:
    if not isinstance(targets, Tensor):
        return targets(part)
    return targets[part] if target_rows is None else targets.index_select(0, target_rows[part])
