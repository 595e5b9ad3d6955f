"""Cross-entropy between teacher targets and a student's prototypes, without ever holding all logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits of one chunk: 32 MB of fp32, so that the passes over them stay near the processor.
CHUNK_ELEMENTS = 8 * 1024 * 1024


def prototype_cross_entropy(
    features: Tensor,
    prototypes: Tensor,
    *,
    targets: Tensor,
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
        targets: (M, K) fp32, no gradient; rows need not sum to 1 (the sum of two targets stands for two terms).
        weights: (N,) fp32 weight of each row.
        temperature: of the student, 0.1 in every published recipe.
        target_rows: (N,) int64, the row of `targets` for each feature; None when M = N in the same order.

    Returns:
        A scalar, fp32. Under bf16 autocast the products run in bf16, everything else in fp32.
    """
    precision = (
        torch.get_autocast_dtype(features.device.type)
        if torch.is_autocast_enabled(features.device.type)
        else torch.float32
    )
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
        targets: Tensor,
        weights: Tensor,
        temperature: float,
        target_rows: Tensor | None,
        precision: torch.dtype,
    ) -> Tensor:
        scaled = (features / temperature).to(precision)
        table = prototypes.to(precision)
        loss = torch.zeros((), dtype=torch.float32, device=features.device)
        grad_features = torch.empty_like(features, dtype=torch.float32)
        grad_prototypes = torch.zeros_like(prototypes, dtype=torch.float32)
        chunk = max(1, CHUNK_ELEMENTS // len(prototypes))
        for start in range(0, len(features), chunk):
            part = slice(start, start + chunk)
            target = targets[part] if target_rows is None else targets.index_select(0, target_rows[part])
            weight = weights[part, None]
            logits = (scaled[part] @ table.T).float()
            mass = target.sum(1, keepdim=True)
            attracted = torch.linalg.vecdot(target, logits)[:, None]
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            loss += ((mass * log_sum - attracted) * weight).sum()
            grad = logits.sub_(log_sum).exp_().mul_(mass * weight).addcmul_(target, weight, value=-1).to(precision)
            grad_features[part] = (grad @ table).float() / temperature
            grad_prototypes += (grad.T @ scaled[part]).float()
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
