"""Teacher targets: Sinkhorn-Knopp, or softmax with an EMA centre. All in fp32."""

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, *, temperature: float, num_iterations: int = 3, group: Group = None) -> Tensor:
    """Turn teacher logits into targets that use every prototype equally often (arXiv 2006.09882, section 3.2).

    Q = exp(logits / temperature), then `num_iterations` times: every prototype's total is set to 1/K and every sample's
    to 1/B; at last every sample sums to 1. Only the two scaling vectors change, so Q is formed once and the iterations
    are matrix-vector products. The largest logit is subtracted first, which cancels and keeps exp finite.

    Args:
        logits: (B, K) of this process; overwritten when it is float32, and then returned as the targets.
        temperature: of the teacher.
        num_iterations: 3 in every published recipe.
        group: processes that share one B; None for this process alone.

    Returns:
        (B, K) float32 targets; each row sums to 1. B = 0 returns an empty tensor.
    """
    logits = logits.float()
    num_prototypes = logits.shape[1]
    largest = logits.max() if len(logits) else logits.new_full((), -torch.inf)
    num_samples = _sum_over(torch.tensor(float(len(logits)), device=logits.device), group)
    if group is not None:
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    q = logits.sub_(largest).div_(temperature).exp_()
    smallest = torch.finfo(torch.float32).tiny
    of_sample = 1 / _sum_over(q.sum(), group).expand(len(q))
    for _ in range(num_iterations):
        of_prototype = 1 / (_sum_over(of_sample @ q, group) * num_prototypes).clamp_min(smallest)
        of_sample = 1 / ((q @ of_prototype) * num_samples).clamp_min(smallest)
    return q.mul_(of_prototype).mul_((of_sample * num_samples)[:, None])


@torch.no_grad()
def softmax_center(logits: Tensor, *, center: Tensor, temperature: float) -> Tensor:
    """Return softmax((logits - center) / temperature) (arXiv 2104.14294, section 3.1); logits (B, K), center (K,).

    `logits` is overwritten when it is float32, and then returned as the targets.
    """
    logits = logits.float().sub_(center).div_(temperature)
    return torch.softmax(logits, dim=-1, out=logits)


@torch.no_grad()
def updated_center(center: Tensor, logits: Tensor, *, momentum: float = 0.9, group: Group = None) -> Tensor:
    """Return momentum * center + (1 - momentum) * mean of the logits (B, K) over every process of the group.

    A batch without samples leaves the centre as it is.
    """
    count = _sum_over(torch.tensor(float(len(logits)), device=logits.device), group)
    total = _sum_over(logits.float().sum(0), group)
    return torch.where(count > 0, center * momentum + total / count.clamp_min(1) * (1 - momentum), center)


def _sum_over(value: Tensor, group: Group) -> Tensor:
    if group is not None:
        dist.all_reduce(value, group=group)
    return value
