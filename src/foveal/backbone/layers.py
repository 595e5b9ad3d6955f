"""The parts of a Vision Transformer block, over packed tokens.

Packed tokens: the tokens of several batches of different sizes as one matrix (T, D). Group g holds B_g images of N_g
tokens, image after image; groups follow each other. Linear layers and norms run once over all rows; attention runs once
a group. Source of the block: arXiv 2304.07193, section 4 and appendix; LayerScale: arXiv 2103.17239.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_SCORES_AT_ONCE = 3_000_000  # of attention in one part of a backward pass: 6 MB in bf16


class Group(NamedTuple):
    """One batch inside packed tokens: `num_images` images of `num_tokens` tokens each."""

    num_images: int
    num_tokens: int

    @property
    def rows(self) -> int:
        """Rows this group takes in the packed matrix."""
        return self.num_images * self.num_tokens


def image_of_row(groups: Sequence[Group]) -> Tensor:
    """Return (T,) int64: the number of the image, counted over all groups, that each packed row belongs to."""
    num_tokens = torch.tensor([g.num_tokens for g in groups for _ in range(g.num_images)])
    return torch.repeat_interleave(torch.arange(len(num_tokens)), num_tokens)


class Attention(nn.Module):
    """Multi-head self-attention inside each image; q, k and v are the three row blocks of `qkv`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, groups: Sequence[Group]) -> Tensor:
        """Map packed tokens (T, D) to (T, D)."""
        qkv = self.qkv(x)
        mixed = [
            self._mix(part, group) for part, group in zip(qkv.split([g.rows for g in groups]), groups, strict=True)
        ]
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def weights(self, x: Tensor, group: Group, *, queries: Sequence[int] | None = None) -> Tensor:
        """Return softmax(q k^T / sqrt(head_dim)), at least in float32.

        Args:
            x: (B N, D) tokens of one group.
            group: its shape.
            queries: positions in 0..N - 1 of the tokens that look; None is all of them.

        Returns:
            (B, heads, Q, N); each row sums to 1.
        """
        tokens = x.view(*group, -1)
        looking = tokens if queries is None else tokens[:, list(queries)]
        wide = torch.promote_types(x.dtype, torch.float32)
        (weight_q, weight_k, _), (bias_q, bias_k, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k = (
            F.linear(part.to(wide), weight.to(wide), bias.to(wide)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part, weight, bias in ((looking, weight_q, bias_q), (tokens, weight_k, bias_k))
        )
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)

    def _mix(self, qkv: Tensor, group: Group) -> Tensor:
        if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and torch.is_grad_enabled():
            return _MixByProducts.apply(qkv, group.num_tokens, self.num_heads)
        return _mixed(qkv, group.num_tokens, self.num_heads)


def _mixed(qkv: Tensor, num_tokens: int, num_heads: int) -> Tensor:
    q, k, v = _heads(qkv, num_tokens, num_heads)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(qkv), -1)


