"""The photometric operations of `views.photometric: device`: on whole batches of crops, where the network is.

A worker draws the same plans and cuts, resizes and flips; what is left of a plan travels beside the crops as a row of
numbers and is carried out here by the formulas of `augment.py`, rounded and clipped after each operation. The only
difference is hue, which is held in 1/256 of a turn there and as a real number here.

Legend: N crops, S side in pixels. Pixels are float32 (N, 3, S, S) from 0 to 255.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.pretrain.data.augment import GREY_WEIGHTS, gaussian_kernel

# Columns of a plan: four operations in their order (0 brightness, 1 contrast, 2 saturation, 3 hue, -1 none), their
# factors, grayscale (0 or 1), standard deviation of the blur (0 is none), solarize (0 or 1).
_NUM_STEPS = 4
_GREY, _SIGMA, _SOLARIZE = 8, 9, 10


def plan_row(
    jitter: Sequence[tuple[int, float]], *, grayscale: bool, blur_sigma: float | None, solarize: bool
) -> list[float]:
    """Return a plan as numbers, those of one row of `apply_plans`."""
    operations, factors = zip(*[*jitter, *[(-1, 0.0)] * (_NUM_STEPS - len(jitter))], strict=True)
    return [*operations, *factors, float(grayscale), blur_sigma or 0.0, float(solarize)]


def apply_plans(
    crops: Tensor, plans: Tensor, *, blur_kernel_size: int, solarize_threshold: int, enlarged: int = 1
) -> Tensor:
    """Return the crops as their plans want them.

    Args:
        crops: (N, S, S, 3) uint8 RGB, on any device.
        plans: (N, 11) float32 on the CPU, so that choosing crops never waits for a GPU; see `plan_row`.
        blur_kernel_size: taps, odd.
        solarize_threshold: 0 to 256.
        enlarged: how many times as large the crops are as those that were planned: the blur grows with them.

    Returns:
        (N, S, S, 3) uint8 on the same device.
    """
    pixels = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for step in range(_NUM_STEPS):
        for number, operation in enumerate((_brightness, _contrast, _saturation, _hue)):
            _change(pixels, plans[:, step] == number, operation, plans[:, _NUM_STEPS + step])
    _change(pixels, plans[:, _GREY] > 0, lambda chosen, _: _grey(chosen).expand_as(chosen), plans[:, _GREY])
    size = enlarged * (blur_kernel_size - 1) + 1
    _change(
        pixels, plans[:, _SIGMA] > 0, lambda chosen, sigmas: _blur(chosen, sigmas * enlarged, size), plans[:, _SIGMA]
    )
    solarized = plans[:, _SOLARIZE]
    _change(pixels, solarized > 0, lambda x, _: torch.where(x >= solarize_threshold, 255 - x, x), solarized)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1)


def _change(pixels: Tensor, which: Tensor, operation: Callable[[Tensor, Tensor], Tensor], factors: Tensor) -> None:
    """Run an operation in place on the crops for which `which` (N,) holds, each with its factor (n, 1, 1, 1)."""
    rows = which.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    chosen = rows.to(pixels.device, non_blocking=True)
    by = factors[rows].view(-1, 1, 1, 1).to(pixels.device, non_blocking=True)
    found = operation(pixels.index_select(0, chosen), by)
    pixels.index_copy_(0, chosen, found.round().clamp(0, 255))


def _luma(pixels: Tensor) -> Tensor:
    return torch.einsum("nchw,c->nhw", pixels, pixels.new_tensor(GREY_WEIGHTS))[:, None]


def _grey(pixels: Tensor) -> Tensor:
    return _luma(pixels).round()


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return factor * pixels


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    return factor * pixels + (1 - factor) * _luma(pixels).mean(dim=(1, 2, 3), keepdim=True).round()


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return factor * pixels + (1 - factor) * _luma(pixels)


def _hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV. A channel is V - V S max(0, min(k, 4 - k, 1)), k = (n + 6 H) mod 6 with n = 5, 3, 1."""
    value, strongest = pixels.max(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    red, green, blue = pixels.split(1, dim=1)
    sixth = (
        torch.where(strongest == 0, green - blue, torch.where(strongest == 1, blue - red, red - green))
        / chroma.clamp_min(1)
        + 2 * strongest
    )
    starts = pixels.new_tensor([5, 3, 1]).view(1, 3, 1, 1)
    k = (starts + sixth + 6 * turn).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(pixels: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Blur each crop by its own separable Gaussian, mirrored at the borders without repeating the edge pixel."""
    weights = np.stack([gaussian_kernel(sigma, kernel_size) for sigma in sigmas.flatten().tolist()])
    kernels = torch.from_numpy(weights).to(pixels).repeat_interleave(3, dim=0)
    one_image = F.pad(pixels, [kernel_size // 2] * 4, mode="reflect").flatten(0, 1)[None]
    across = F.conv2d(one_image, kernels[:, None, None, :], groups=len(kernels))
    return F.conv2d(across, kernels[:, None, :, None], groups=len(kernels)).view_as(pixels)
