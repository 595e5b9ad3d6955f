"""The device that something runs on, by its name."""

import torch

from foveal.errors import FovealError, nearest

NAMES = ("cpu", "cuda", "mps")


def open_device(name: str | torch.device) -> torch.device:
    """Return a device that this computer has.

    Args:
        name: "cpu", "cuda", "cuda:1" and the like.

    Raises:
        FovealError: no such device, or none here.

    Example:
        >>> open_device("cpu")
        device(type='cpu')
    """
    kind = str(name).partition(":")[0]
    if kind not in NAMES:
        near = "; did you mean 'cuda'?" if kind == "gpu" else nearest(kind, NAMES)
        raise FovealError(f"device '{name}' is not known; choose {', '.join(NAMES)}{near}")
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise FovealError(
            f"device '{name}' cannot be used here ({first}); use cpu, or cuda where there is one"
        ) from error
    return found
