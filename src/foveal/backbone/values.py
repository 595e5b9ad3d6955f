"""What the numbers of a checkpoint say: whether they are whole, plausible, and the result of training."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.errors import WeightsError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Weights of trained networks stay under about 100. A flipped high bit of the exponent multiplies by 65,536 and more.
PLAUSIBLE = 1000.0
# Largest singular value over that of noise: up to 1.02 at initialisation, whatever the size; 1.2 to 2.7 after the short
# training of `foveal demo`.
NOISE_EDGE, TRAINED_EDGE = 1.05, 1.12


class Evidence(NamedTuple):
    """Signs of training: `edge` the median over matrices of the largest singular value in units of noise's;
    `smoothness` the mean cosine of neighbouring places of the positional embedding; `untouched` whether norms and
    LayerScale still have one value each, as at initialisation.
    """

    edge: float
    smoothness: float
    untouched: bool


def check_values(tensors: Mapping[str, Tensor], *, num_bytes: int, where: str) -> None:
    """Refuse tensors that are not plain finite weights, before anything is computed from them.

    Args:
        tensors: the weights of a backbone.
        num_bytes: the size of the files they come from, which their own size cannot exceed.
        where: names the file in errors.

    Raises:
        WeightsError: a tensor of another type, one that is larger than the file (by repeating itself), or NaN and Inf.
    """
    total = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type != "cpu":
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(f"{where}: {name} is {kind}; weights must be float16, bfloat16, float32 or float64")
        total += tensor.numel() * tensor.element_size()
    if total > num_bytes:
        raise WeightsError(f"{where} was refused: its tensors would unfold to {total} bytes from a file of {num_bytes}")
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise WeightsError(
            f"{where} holds NaN or infinite values in {len(bad)} of {len(tensors)} tensors ({', '.join(bad[:3])}); "
            "the training diverged or the file is damaged: take an earlier checkpoint or copy it again"
        )


def implausible(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return in words which tensors cannot be right: values beyond any training, matrices of zeros."""
    found = []
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max())
        if largest > PLAUSIBLE:
            found.append(f"{name} has a value of {largest:.3g}")
        elif largest == 0 and tensor.ndim >= 2 and name.endswith(".weight"):
            found.append(f"{name} is all zeros")
    return found


def evidence(tensors: Mapping[str, Tensor], *, depth: int) -> Evidence:
    """Measure the signs of training in a backbone's tensors, under our names.

    A matrix (m, n) of independent noise of deviation s has its largest singular value at s (sqrt(m) + sqrt(n)), the
    edge of the Marchenko-Pastur law; training adds directions that stand out of it. It holds for every initialisation
    with independent entries, and for weights overwritten by noise, which norms and LayerScale alone do not show. The
    first, middle and last block are looked at.
    """
    blocks = sorted({0, depth // 2, depth - 1})
    parts = (
        "attn.qkv.weight",
        "attn.proj.weight",
        "mlp.fc1.weight",
        "mlp.fc2.weight",
        "mlp.w12.weight",
        "mlp.w3.weight",
    )
    names = [name for i in blocks for part in parts if (name := f"blocks.{i}.{part}") in tensors]
    scales = [
        t for name, t in tensors.items() if name.endswith((".gamma", "norm1.weight", "norm2.weight", "norm.weight"))
    ]
    return Evidence(
        edge=float(torch.tensor([_edge(tensors[name].float()) for name in names]).median()),
        smoothness=_smoothness(tensors["pos_embed"].float()),
        untouched=all(bool((tensor == tensor.flatten()[0]).all()) for tensor in scales),
    )


def verdict(found: Evidence) -> str:
    """Say in one line whether the numbers look trained, and by what signs."""
    signs = (
        f"matrices reach {found.edge:.2f} times the spectrum of noise, positions have smoothness {found.smoothness:.2f}"
    )
    if found.edge >= TRAINED_EDGE:
        return f"trained ({signs})"
    if found.edge >= NOISE_EDGE:
        return f"hardly trained ({signs})"
    scales = "as at initialisation" if found.untouched else "not those of an initialisation"
    return f"random, not trained ({signs}, norms and LayerScale {scales})"


def _edge(matrix: Tensor, *, num_steps: int = 40) -> float:
    """Return the largest singular value, by power iteration, over s (sqrt(m) + sqrt(n)); 0 for a matrix of zeros."""
    rows, columns = matrix.shape
    deviation = float(matrix.pow(2).mean().sqrt())
    if deviation == 0:
        return 0.0
    vector = torch.randn(columns, generator=torch.Generator().manual_seed(0))
    for _ in range(num_steps):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm()
    return float((matrix @ vector).norm()) / (deviation * (rows**0.5 + columns**0.5))


def _smoothness(pos_embed: Tensor) -> float:
    """Return the mean cosine of neighbours on the grid, after taking away the mean: 0 for noise, up to 1."""
    grid = pos_embed[0, 1:]
    side = int(len(grid) ** 0.5)
    if side < 2:
        return 0.0
    grid = torch.nn.functional.normalize((grid - grid.mean(0)).view(side, side, -1), dim=-1)
    pairs: Sequence[Tensor] = ((grid[1:] * grid[:-1]).sum(-1), (grid[:, 1:] * grid[:, :-1]).sum(-1))
    return float(torch.cat([pair.flatten() for pair in pairs]).mean())
