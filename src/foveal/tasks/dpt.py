"""The DPT decoder (arXiv 2103.13413) on four blocks of a plain ViT, in the two forms of the public depth heads.

State-dict keys are those of the official DINOv2 depth heads, without "decode_head.".
Shapes: B images, D width, F fusion width; grid_h x grid_w patches.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.tasks.dense import Level

DptForm = Literal["dinov2", "depth_anything"]


class DPT(nn.Module):
    """Four levels of tokens become one map of F channels at 8 times the patch grid; a head of depth or masks follows.

    | | dinov2 | depth_anything |
    |---|---|---|
    | class token | joined to every patch: Linear(2D, D), GELU | not read |
    | biases in residual units | no | yes |
    | upsampling between levels | twice the size, the skip resized to it | to the size of the next skip |
    | convolution after the fusion | 3x3, ReLU | none |

    Args:
        width: D of the backbone.
        channels: of the four levels after the 1x1 convolutions, from the shallowest; None is D/8, D/4, D/2, D.
        fusion_width: F.
        form: see above.
    """

    def __init__(
        self,
        width: int,
        channels: Sequence[int] | None = None,
        *,
        fusion_width: int = 256,
        form: DptForm = "dinov2",
    ) -> None:
        super().__init__()
        channels = channels or [max(width // share, 1) for share in (8, 4, 2, 1)]
        if form not in get_args(DptForm):
            raise FovealError(f"form='{form}' of a DPT head is not known; choose {', '.join(get_args(DptForm))}")
        if len(channels) != 4:
            raise FovealError(f"channels={list(channels)} of a DPT head; give four, one a level")
        self.form = form
        self.reassemble_blocks = _Reassemble(width, channels, readout=form == "dinov2")
        self.convs = nn.ModuleList(_conv(count, fusion_width, 3, bias=False) for count in channels)
        self.fusion_blocks = nn.ModuleList(
            _Fusion(fusion_width, bias=form == "depth_anything", has_skip=number > 0) for number in range(4)
        )
        if form == "dinov2":
            self.project = _conv(fusion_width, fusion_width, 3)

    def fused(self, levels: Sequence[Level]) -> Tensor:
        """Return the map (B, F, 8 grid_h, 8 grid_w); of an odd grid a little more."""
        skips = [conv["conv"](x) for conv, x in zip(self.convs, self.reassemble_blocks(levels), strict=True)]  # type: ignore[index]
        x = None
        for number, (block, skip) in enumerate(zip(self.fusion_blocks, reversed(skips), strict=True)):
            following = skips[2 - number].shape[2:] if number < 3 else None
            x = block(x, skip, size=following if self.form == "depth_anything" else None)
        assert x is not None  # there are four blocks
        return F.relu(self.project["conv"](x)) if self.form == "dinov2" else x


class _Reassemble(nn.Module):
    """Tokens of four levels to maps of 4, 2, 1 and 1/2 times the patch grid."""

    def __init__(self, width: int, channels: Sequence[int], *, readout: bool) -> None:
        super().__init__()
        self.projects = nn.ModuleList(_conv(width, count, 1) for count in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        if readout:
            self.readout_projects = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * width, width), nn.GELU()) for _ in channels
            )
        self.readout = readout

    def forward(self, levels: Sequence[Level]) -> list[Tensor]:
        found = []
        for number, (patches, cls) in enumerate(levels):
            x = patches
            if self.readout:
                rows = patches.permute(0, 2, 3, 1)
                both = torch.cat([rows, cls[:, None, None].expand_as(rows)], dim=-1)
                x = self.readout_projects[number](both).permute(0, 3, 1, 2)
            x = self.projects[number]["conv"](x)  # type: ignore[index]
            found.append(self.resize_layers[number](x))
        return found


class _Fusion(nn.Module):
    """Add a skip to what comes from below, refine, upsample, project."""

    def __init__(self, width: int, *, bias: bool, has_skip: bool) -> None:
        super().__init__()
        self.project = _conv(width, width, 1)
        if has_skip:
            self.res_conv_unit1 = _Residual(width, bias=bias)
        self.res_conv_unit2 = _Residual(width, bias=bias)

    def forward(self, below: Tensor | None, skip: Tensor, *, size: tuple[int, int] | None) -> Tensor:
        x = skip
        if below is not None:
            if skip.shape != below.shape:
                skip = F.interpolate(skip, size=below.shape[2:], mode="bilinear", align_corners=False)
            x = below + self.res_conv_unit1(skip)
        return self.project["conv"](upsampled(self.res_conv_unit2(x), size))


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.conv1 = _conv(width, width, 3, bias=bias)
        self.conv2 = _conv(width, width, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2["conv"](F.relu(self.conv1["conv"](F.relu(x))))


def _conv(channels_in: int, channels_out: int, kernel: int, *, bias: bool = True) -> nn.ModuleDict:
    """Return a convolution of the same size under the name "conv", as the official keys have it."""
    return nn.ModuleDict({"conv": nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)})


def upsampled(x: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return a map at a size, or at twice its own: bilinear, corners aligned."""
    if size is None:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
