"""What an interrupted fit of a head goes on from: weights, optimizer, step and last loss in one safetensors file."""

import logging
import math
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import nn

from foveal.backbone.weights import load_tensors
from foveal.errors import FovealError
from foveal.files import write_atomically

logger = logging.getLogger(__name__)


def save_state(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, loss: float, stamp: str
) -> None:
    """Write the state after `step` steps; `stamp` is a hash of everything that decides the numbers."""
    tensors = {f"head.{name}": value for name, value in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    written = {"step": str(step), "loss": repr(loss), "stamp": stamp}
    try:
        write_atomically(path, save({name: value.contiguous() for name, value in tensors.items()}, written))
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error}); free space or choose another --out") from error


def restore_state(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, stamp: str) -> tuple[int, float]:
    """Load a state, if there is one, and return the step to go on with and the last loss.

    Raises:
        FovealError: the state of another fit.
        WeightsError: a damaged file.
    """
    if not path.is_file():
        return 0, math.nan
    tensors = load_tensors(path)
    with safetensors.safe_open(path, framework="pt") as file:
        written = file.metadata() or {}
    if written.get("stamp") != stamp:
        raise FovealError(
            f"{path} is the state of a fit with another model, data or settings; finish that one, or remove the file"
        )
    network.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            whole["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(whole)
    logger.info("going on with step %s of %s", written["step"], path)
    return int(written["step"]), float(written["loss"])