def _heads(qkv: Tensor, num_tokens: int, num_heads: int) -> Tensor:
    """Return (3, B, heads, N, head_dim) of packed (B N, 3 D)."""
    return qkv.view(len(qkv) // num_tokens, num_tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)


class _MixByProducts(torch.autograd.Function):
    """The same attention with a backward pass of plain matrix products, some images at a time.

    PyTorch's own backward pass on a CPU runs in bf16 at a hundredth to a tenth of the rate of matrix products
    (benchmarks/RESULTS.md). Nothing but q, k and v is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_tokens: int, num_heads: int) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.shape = num_tokens, num_heads
        return _mixed(qkv, num_tokens, num_heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (qkv,) = ctx.saved_tensors
        num_tokens, num_heads = ctx.shape
        rows = max(1, _SCORES_AT_ONCE // (num_heads * num_tokens**2)) * num_tokens
        found: list[Tensor] = []
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            for part, of_part in zip(qkv.split(rows), gradient.split(rows), strict=True):
                leaf = part.detach().requires_grad_()
                q, k, v = _heads(leaf, num_tokens, num_heads)
                mixed = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
                found += torch.autograd.grad(mixed.transpose(1, 2).reshape(len(leaf), -1), leaf, of_part)
        return torch.cat(found), None, None


class MLP(nn.Module):
    """Linear, GELU (erf), Linear. Training keeps what enters the GELU and computes it again in the backward pass."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, D) to (T, D)."""
        hidden = self.fc1(x)
        if torch.is_grad_enabled() and hidden.requires_grad:
            return checkpoint(self._second, hidden, use_reentrant=False, preserve_rng_state=False)
        return self._second(hidden)

    def _second(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(hidden))


class SwiGLU(nn.Module):
    """w3(silu(gate) * value), where the two halves of w12's output are gate and value (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (T, D) to (T, D)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor per channel in front of a residual branch."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))


class Drop(NamedTuple):
    """Which images keep a residual branch: rows (R,) int64 of theirs, factor (R, 1) of the branch, and their groups."""

    rows: Tensor
    factor: Tensor
    groups: list[Group]


class StochasticDepth:
    """Draws, per residual branch and group, which images keep the branch (arXiv 1603.09382, the efficient form).

    Exactly max(int(B (1 - rate)), 1) of B images keep it, only they are computed, and their branch counts B / kept, so
    that its expectation is unchanged. Every draw comes from `generator`, so a step's draws are a function of its seed;
    draws for the groups of `absent` are made after those of the given ones, and dropped.
    """

    def __init__(
        self, rate: float, generator: torch.Generator, groups: Sequence[Group], *, absent: Sequence[Group] = ()
    ) -> None:
        self.rate = rate
        self.generator = generator
        self.groups = groups
        self.absent = absent
        self._image_of_row = image_of_row(groups)

    def draw(self, device: torch.device, *, rows: Tensor | None = None) -> Drop:
        """Draw for one branch that runs on the given rows of the packed tokens; None is all of them.

        The kept rows are found on the CPU and then brought to the device, so that a GPU is not waited for.
        """
        factors, kept_groups = [], []
        for group in self.groups:
            kept = max(int(group.num_images * (1 - self.rate)), 1)
            factor = torch.zeros(group.num_images)
            chosen = torch.randperm(group.num_images, generator=self.generator)[:kept]
            factor[chosen] = group.num_images / kept
            factors.append(factor)
            kept_groups.append(Group(kept, group.num_tokens))
        for group in self.absent:
            torch.randperm(group.num_images, generator=self.generator)
        images = self._image_of_row if rows is None else self._image_of_row[rows.cpu()]
        factor = torch.cat(factors)[images]
        kept_rows = factor.nonzero().squeeze(1)
        return Drop(kept_rows.to(device), factor[kept_rows, None].to(device), kept_groups)


class Block(nn.Module):
    """A pre-norm block: x + gamma1 * attention(norm1(x)), then x + gamma2 * ffn(norm2(x))."""

    def __init__(self, width: int, num_heads: int, *, ffn: str, ffn_hidden: int, layerscale_init: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.ls1 = LayerScale(width, layerscale_init)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width, ffn_hidden) if ffn == "swiglu" else MLP(width, ffn_hidden)
        self.ls2 = LayerScale(width, layerscale_init)

    def forward(
        self,
        x: Tensor,
        groups: Sequence[Group],
        *,
        drops: tuple[Drop, Drop] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Map packed tokens (T, D) to (T, D).

        It draws nothing itself, so that running it again gives the same tokens.

        Args:
            x: (T, D) packed tokens.
            groups: their shapes.
            drops: stochastic depth of the two branches, the second over `rows`; None runs both on every image.
            rows: (R,) int64, for the last block: return these rows only, and run the feed-forward on nothing else.
        """
        if drops is None:
            x = torch.addcmul(x, self.ls1.gamma, self.attn(self.norm1(x), groups))
            x = x if rows is None else x.index_select(0, rows)
            return torch.addcmul(x, self.ls2.gamma, self.mlp(self.norm2(x)))
        first, second = drops
        x = _residual_on(x, first, self.ls1.gamma, lambda kept: self.attn(self.norm1(kept), first.groups))
        x = x if rows is None else x.index_select(0, rows)
        return _residual_on(x, second, self.ls2.gamma, lambda kept: self.mlp(self.norm2(kept)))


def _residual_on(x: Tensor, drop: Drop, gamma: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Add factor * gamma * branch(x) to the rows of x that keep the branch; the branch sees only those rows."""
    out = branch(x.index_select(0, drop.rows)) * gamma * drop.factor
    return x.index_add(0, drop.rows, out.to(x.dtype))
