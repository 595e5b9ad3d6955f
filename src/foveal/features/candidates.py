"""The best few of many rough scores, taken in block by block.

Shapes: q queries, b rows of a block, C candidates kept of each query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = 8  # scores under one test: so many bools are one int64


class Candidates:
    """The C best scores so far of each of some queries, and the numbers of their rows, in no order.

    What exceeds the lowest score kept is gathered, and merged once some query has gathered C: so merges become rare as
    the floor rises. Scores that are equal to the floor may be kept or dropped.

    Args:
        num_queries: q.
        num_kept: C.
        device: where the scores are.
    """

    def __init__(self, num_queries: int, num_kept: int, device: torch.device) -> None:
        self.scores = torch.full((num_queries, num_kept), -torch.inf, device=device)
        self.numbers = torch.full((num_queries, num_kept), -1, device=device)
        self.floor = self.scores.amin(dim=1)
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []  # (query, score, number), each (n,)
        self._counts = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self._is_full = False

    def take(self, scores: Tensor, first: int) -> None:
        """Take in the scores (q, b), float32, of the rows from number `first` on."""
        if not self._is_full:
            self._fill(scores, first)
            return
        words = F.pad(scores, (0, -scores.shape[1] % _WORD), value=-torch.inf).unflatten(1, (-1, _WORD))
        above = (words > self.floor[:, None, None]).view(torch.int64).squeeze(2)
        query, word = above.nonzero(as_tuple=True)  # most of the work ends here: few words hold anything
        if not len(query):
            return
        found = words[query, word]
        place, lane = (found > self.floor[query, None]).nonzero(as_tuple=True)
        query = query[place]
        self._gathered.append((query, found[place, lane], first + word[place] * _WORD + lane))
        self._counts += torch.bincount(query, minlength=len(self._counts))
        if int(self._counts.max()) >= self.scores.shape[1]:
            self.merge()

    def merge(self) -> None:
        """Merge what has been gathered; to be called after the last block."""
        if not self._gathered:
            return
        query, scores, numbers = (torch.cat(parts) for parts in zip(*self._gathered, strict=True))
        self._gathered = []
        order = query.argsort(stable=True)
        touched, counts = torch.unique_consecutive(query[order], return_counts=True)
        place = torch.arange(len(touched), device=query.device).repeat_interleave(counts)
        column = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[place]
        new_scores = scores.new_full((len(touched), int(counts.max())), -torch.inf)
        new_numbers = torch.full_like(new_scores, -1, dtype=torch.int64)
        new_scores[place, column] = scores[order]
        new_numbers[place, column] = numbers[order]
        self._keep(touched, new_scores, new_numbers)
        self._counts.zero_()

    def _fill(self, scores: Tensor, first: int) -> None:
        numbers = torch.arange(first, first + scores.shape[1], device=scores.device).expand(len(scores), -1)
        everyone = torch.arange(len(scores), device=scores.device)
        self._keep(everyone, scores, numbers)
        self._is_full = bool((self.floor > -torch.inf).all())

    def _keep(self, queries: Tensor, scores: Tensor, numbers: Tensor) -> None:
        scores = torch.cat([self.scores[queries], scores], dim=1)
        numbers = torch.cat([self.numbers[queries], numbers], dim=1)
        best = scores.topk(self.scores.shape[1], dim=1, sorted=False)
        self.scores[queries] = best.values
        self.numbers[queries] = numbers.gather(1, best.indices)
        self.floor[queries] = best.values.amin(dim=1)
