"""Teacher targets: Sinkhorn-Knopp, or softmax with an EMA centre. All in fp32, over a batch that comes in parts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveal.objectives.logits import Logits, Targets, wide
from foveal.objectives.ranks import ALONE, Ranks

# Below this share a prototype is taken as unused; keeps every reciprocal and its sums inside float32.
_SMALLEST = 1e-30
# Up to so many logits a process keeps Q (half a GB of float32); of more it forms Q anew in every iteration.
KEPT_ELEMENTS = 128 * 1024 * 1024


@torch.no_grad()
def sinkhorn_knopp(
    parts: Sequence[Logits], *, temperature: float, num_iterations: int = 3, ranks: Ranks = ALONE
) -> list[Targets]:
    """Turn teacher logits into targets that use every prototype equally often (arXiv 2006.09882, section 3.2).

    Q = exp(logits / temperature), then `num_iterations` times: every prototype's total is set to B/K and every sample's
    to 1 (upstream 1/K and 1/B, and B times that at last). Only two scaling vectors change, so an iteration is two
    matrix-vector products with Q, and one pass over its chunks does the second of one iteration and the first of the
    next. Every sample's largest logit is taken out of Q and put into its starting scale, which changes nothing and
    leaves no sample with zeros alone. Always fp32 or wider.

    Args:
        parts: the logits of each micro-batch of this process, B rows in all of them and all processes.
        temperature: of the teacher.
        num_iterations: 3 in every published recipe; at least 1.
        ranks: processes whose samples are balanced together.

    Returns:
        The targets of each part, (rows, K) for each chunk of its rows; each row sums to 1.
    """
    kept = sum(len(part) * len(part.prototypes) for part in parts) <= KEPT_ELEMENTS
    scaled = [_Scaled(part, temperature, kept=kept) for part in parts]
    features, num_prototypes = parts[0].features, len(parts[0].prototypes)
    with torch.autocast(features.device.type, enabled=False):  # else it would take the products to bf16
        num_samples = ranks.sum(torch.tensor([[float(len(part))] for part in parts], device=features.device))
        totals, highest = (torch.stack(column) for column in zip(*(part.start() for part in scaled), strict=True))
        totals.mul_(((highest - ranks.maximum(highest)) / temperature).exp_()[:, None])
        of_prototype = num_samples / num_prototypes / ranks.sum(totals).clamp_min(_SMALLEST)
        for _ in range(num_iterations - 1):
            totals = torch.stack([part.totals(of_prototype) for part in scaled])
            of_prototype = num_samples / num_prototypes / ranks.sum(totals).clamp_min(_SMALLEST)
    return [part.targets(of_prototype) for part in scaled]


class _Scaled:
    """Q of one micro-batch: exp((logits - the sample's largest) / temperature), kept, or formed anew each time."""

    def __init__(self, logits: Logits, temperature: float, *, kept: bool) -> None:
        self.logits, self.temperature, self.kept = logits, temperature, kept
        self._q: dict[tuple[int, int], Tensor] = {}

    def start(self) -> tuple[Tensor, Tensor]:
        """Return every prototype's total (K,) with the starting scales, up to exp(highest / temperature); highest."""
        features = self.logits.features
        totals = features.new_zeros(len(self.logits.prototypes), dtype=wide(features.dtype))
        highest = totals.new_full((), -torch.inf)
        for rows in self.logits.chunks():
            q, peak = self._form(rows)
            higher = torch.maximum(highest, peak.max())
            totals = totals * ((highest - higher) / self.temperature).exp_()
            totals += ((peak - higher) / self.temperature).exp_() @ q
            highest = higher
        return totals, highest

    def totals(self, of_prototype: Tensor) -> Tensor:
        """Return every prototype's total (K,), up to its scale, once every sample's is 1."""
        totals = torch.zeros_like(of_prototype)
        for rows in self.logits.chunks():
            q = self._q[rows.start, rows.stop] if self.kept else self._form(rows)[0]
            totals += (1 / (q @ of_prototype)) @ q
        return totals

    def targets(self, of_prototype: Tensor) -> Targets:
        """Return the finished targets: Q with both scales. Where Q is kept, they hold on to nothing else."""
        kept = self._q
        q_of = (lambda rows: kept[rows.start, rows.stop]) if self.kept else (lambda rows: self._form(rows)[0])

        @torch.no_grad()
        def found(rows: slice) -> Tensor:
            with torch.autocast(of_prototype.device.type, enabled=False):
                q = q_of(rows)
                of_sample = 1 / (q @ of_prototype)
                return (q * of_prototype).mul_(of_sample[:, None])

        return found

    def _form(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return Q of some rows and their largest logits."""
        q = self.logits(rows)
        peak = q.amax(dim=1)
        q.sub_(peak[:, None]).div_(self.temperature).exp_()
        if self.kept:
            self._q[rows.start, rows.stop] = q
        return q, peak


def softmax_center(parts: Sequence[Logits], *, center: Tensor, temperature: float) -> list[Targets]:
    """Return softmax((logits - center) / temperature) of each part (arXiv 2104.14294, section 3.1); center (K,)."""

    def targets(part: Logits) -> Targets:
        @torch.no_grad()
        def found(rows: slice) -> Tensor:
            logits = part(rows).sub_(center).div_(temperature)
            return torch.softmax(logits, dim=-1, out=logits)

        return found

    return [targets(part) for part in parts]


@torch.no_grad()
def updated_center(
    center: Tensor, totals: Tensor, counts: Sequence[int], *, momentum: float = 0.9, ranks: Ranks = ALONE
) -> Tensor:
    """Return momentum * center + (1 - momentum) * mean of the teacher's logits over all micro-batches and processes.

    Args:
        center: (K,) float32.
        totals: (n, K) float32, the sums of the logits of this process's micro-batches.
        counts: of how many logits each is the sum. Where all counts are 0 the centre stays as it is.
        momentum: 0.9 in the published recipe.
        ranks: processes that share one centre.
    """
    count = ranks.sum(torch.tensor([[float(count)] for count in counts], device=totals.device))
    mean = ranks.sum(totals) / count.clamp_min(1)
    return torch.where(count > 0, center * momentum + mean * (1 - momentum), center)
