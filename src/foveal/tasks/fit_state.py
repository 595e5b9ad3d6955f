"""What an interrupted fit of a head goes on from: weights, optimizer, step and last loss in one safetensors file."""

import math
from pathlib import Path

import torch
from torch import nn

from foveal.tasks import saved_state


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, loss: float, stamp: str
) -> None:
    """Write the state after `step` steps; `stamp` is a hash of everything that decides the numbers."""
    tensors = {f"head.{name}": value for name, value in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    saved_state.save_state(path, tensors, stamp=stamp, step=step, loss=loss)


def restore_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, stamp: str) -> tuple[int, float]:
    """Load a state, if there is one, and return the step to go on with and the last loss.

    Raises:
        FovealError: the state of another fit.
        WeightsError: a damaged file.
    """
    if (saved := saved_state.load_state(path, stamp=stamp, work="fit")) is None:
        return 0, math.nan
    tensors = saved.tensors
    network.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            whole["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(whole)
    return int(saved.words["step"]), float(saved.words["loss"])
