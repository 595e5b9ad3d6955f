"""Teacher targets: Sinkhorn-Knopp, or softmax with an EMA centre. All in fp32."""

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


# Below this share a prototype is taken as unused; keeps every reciprocal and its sums inside float32.
_SMALLEST = 1e-30


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, *, temperature: float, num_iterations: int = 3, group: Group = None) -> Tensor:
    """Turn teacher logits into targets that use every prototype equally often (arXiv 2006.09882, section 3.2).

    Q = exp(logits / temperature), then `num_iterations` times: every prototype's total is set to B/K and every sample's
    to 1 (upstream 1/K and 1/B, and B times that at last). Only two scaling vectors change, so Q is formed once and the
    iterations are matrix-vector products. Every sample's largest logit is taken out of Q and put into its starting
    scale, which changes nothing and leaves no sample with zeros alone. Always fp32.

    Args:
        logits: (B, K) of this process; overwritten when it is float32, and then returned as the targets.
        temperature: of the teacher.
        num_iterations: 3 in every published recipe; at least 1.
        group: processes whose samples are balanced together; None for this process alone.

    Returns:
        (B, K) float32 targets; each row sums to 1. B = 0 returns an empty tensor.
    """
    with torch.autocast(logits.device.type, enabled=False):  # else it would take the products to bf16
        q = logits.float()
        peak = q.amax(dim=1) if len(q) else q.new_zeros(0)
        highest = peak.max() if len(q) else q.new_full((), -torch.inf)
        if group is not None:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        num_samples = _sum_over(torch.tensor(float(len(q)), device=q.device), group)
        of_sample = ((peak - highest) / temperature).exp_()
        q = q.sub_(peak[:, None]).div_(temperature).exp_()
        for _ in range(num_iterations):
            of_prototype = num_samples / q.shape[1] / _sum_over(of_sample @ q, group).clamp_min(_SMALLEST)
            of_sample = 1 / (q @ of_prototype)
        return q.mul_(of_prototype).mul_(of_sample[:, None])


@torch.no_grad()
def softmax_center(logits: Tensor, *, center: Tensor, temperature: float) -> Tensor:
    """Return softmax((logits - center) / temperature) (arXiv 2104.14294, section 3.1); logits (B, K), center (K,).

    `logits` is overwritten when it is float32, and then returned as the targets.
    """
    logits = logits.float().sub_(center).div_(temperature)
    return torch.softmax(logits, dim=-1, out=logits)


@torch.no_grad()
def updated_center(center: Tensor, total: Tensor, count: int, *, momentum: float = 0.9, group: Group = None) -> Tensor:
    """Return momentum * center + (1 - momentum) * mean of the teacher's logits over every process of the group.

    Args:
        center: (K,) float32.
        total: (K,) float32, the sum of this process's logits; overwritten.
        count: how many logits it is the sum of. Where all counts are 0 the centre stays as it is.
        momentum: 0.9 in the published recipe.
        group: processes that share one centre; None for this process alone.
    """
    count_of_all = _sum_over(torch.tensor(float(count), device=total.device), group)
    mean = _sum_over(total, group) / count_of_all.clamp_min(1)
    return torch.where(count_of_all > 0, center * momentum + mean * (1 - momentum), center)


def _sum_over(value: Tensor, group: Group) -> Tensor:
    if group is not None:
        dist.all_reduce(value, group=group)
    return value
